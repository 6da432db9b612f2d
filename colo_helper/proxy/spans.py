"""Parts of a byte stream that one side has said and the other has not yet, and what both have said lately.

Offsets are of the stream and only grow; see `colo_helper.proxy.tcp_streams`.
"""

from __future__ import annotations

from collections import deque

#: What Python takes for a chunk beside its bytes, about: the numbers, the tuple, the bytes object, the places in queues.
CHUNK_BYTES = 200


class Spans:
    """Chunks (offset, bytes) of a stream in order, without overlaps; holes are allowed."""

    __slots__ = ("bytes", "chunks")

    def __init__(self) -> None:
        self.chunks: deque[tuple[int, bytes]] = deque()
        self.bytes = 0

    @property
    def size(self) -> int:
        """Return about how much memory the chunks take, in bytes."""
        return self.bytes + CHUNK_BYTES * len(self.chunks)

    @property
    def end(self) -> int:
        """Return the offset behind the last chunk, 0 without any."""
        return self.chunks[-1][0] + len(self.chunks[-1][1]) if self.chunks else 0

    def add(self, start: int, data: bytes) -> int:
        """Put bytes in where there are none; return the offset of the first that contradicts one there, or -1."""
        chunks = self.chunks
        if not chunks or chunks[-1][0] + len(chunks[-1][1]) <= start:
            chunks.append((start, data))
            self.bytes += len(data)
            return -1
        return self._merge(start, data)

    def _merge(self, start: int, data: bytes) -> int:
        end = start + len(data)
        new: list[tuple[int, bytes]] = []
        at = start
        for begin, there in self.chunks:
            stop = begin + len(there)
            if stop > start and begin < end:
                low, high = max(begin, start), min(stop, end)
                ours, theirs = data[low - start : high - start], there[low - begin : high - begin]
                if ours != theirs:
                    return low + next(n for n in range(high - low) if ours[n] != theirs[n])
                if at < begin:
                    new.append((at, data[at - start : begin - start]))
                at = stop
        if at < end:
            new.append((at, data[at - start :]))
        if new:
            self.chunks = deque(sorted([*self.chunks, *new]))
            self.bytes += sum(len(part) for _, part in new)
        return -1

    def take(self, count: int) -> None:
        """Forget the first bytes: at most as many as the first chunk has."""
        start, data = self.chunks.popleft()
        if count < len(data):
            self.chunks.appendleft((start + count, data[count:]))
        self.bytes -= count

    def clear(self) -> None:
        """Forget all."""
        self.chunks.clear()
        self.bytes = 0


Past = deque[tuple[int, bytes]]


class History:
    """What both sides have said lately on all streams: the oldest is forgotten first, whichever stream it is of.

    A stream's own part is its `Past`: chunks (offset, bytes) that follow one another.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._order: deque[tuple[Past, int]] = deque()

    def remember(self, past: Past, start: int, data: bytes) -> None:
        """Add the next bytes of a stream."""
        past.append((start, data))
        size = len(data) + CHUNK_BYTES
        self._order.append((past, size))
        self._bytes += size
        while self._bytes > self._most_bytes:
            oldest, size = self._order.popleft()
            oldest.popleft()
            self._bytes -= size


def slice_of(past: Past, start: int, end: int) -> bytes | None:
    """Return the bytes from ``start`` to ``end``, or None where they are forgotten."""
    parts: list[bytes] = []
    for begin, data in reversed(past):
        if begin < end:
            parts.append(data[max(0, start - begin) : end - begin])
        if begin <= start:
            return b"".join(reversed(parts))
    return None
