"""A listener where the clients are: which host's copy of the guest was heard, and when."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from lab.guests import GUESTS, SERVICE_PORT
from lab.network import in_namespace, tap
from lab.settings import HOSTS, Settings

#: linux/if_ether.h: every protocol. (What a host sends comes in on its tap; PACKET_OUTGOING is what goes to it.)
_ETH_P_ALL = 3
_ETHERTYPE_IPV4, _PROTOCOL_TCP = b"\x08\x00", 6
_ETHERNET_BYTES, _BUFFER_BYTES = 14, 1 << 23


class Heard(NamedTuple):
    """A piece of an answer on the bridge: the monotonic second, and the host whose copy said it."""

    at_s: float
    host: str


def is_answer(frame: bytes, address: bytes, port: int) -> bool:
    """Tell whether an Ethernet frame carries bytes of a TCP stream from ``address`` (4 bytes) and ``port``."""
    ip = frame[_ETHERNET_BYTES:]
    if frame[12:14] != _ETHERTYPE_IPV4 or len(ip) < 20 or ip[9] != _PROTOCOL_TCP or ip[12:16] != address:
        return False
    header = 4 * (ip[0] & 15)
    tcp = ip[header : int.from_bytes(ip[2:4], "big")]
    return len(tcp) > 4 * (tcp[12] >> 4) and int.from_bytes(tcp[:2], "big") == port


def speakers(heard: Iterable[Heard]) -> list[Heard]:
    """Return the first piece of each host's turn."""
    turns: list[Heard] = []
    for one in heard:
        if not turns or turns[-1].host != one.host:
            turns.append(one)
    return turns


def longest_silence(heard: Iterable[Heard], since_s: float) -> float:
    """Return the longest time without a piece of an answer after a moment."""
    times = [since_s, *(one.at_s for one in heard if one.at_s > since_s)]
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


class Listener(threading.Thread):
    """Listens on the bridge's port of each host until closed."""

    def __init__(self, settings: Settings, guest: str) -> None:
        super().__init__(daemon=True, name="listener")
        self._settings = settings
        self._address = socket.inet_aton(GUESTS[guest])
        self._sockets: dict[socket.socket, str] = {}
        self._changed = threading.Condition()
        self._heard: list[Heard] = []
        self._closed = False
        for host in HOSTS:
            self.listen(host)

    def listen(self, host: str) -> None:
        """Listen to a host whose tap is new: it goes with the host's power."""

        def bound() -> socket.socket:
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            raw.bind((tap("data", host), 0))
            return raw

        with self._changed:
            for old in [one for one, name in self._sockets.items() if name == host]:
                del self._sockets[old]
                old.close()
            self._sockets[in_namespace(self._settings, bound)] = host

    def begin(self) -> None:
        """Forget what was heard."""
        with self._changed:
            self._heard = []

    @property
    def heard(self) -> list[Heard]:
        """All since ``begin``, in order."""
        with self._changed:
            return sorted(self._heard)

    def wait(self, since_s: float, count: int, timeout_s: float) -> bool:
        """Wait until so many pieces have come after a moment."""

        def come() -> bool:
            return sum(1 for one in self._heard if one.at_s > since_s) >= count

        with self._changed:
            return self._changed.wait_for(come, timeout_s)

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        self.join()
        for raw in self._sockets:
            raw.close()

    def run(self) -> None:
        """Take frames as they come."""
        while not self._closed:
            with contextlib.suppress(OSError, ValueError):  # a socket whose tap has gone
                for raw in select.select(list(self._sockets), [], [], 0.2)[0]:
                    self._take(raw)

    def _take(self, raw: socket.socket) -> None:
        frame, (_, _, kind, *_) = raw.recvfrom(1 << 16)
        if kind != socket.PACKET_OUTGOING and is_answer(frame, self._address, SERVICE_PORT):
            with self._changed:
                self._heard.append(Heard(time.monotonic(), self._sockets[raw]))
                self._changed.notify_all()
