"""The lab's guests and a client that talks to their counting service."""

import re
import socket
import time
from dataclasses import dataclass

from lab import network, ssh
from lab.errors import LabError
from lab.settings import Settings

#: Name and address of each guest; the configurations are on every host as /etc/xen/lab/NAME.cfg.
GUESTS = {
    "h1": "192.168.77.10",
    "h2": "192.168.77.11",
    "pvh1": "192.168.77.12",
    "pv1": "192.168.77.13",
    "redis1": "192.168.77.14",
}
SERVICE_PORT = 7000
_CREATE_TIMEOUT_S = 120
_ANSWER = re.compile(r"counter=(\d+) writes=(\d+) last=(\S+) chain=([0-9a-f]{8})\n")


@dataclass(frozen=True)
class Answer:
    """What the guest said: ticks since its boot, writes since its boot, the last token, CRC-32 over all tokens."""

    counter: int
    writes: int
    last: str
    chain: int


def parse_answer(line: str) -> Answer:
    """Parse one line of the service; ValueError when it is not an answer."""
    match = _ANSWER.fullmatch(line)
    if match is None:
        raise ValueError(f"not an answer of the counting service: {line!r}")
    return Answer(int(match[1]), int(match[2]), match[3], int(match[4], 16))


def create(settings: Settings, guest: str, host: str) -> None:
    """Create a guest on a host (`xl create`)."""
    check_name(guest)
    ssh.run(settings, host, f"xl create -q /etc/xen/lab/{guest}.cfg", _CREATE_TIMEOUT_S)


def wait_answer(settings: Settings, guest: str, timeout_s: float) -> Answer:
    """The first answer of a guest that is booting; a guest without an address yet refuses or swallows connections."""
    client = Client(settings, guest, timeout_s=2.0)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return client.read()
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"{guest} did not answer within {timeout_s:.0f} s: {error}") from error
            time.sleep(0.2)  # a booting guest has no way to call us; asking is all there is
        finally:
            client.close()


def check_name(guest: str) -> None:
    """Only the guests that the image has."""
    if guest not in GUESTS:
        raise LabError(f"the lab has no guest {guest}; it has {', '.join(GUESTS)}")


class Client:
    """A client on the lab's data bridge that keeps one connection to a guest and makes a new one when it must."""

    def __init__(self, settings: Settings, guest: str, timeout_s: float = 5.0) -> None:
        check_name(guest)
        self._settings = settings
        self._address = GUESTS[guest]
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None

    def read(self) -> Answer:
        """The guest's counters. OSError (TimeoutError among them) when it does not answer."""
        return parse_answer(self.ask("read"))

    def write(self, token: str) -> Answer:
        """Write a token; the answer already counts it."""
        return parse_answer(self.ask(f"write {token}"))

    def close(self) -> None:
        """Forget the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ask(self, line: str) -> str:
        """The answer to one line, with its newline; OSError when there is none."""
        try:
            if self._sock is None:
                self._sock = network.connect(self._settings, self._address, SERVICE_PORT, self._timeout_s)
            self._sock.sendall(line.encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                piece = self._sock.recv(4096)
                if not piece:
                    raise ConnectionResetError(f"{self._address} closed the connection")
                data += piece
        except OSError:
            self.close()
            raise
        return data.decode()
