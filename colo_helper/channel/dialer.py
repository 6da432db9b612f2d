"""The replicator's side of ``colo-channel``: starts the program and asks it for connections. Imports no SSH."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_helper.channel.peer import ConnectError, End, PeerAddress

__all__ = ["ConnectError", "Connection", "Dialer", "End", "PeerAddress", "default_program"]

_MODULE = "colo_helper.channel.carrier"
_LAUNCHER = "colo-channel"
_MAX_ANSWER_BYTES = 16 << 10
#: How much longer than the program itself we wait for its answer, in seconds; then it does not run.
_ANSWER_SLACK_S = 5.0
_CLOSE_S = 5.0
_KEPT_ENDS = 256
_LOST = "carrier_lost"


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection. ``socket`` is the caller's to close; ``ms`` is how long opening took."""

    id: int
    channel: str
    socket: socket.socket
    cipher: str
    host_key: str
    ms: int


def default_program() -> list[str]:
    """Return how to start colo-channel: the launcher of the release we run from, else this interpreter with our modules."""
    launcher = Path(__file__).resolve().parents[3] / "bin" / _LAUNCHER
    if launcher.is_file():
        return [str(launcher)]
    code = f"import sys; sys.path[:] = {sys.path!r}; from {_MODULE} import main; sys.exit(main())"
    return [sys.executable, "-IS", "-c", code]


@dataclass(slots=True)
class _Opening:
    """An order that waits for its answer."""

    channel: str
    carrier: _Carrier
    answer: Connection | ConnectError | None = None


@dataclass(frozen=True, slots=True)
class _Carrier:
    """One run of the program."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def order(self, order: dict[str, Any]) -> None:
        """Send one order; raises OSError when the program has ended."""
        self.control.send(json.dumps(order).encode())


class Dialer:
    """Connections to the peer of one VM. Everything may be called by several threads.

    The program is started at once, because that takes a second on a slow host. If it dies, its connections end with the
    cause ``carrier_lost``, and the next ``open`` starts it anew.
    """

    def __init__(
        self,
        peer: PeerAddress,
        vm: str,
        program: Sequence[str],
        on_end: Callable[[int, End], None] | None,
    ) -> None:
        self._arguments = [*program, *program_arguments(peer, vm)]
        self._peer = peer
        self._on_end = on_end
        #: Guards all below; notified when an answer or an end has come.
        self._changed = threading.Condition()
        self._carrier: _Carrier | None = None
        self._closed = False
        self._last_id = 0
        self._openings: dict[int, _Opening] = {}
        self._open: dict[int, _Carrier] = {}
        self._ends: OrderedDict[int, End] = OrderedDict()

    @classmethod
    def start(
        cls,
        peer: PeerAddress,
        vm: str,
        *,
        program: Sequence[str] | None = None,
        on_end: Callable[[int, End], None] | None = None,
    ) -> Dialer:
        """Start the program; raises ConnectError when it cannot be run.

        ``on_end`` is called by a thread of ours with the id of a connection and how it ended; it must not block.
        """
        dialer = cls(peer, vm, program or default_program(), on_end)
        with dialer._changed:
            dialer._running()
        return dialer

    def open(self, channel: str, timeout_s: float) -> Connection:
        """Return a new connection; raises ConnectError, after ``timeout_s`` or a little more at the latest."""
        with self._changed:
            carrier = self._running()
            self._last_id += 1
            number = self._last_id
            opening = self._openings[number] = _Opening(channel, carrier)
            try:
                carrier.order({"open": channel, "id": number, "timeout_ms": max(1, round(timeout_s * 1000))})
                self._changed.wait_for(lambda: opening.answer is not None, timeout_s + _ANSWER_SLACK_S)
            except OSError:
                opening.answer = self._lost(carrier)
            finally:
                del self._openings[number]
        if isinstance(opening.answer, Connection):
            return opening.answer
        raise opening.answer or ConnectError(
            _LOST, f"The program {_LAUNCHER} does not answer; it is stopped or overloaded."
        )

    def idle(self) -> None:
        """Tell that no checkpoint is on its way: a good moment for new keys."""
        with self._changed:
            carrier = self._carrier
        if carrier:
            try:
                carrier.order({"idle": True})
            except OSError:
                return  # its end is told by the thread that reads

    def why(self, connection_id: int, timeout_s: float = 1.0) -> End | None:
        """Return how a connection ended; None when it has not within ``timeout_s``: the peer has only stopped writing.

        The reason comes on another way than the end of the bytes, so it may come a moment later.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: connection_id in self._ends or connection_id not in self._open, timeout_s
            )
            return self._ends.get(connection_id)

    def close(self) -> None:
        """End the program, and all connections with it."""
        with self._changed:
            self._closed = True
            carrier, self._carrier = self._carrier, None
        if carrier is None:
            return
        _shut(carrier.control)
        try:
            carrier.process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            carrier.process.kill()
            carrier.process.wait()

    # ------------------------------------------------------------------------------------------------------ the program

    def _running(self) -> _Carrier:
        """Return the program, started if need be; the caller holds the lock."""
        if self._closed:
            raise ConnectError(_LOST, "The connections to the peer were given up on this side.")
        if self._carrier is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [*self._arguments, "--control-fd", str(theirs.fileno())]
                try:
                    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
                except OSError as error:
                    ours.close()
                    raise ConnectError(_LOST, f"{command[0]} cannot be run: {error.strerror}.") from error
            self._carrier = _Carrier(process, ours)
            threading.Thread(
                target=self._listen, args=(self._carrier,), name="colo-channel", daemon=True
            ).start()
        return self._carrier

    def _lost(self, carrier: _Carrier) -> ConnectError:
        status = carrier.process.poll()
        how = "is ending" if status is None else f"ended with status {status}"
        return ConnectError(
            _LOST, f"The program {_LAUNCHER} {how}; its connections to {self._peer.name} are gone."
        )

    def _listen(self, carrier: _Carrier) -> None:
        with carrier.control:
            while True:
                try:
                    data, fds = _receive(carrier.control)
                except OSError:
                    break
                if not data:
                    break
                self._take(json.loads(data), fds)
            carrier.process.wait()
            with self._changed:
                error = self._lost(carrier)
                if self._carrier is carrier:
                    self._carrier = None
                for opening in self._openings.values():
                    if opening.carrier is carrier:
                        opening.answer = error
                gone = [number for number, its in self._open.items() if its is carrier]
                self._changed.notify_all()
            for number in gone:
                self._ended(number, End(_LOST, str(error)))

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        number = message["id"]
        if "ended" in message:
            self._ended(number, End(**message["ended"]))
            return
        with self._changed:
            opening = self._openings.get(number)
            if "opened" in message:
                given = socket.socket(fileno=fds[0])
                if opening is None:
                    given.close()  # too late: nobody waits for it any more
                    return
                self._open[number] = opening.carrier
                opening.answer = Connection(number, opening.channel, given, **message["opened"])
            elif opening is not None:
                opening.answer = ConnectError(**message["error"])
            self._changed.notify_all()

    def _ended(self, number: int, end: End) -> None:
        with self._changed:
            self._open.pop(number, None)
            self._ends[number] = end
            while len(self._ends) > _KEPT_ENDS:
                self._ends.popitem(last=False)
            self._changed.notify_all()
        if self._on_end:
            self._on_end(number, end)


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message and its descriptors, which no child of ours shall have (``socket.recv_fds`` drops the flag)."""
    space = socket.CMSG_SPACE(array("i").itemsize)
    data, given, _, _ = control.recvmsg(_MAX_ANSWER_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, value in given:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    return data, fds.tolist()


def program_arguments(peer: PeerAddress, vm: str) -> list[str]:
    """Return the arguments of colo-channel but its control socket."""
    given = {
        "--vm": vm,
        "--peer": peer.name,
        "--address": peer.address,
        "--port": str(peer.port),
        "--known-hosts": str(peer.known_hosts),
        "--user": peer.user,
    }
    if peer.heartbeat_address:
        given["--heartbeat-address"] = peer.heartbeat_address
    if peer.key_file:
        given["--key-file"] = str(peer.key_file)
    return ["serve", *(f"{name}={value}" for name, value in given.items())]


def _shut(control: socket.socket) -> None:
    try:
        control.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the program has ended and the reading thread has closed it
