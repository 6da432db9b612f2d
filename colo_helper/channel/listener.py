"""Where the secondary's replicator receives the two channels of a session from the forced command."""

from __future__ import annotations

import array
import os
import shutil
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colo_helper.channel.attach import CHANNELS
from colo_helper.channel.stream import ChannelLostError, FdStream, read_frame
from colo_helper.channel.wire import Frame, Kind, WireError

GROUP = "colo"
#: How long a new connection may take to say which session it belongs to, in seconds. Generous: the two SSH
#: connections of a session are made one after the other.
OPEN_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Half:
    """One channel of a session: the stream, and the forced command's connection that keeps it alive."""

    channel: str
    session: str
    stream: FdStream
    control: socket.socket

    def close(self) -> None:
        """Let go of the channel; the forced command ends, and sshd closes the connection."""
        self.stream.release()
        self.control.close()


@dataclass(slots=True)
class Session:
    """A forward and a back channel that belong together."""

    session: str
    forward: Half
    back: Half

    def close(self) -> None:
        """Let go of both channels."""
        self.forward.close()
        self.back.close()


class AttachListener:
    """Accepts channels in a thread and pairs them; ``on_session`` gets each complete pair.

    ``admit`` returns one sentence why nobody may attach now, or an empty string. ``group`` may reach the socket.
    """

    def __init__(
        self,
        path: Path,
        vm: str,
        admit: Callable[[], str],
        on_session: Callable[[Session], None],
        group: str = GROUP,
    ) -> None:
        self._path = path
        self._vm = vm
        self._admit = admit
        self._on_session = on_session
        self._group = group
        self._pending: Half | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._accept_loop, name="attach-listener", daemon=True)

    def start(self) -> None:
        """Open the socket and start accepting; raises OSError."""
        self._path.unlink(missing_ok=True)
        self._socket.bind(str(self._path))
        self._path.chmod(0o660)
        if self._group:
            self._give_to(self._group)
        self._socket.listen(8)
        self._thread.start()

    def _give_to(self, group: str) -> None:
        try:
            for path, mode in ((self._path.parent, 0o750), (self._path, 0o660)):
                shutil.chown(path, "root", group)
                path.chmod(mode)
        except LookupError as error:
            raise OSError(f"{self._path} cannot be opened to the forced command: {error}.") from error

    def close(self) -> None:
        """Stop accepting and remove the socket."""
        self._path.unlink(missing_ok=True)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._path.unlink(missing_ok=True)  # it was not listening yet; there is no thread to wake
        self._socket.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(OPEN_TIMEOUT_S)
        if self._pending:
            self._pending.close()
            self._pending = None

    def _accept_loop(self) -> None:
        while True:
            try:
                control, _ = self._socket.accept()
            except OSError:
                return  # closed by close()
            half = self._receive(control)
            if half:
                self._pair(half)

    def _receive(self, control: socket.socket) -> Half | None:
        """Read one hand-over; on anything wrong tell the forced command why and return None."""
        fds: list[int] = []
        try:
            control.settimeout(OPEN_TIMEOUT_S)
            name, ancillary, _, _ = control.recvmsg(64, socket.CMSG_SPACE(2 * struct.calcsize("i")))
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                    fds.extend(numbers)
            reason = self._admit()
            if reason:
                _refuse(control, fds, reason)
                return None
            if len(fds) != 2:
                _refuse(control, fds, "The forced command handed over no channel.")
                return None
            return self._open(control, name.decode(errors="replace").strip(), fds)
        except OSError as error:
            _refuse(control, fds, f"The hand-over failed: {error}.")
            return None

    def _open(self, control: socket.socket, channel: str, fds: list[int]) -> Half | None:
        stream = FdStream(*fds)

        def expired() -> None:
            raise ChannelLostError(f"The client did not say within {OPEN_TIMEOUT_S:g} s what it wants.")

        try:
            frame = read_frame(stream, expired, OPEN_TIMEOUT_S)
            reason = open_refusal(frame, self._vm, channel)
        except (ChannelLostError, WireError) as error:
            frame, reason = None, str(error)
        if frame is None or reason:
            stream.release()
            _refuse(control, [], reason)
            return None
        return Half(channel, frame.head["session"], stream, control)

    def _pair(self, half: Half) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            self._pending = half
        elif pending.session != half.session or pending.channel == half.channel:
            pending.close()  # its client gave up between the two connections, or started anew
            self._pending = half
        else:
            pair = {pending.channel: pending, half.channel: half}
            self._on_session(Session(half.session, pair["forward"], pair["back"]))


def open_refusal(frame: Frame, vm: str, channel: str) -> str:
    """Return why the first frame of a channel does not open one, or an empty string."""
    if frame.kind is not Kind.OPEN:
        return f"The channel began with {frame.kind.name} instead of OPEN."
    session = frame.head.get("session")
    if not isinstance(session, str) or not 8 <= len(session) <= 64:
        return "The channel was opened without the name of a session."
    if channel not in CHANNELS or frame.head.get("channel") != channel:
        return f"The channel '{frame.head.get('channel')}' came in by the command for '{channel}'."
    if frame.head.get("vm") != vm:
        return f"The client wants VM '{frame.head.get('vm')}', this replicator serves '{vm}'."
    return ""


def _refuse(control: socket.socket, fds: list[int], reason: str) -> None:
    for fd in fds:
        os.close(fd)
    with control:
        try:
            control.sendall(reason.encode() + b"\n")
        except OSError:
            return  # the forced command is gone, and with it the one who would read the reason
