"""Exact reading and writing on the stream and the back channel, without reading ahead, and never stuck for good.

Both descriptors belong to the parent too, so their flags must stay as they are: a pipe is opened once more for us, without
blocking, and a socket is asked for each piece not to block. Every wait ends when somebody tells the helper to stop, when
the parent is gone, and after the time limit, if there is one. A file is simply read and written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import stat
from collections.abc import Sequence
from types import FrameType

from colo_helper.helper.errors import HelperError, ParentLostError, StoppedError, StreamLostError

#: What a pipe may hold: fewer changes between the two programs at its ends. Linux's limit for everybody.
_PIPE_BYTES = 1 << 20
#: The most buffers of one writev (IOV_MAX is 1,024).
_MAX_BUFFERS = 64


class Stop:
    """Reasons to end at once, as something that can be waited for: a signal, or a parent that is gone."""

    def __init__(self) -> None:
        self.asked = False
        self._why = ""
        self._parent_fd = -1
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)

    def listen(self) -> None:
        """Take signals from now on; only the main thread may call this.

        SIGTERM is libxl's, also when the parent had it blocked. SIGINT and SIGHUP come from the terminal of an xl that
        ends by them; a parent that had them ignored, such as nohup, keeps that.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)

    def watch_parent(self, fd: int) -> None:
        """Let every wait end when the other end of this pipe is closed; nothing is read from it."""
        self._parent_fd = fd

    def ask(self, why: str = "SIGTERM") -> None:
        """Stop: every wait and every step from now on raises StoppedError."""
        if not self.asked:
            self._why = why
            self.asked = True
            os.write(self._write_fd, b"x")

    def check(self) -> None:
        """Raise StoppedError when somebody asked to stop."""
        if self.asked:
            raise StoppedError(self._why)

    def wait(self, fd: int, event: int, seconds: float | None) -> int:
        """Wait for an event of ``fd``; returns its events, 0 after ``seconds``. Raises StoppedError, ParentLostError."""
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._read_fd, select.POLLIN)
        if self._parent_fd >= 0:
            poll.register(
                self._parent_fd, 0
            )  # its end is reported unasked; its answers are not ours to read here
        ready = dict(poll.poll(None if seconds is None else seconds * 1000))
        self.check()
        if ready.get(self._parent_fd, 0) & (select.POLLHUP | select.POLLERR):
            raise ParentLostError("The parent closed its side while we waited for the other host.")
        return ready.get(fd, 0)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_fd)
        os.close(self._write_fd)


class Fd:
    """One direction of a descriptor. ``name`` is for sentences; ``limit_s`` None waits for ever."""

    def __init__(
        self, fd: int, name: str, stop: Stop, *, writing: bool, limit_s: float | None = None
    ) -> None:
        self._name = name
        self._stop = stop
        self._limit_s = limit_s
        self._event = select.POLLOUT if writing else select.POLLIN
        self._own = -1
        self._socket: socket.socket | None = None
        self._fd = fd
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:
            raise HelperError(
                f"{name} was to be descriptor {fd}, but: {error.strerror}.", error.errno or errno.EBADF
            ) from error
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
            self._fd = self._socket.fileno()
        elif stat.S_ISFIFO(mode):
            self._fd = self._own = self._reopen(fd, writing)

    def _reopen(self, fd: int, writing: bool) -> int:
        flags = (os.O_WRONLY if writing else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            own = os.open(f"/proc/self/fd/{fd}", flags)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise StreamLostError(f"{self._name}: nobody reads it.", errno.EPIPE) from error
            raise
        try:
            if fcntl.fcntl(own, fcntl.F_GETPIPE_SZ) < _PIPE_BYTES:
                fcntl.fcntl(own, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except PermissionError:
            return own  # the user's pipes take too much already: smaller ones work as well
        return own

    def read_exact(self, length: int) -> bytes:
        """Return exactly ``length`` bytes; raises StreamLostError at the end of the stream, StoppedError."""
        data = bytearray(length)
        with memoryview(data) as view:
            self.read_into(view)
        return bytes(data)

    def read_into(self, view: memoryview) -> None:
        """Fill ``view`` exactly; see ``read_exact``."""
        done = 0
        while done < len(view):
            self._stop.check()
            try:
                got = self._read(view[done:])
            except BlockingIOError:
                self._wait()
                continue
            except OSError as error:
                raise StreamLostError(
                    f"{self._name} broke while reading: {error.strerror}.", error.errno or 0
                ) from error
            if got == 0:
                where = "" if done == 0 else f" in the middle, after {done} of {len(view)} bytes"
                raise StreamLostError(f"{self._name} ended{where}.", errno.EPIPE)
            done += got

    def _read(self, view: memoryview) -> int:
        if self._socket:
            return self._socket.recv_into(view, len(view), socket.MSG_DONTWAIT)
        return os.readv(self._fd, [view])

    def check_stop(self) -> None:
        """Raise StoppedError when somebody asked to stop: for a step that neither reads nor writes."""
        self._stop.check()

    def readable_within(self, seconds: float) -> bool:
        """Tell whether something can be read, waiting at most so long; raises StoppedError."""
        self._stop.check()
        return bool(self._stop.wait(self._fd, select.POLLIN, seconds) & select.POLLIN)

    def write(self, *buffers: bytes | memoryview) -> int:
        """Write all of the buffers; returns their bytes. Raises StreamLostError when nobody reads, StoppedError."""
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        total = sum(len(buffer) for buffer in left)
        while left:
            self._stop.check()
            try:
                done = self._write(left[:_MAX_BUFFERS])
            except BlockingIOError:
                self._wait()
                continue
            except OSError as error:
                raise StreamLostError(
                    f"{self._name} broke while writing: {error.strerror}.", error.errno or 0
                ) from error
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]
        return total

    def _write(self, buffers: Sequence[memoryview]) -> int:
        if self._socket:
            return self._socket.sendmsg(buffers, [], socket.MSG_DONTWAIT)
        return os.writev(self._fd, buffers)

    def _wait(self) -> None:
        if not self._stop.wait(self._fd, self._event, self._limit_s):
            raise StreamLostError(f"{self._name}: nothing moved for {self._limit_s:g} s.", errno.ETIMEDOUT)

    def close(self) -> None:
        """Close what was opened here; the descriptor that was handed in stays open."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
        if self._socket:
            self._socket.close()
            self._socket = None
