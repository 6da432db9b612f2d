"""Where the secondary's replicator receives the connections of a session from the forced command."""

from __future__ import annotations

import array
import os
import shutil
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colo_helper.channel.session import LANES, Session
from colo_helper.channel.stream import ChannelLostError, FdStream, read_frame
from colo_helper.channel.wire import Frame, Kind, WireError

GROUP = "colo"
#: How long a new connection may take to say which session it belongs to, in seconds.
OPEN_TIMEOUT_S = 30.0
#: What a primary is told that comes back to a session which this replicator does not have (any more).
UNKNOWN = "This replicator does not know the session; it was started anew or has given the session up."


class AttachListener:
    """Accepts connections in a thread and gives them to their session; ``on_session`` gets each that is complete.

    ``admit`` returns one sentence why no new session may begin now, or an empty string. ``make_session`` returns a new one
    of that name. ``group`` may reach the socket.
    """

    def __init__(
        self,
        path: Path,
        vm: str,
        admit: Callable[[], str],
        make_session: Callable[[str], Session],
        on_session: Callable[[Session], None],
        group: str = GROUP,
    ) -> None:
        self._path = path
        self._vm = vm
        self._admit = admit
        self._make_session = make_session
        self._on_session = on_session
        self._group = group
        self._session: Session | None = None
        self._handed_on = False
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
        """Stop accepting and remove the socket; a session that was handed on is its owner's to close."""
        self._path.unlink(missing_ok=True)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._path.unlink(missing_ok=True)  # it was not listening yet; there is no thread to wake
        self._socket.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(OPEN_TIMEOUT_S)
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        if self._session and not self._handed_on:
            self._session.close()
        self._session = None

    def _accept_loop(self) -> None:
        while True:
            try:
                control, _ = self._socket.accept()
            except OSError:
                return  # closed by close()
            self._receive(control)

    def _receive(self, control: socket.socket) -> None:
        """Take one hand-over; on anything wrong tell the forced command why."""
        fds: list[int] = []
        try:
            control.settimeout(OPEN_TIMEOUT_S)
            name, ancillary, _, _ = control.recvmsg(64, socket.CMSG_SPACE(2 * struct.calcsize("i")))
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                    fds.extend(numbers)
        except OSError as error:
            _refuse(control, fds, f"The hand-over failed: {error}.")
            return
        if len(fds) != 2:
            _refuse(control, fds, "The forced command handed over no channel.")
            return
        stream = FdStream(fds[0], fds[1], keeper=control)
        try:
            reason = self._open(name.decode(errors="replace").strip(), stream)
        except (ChannelLostError, WireError) as error:
            reason = str(error)
            # Also of a connection that broke again: then nobody is there to read it.
        if reason:
            _refuse(control, [], reason)
            stream.release()

    def _open(self, channel: str, stream: FdStream) -> str:
        """Read what a connection is for and give it to its session; returns why not, or an empty string."""

        def expired() -> None:
            raise ChannelLostError(f"The client did not say within {OPEN_TIMEOUT_S:g} s what it wants.")

        frame = read_frame(stream, expired, OPEN_TIMEOUT_S)
        if reason := open_refusal(frame, self._vm, channel):
            return reason
        session = self._session_of(frame.head)
        if isinstance(session, str):
            return session
        self._session = session
        session.attach(channel, stream, frame.head["received"])
        if session.complete and not self._handed_on:
            self._handed_on = True
            self._on_session(session)
        return ""

    def _session_of(self, head: dict[str, Any]) -> Session | str:
        """Return the session that a connection belongs to, a new one, or why there is none."""
        if self._session and self._session.name == head["session"] and not self._session.ended:
            return self._session
        if head["resumes"]:
            return UNKNOWN
        if reason := self._admit():
            return reason
        self._drop_unfinished()  # its client gave up between two connections, or started anew
        self._handed_on = False
        return self._make_session(head["session"])


def open_refusal(frame: Frame, vm: str, channel: str) -> str:
    """Return why the first frame of a connection does not open one, or an empty string."""
    if frame.kind is not Kind.OPEN:
        return f"The channel began with {frame.kind.name} instead of OPEN."
    head = frame.head
    session, received = head.get("session"), head.get("received")
    if not isinstance(session, str) or not 8 <= len(session) <= 64:
        return "The channel was opened without the name of a session."
    if isinstance(received, bool) or not isinstance(received, int) or received < 0:
        return f"The channel was opened with {received!r} frames received."
    if not isinstance(head.get("resumes"), bool):
        return "The channel was opened without a word on whether it goes on with a session."
    if channel not in LANES or head.get("channel") != channel:
        return f"The channel '{head.get('channel')}' came in by the command for '{channel}'."
    return (
        ""
        if head.get("vm") == vm
        else f"The client wants VM '{head.get('vm')}', this replicator serves '{vm}'."
    )


def _refuse(control: socket.socket, fds: list[int], reason: str) -> None:
    for fd in fds:
        os.close(fd)
    try:
        control.sendall(reason.encode())
    except OSError:
        return  # the client is gone, so nobody needs the reason
    finally:
        control.close()
