"""Bytes made small for the channel."""

from __future__ import annotations

from typing import Any

import zstandard

from colo_helper.channel.wire import Frame

_LEVEL = 1
#: The most that one frame of a stream carries, unpacked.
MAX_CHUNK_BYTES = 1 << 20


class PackingError(ValueError):
    """Bytes from the peer that must not be used; the text says why."""


def pack(data: bytes | memoryview) -> tuple[dict[str, Any], bytes]:
    """Return (head, payload) of a frame for ``data``: zstd at its fastest level when that is smaller."""
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    smaller = len(packed) < len(data)
    return {"packed": smaller, "bytes": len(data)}, packed if smaller else bytes(data)


def unpack(frame: Frame) -> bytes:
    """Return what ``pack`` was given; raises PackingError. Never takes more memory than MAX_CHUNK_BYTES."""
    length = frame.head.get("bytes")
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= MAX_CHUNK_BYTES:
        raise PackingError(f"A frame claims {length!r} bytes; it may carry up to {MAX_CHUNK_BYTES}.")
    if len(frame.parts) != 1:
        raise PackingError(f"A frame of bytes has {len(frame.parts)} parts instead of one.")
    data = frame.parts[0]
    if frame.head.get("packed") is True:
        try:
            if zstandard.frame_content_size(data) != length:
                raise PackingError(f"Packed data do not unpack to {length} bytes.")
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=length)
        except zstandard.ZstdError as error:
            raise PackingError(f"Packed data cannot be unpacked: {error}.") from error
    if len(data) != length:
        raise PackingError(f"{len(data)} bytes came instead of {length}.")
    return data
