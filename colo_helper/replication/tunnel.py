"""Between a helper's pipes and the frames of a conversation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from colo_helper.channel.wire import Frame
from colo_helper.replication.packing import unpack


class Outlet:
    """Frames of one kind, on their way into the pipe that a helper reads. Used by the reading thread of its lane.

    A helper that has ended is no error here: whoever serves it learns that from itself. ``taken`` is called whenever the
    helper has read on.
    """

    def __init__(self, fd: int, taken: Callable[[], None] = lambda: None) -> None:
        self._fd = fd
        self._taken = taken
        self._lock = threading.Lock()

    def put(self, frame: Frame) -> None:
        """Write the frame's bytes; blocks while the pipe is full. Raises PackingError."""
        self._write(memoryview(unpack(frame)))

    def _write(self, data: memoryview) -> None:
        while data and self._fd >= 0:
            try:
                data = data[os.write(self._fd, data) :]
            except BrokenPipeError:
                return
            self._taken()

    def write_and_close(self, data: bytes) -> None:
        """Write bytes that came from no frame, and no more."""
        try:
            self._write(memoryview(data))
        finally:
            self.close()

    def close(self) -> None:
        """End the stream: the helper sees that nothing more comes. May be called again."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def take(fd: int, most: int) -> bytes | None:
    """Return what a helper has written to a pipe that does not block; None when there is nothing now, empty at its end."""
    try:
        return os.read(fd, most)
    except BlockingIOError:
        return None
