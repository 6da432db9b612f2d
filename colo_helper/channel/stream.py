"""Exact-length reading and writing on one direction of a channel, with a say in how long to wait.

``Patience`` is called each time nothing has moved for a while; it raises when the wait has been long enough.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Protocol

from colo_helper.channel import wire

Patience = Callable[[], None]


class ChannelLostError(Exception):
    """The channel is gone, or the peer is silent; the text says which. ``lasting``: no new connection will help."""

    def __init__(self, sentence: str, *, lasting: bool = False) -> None:
        super().__init__(sentence)
        self.lasting = lasting


class Closeable(Protocol):
    """What keeps the other end of a stream alive."""

    def close(self) -> None:
        """Let go of it."""


class FdStream:
    """A pair of file descriptors, or one socket twice. Reading and writing may go on in two threads.

    ``last_read`` is the monotonic clock when something last came in, 0 before that. ``keeper`` is closed with the stream.
    ``why`` tells more about an end than the descriptors do, if it can.
    """

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        keeper: Closeable | None = None,
        why: Callable[[], ChannelLostError | None] = lambda: None,
    ) -> None:
        self.last_read = 0.0
        self._keeper = keeper
        self._why = why
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._wake_r, self._wake_w = os.pipe()
        self._closing = self._emptying = False
        for fd in {read_fd, write_fd}:
            os.set_blocking(fd, False)

    def _wait(self, fd: int, event: int, patience: Patience, slice_s: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._wake_r, select.POLLIN)
        while not (ready := poll.poll(slice_s * 1000)):
            patience()
        found = {number for number, _ in ready}
        if self._wake_r in found and not (self._emptying and event == select.POLLIN and fd in found):
            raise ChannelLostError("The channel was closed on this side.")

    def read(self, length: int, patience: Patience, slice_s: float) -> bytes:
        """Return exactly ``length`` bytes; raises ChannelLostError at the end of the stream."""
        buffer = bytearray(length)
        done = 0
        with memoryview(buffer) as view:
            while done < length:
                self._wait(self._read_fd, select.POLLIN, patience, slice_s)
                try:
                    got = os.readv(self._read_fd, [view[done:]])
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise self._lost(f"The channel broke while reading: {error.strerror}.") from error
                if got == 0:
                    raise self._lost("The peer closed the channel.")
                self.last_read = time.monotonic()
                done += got
        return bytes(buffer)

    def write(self, data: bytes, patience: Patience, slice_s: float) -> None:
        """Write all of ``data``; raises ChannelLostError."""
        with memoryview(data) as view:
            done = 0
            while done < len(data):
                self._wait(self._write_fd, select.POLLOUT, patience, slice_s)
                try:
                    done += os.write(self._write_fd, view[done:])
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise self._lost(f"The channel broke while writing: {error.strerror}.") from error

    def _lost(self, sentence: str) -> ChannelLostError:
        return self._why() or ChannelLostError(sentence)

    def takes_more(self) -> bool:
        """Tell whether a short write would not have to wait now."""
        poll = select.poll()
        poll.register(self._write_fd, select.POLLOUT)
        return bool(poll.poll(0)) and not self._closing

    def close(self) -> None:
        """End reading and writing, also in other threads.

        The descriptors stay open until ``release``: a number must not be reused under a reader.
        """
        self._emptying = False
        self._begin_to_close()

    def close_when_empty(self) -> None:
        """End writing, and reading as soon as nothing more is there: a peer's last words outlive its end of the channel."""
        if not self._closing:
            self._emptying = True
            self._begin_to_close()

    def _begin_to_close(self) -> None:
        if not self._closing:
            self._closing = True
            os.write(self._wake_w, b"x")

    def release(self) -> None:
        """Close the descriptors; no thread may use the stream any more."""
        self.close()
        for fd in {self._read_fd, self._write_fd, self._wake_r, self._wake_w}:
            os.close(fd)
        if self._keeper:
            self._keeper.close()


def write_frame(stream: FdStream, buffers: list[bytes], patience: Patience, slice_s: float) -> int:
    """Write an encoded frame; returns its bytes."""
    for buffer in buffers:
        stream.write(buffer, patience, slice_s)
    return sum(len(buffer) for buffer in buffers)


def read_frame(stream: FdStream, patience: Patience, slice_s: float) -> wire.Frame:
    """Read one frame; raises WireError and ChannelLostError."""
    prelude = wire.parse_prelude(stream.read(wire.PRELUDE_BYTES, patience, slice_s))
    lengths = wire.parse_lengths(stream.read(4 * prelude.parts, patience, slice_s), prelude)
    head = wire.parse_head(stream.read(prelude.head_bytes, patience, slice_s))
    parts = tuple(stream.read(length, patience, slice_s) for length in lengths)
    return wire.Frame(prelude.kind, head, parts, prelude.number)
