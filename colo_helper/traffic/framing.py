"""Packets as QEMU's network filters write and read them.

Each is a big-endian u32 with the frame's length, another with the length of the vnet header (0 without one), and the frame,
which begins with that header. Source: QEMU's net/filter-mirror.c with vnet_hdr_support on, and net_fill_rstate in net/net.c;
the same in 7.2 and 10.0.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from colo_helper.proxy.packet import Packet, parse

_LENGTHS = struct.Struct(">II")
#: What QEMU itself takes, NET_BUFSIZE: 64 KiB of payload and 4 KiB of headers.
MAX_FRAME_BYTES = (64 + 4) << 10


class FramingError(Exception):
    """These bytes are no row of packets; the text says why."""


class RawFrame(NamedTuple):
    """A frame, and how long the vnet header at its beginning is."""

    data: bytes
    vnet_bytes: int

    def packet(self) -> Packet:
        """Return what it is."""
        return parse(self.data, self.vnet_bytes)


def pack(frame: RawFrame) -> bytes:
    """Return a frame as it travels."""
    return _LENGTHS.pack(len(frame.data), frame.vnet_bytes) + frame.data


class FrameReader:
    """Makes frames of a stream, however it is cut."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def cut(self) -> bool:
        """Whether the stream stops within a frame now."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[RawFrame]:
        """Return the frames that are complete with these bytes; raises FramingError."""
        data = self._rest + data if self._rest else data
        frames = []
        at, end = 0, len(data)
        while end - at >= _LENGTHS.size:
            length, vnet_bytes = _LENGTHS.unpack_from(data, at)
            if length > MAX_FRAME_BYTES or vnet_bytes > length:
                raise FramingError(f"A frame of {length} bytes with a vnet header of {vnet_bytes} cannot be.")
            start = at + _LENGTHS.size
            if end - start < length:
                break
            at = start + length
            frames.append(RawFrame(data[start:at], vnet_bytes))
        self._rest = data[at:]
        return frames
