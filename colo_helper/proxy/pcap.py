"""Reads classic pcap files: both byte orders, micro- and nanoseconds (the format: draft-ietf-opsawg-pcap)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e-6),
    b"\xa1\xb2\xc3\xd4": (">", 1e-6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e-9),
    b"\xa1\xb2\x3c\x4d": (">", 1e-9),
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_HEADER_BYTES, _RECORD_BYTES = 24, 16
_ETHERNET = 1
#: No capture program writes longer records (libpcap's MAXIMUM_SNAPLEN).
MOST_BYTES = 262_144


class PcapError(ValueError):
    """The file cannot be read; the text says why and where."""


class Captured(NamedTuple):
    """One frame, with the seconds since 1970 at which it was captured."""

    time_s: float
    frame: bytes


def read_pcap(name: str, file: BinaryIO) -> Iterator[Captured]:
    """Yield the frames of a file. Raises PcapError with a sentence that names the file and the place."""
    header = file.read(_HEADER_BYTES)
    if header[:4] == _PCAPNG:
        raise PcapError(f"{name} is a pcapng file; 'editcap -F pcap' makes a pcap file of it.")
    if header[:4] not in _MAGICS:
        raise PcapError(f"{name} is not a pcap file: it begins with {header[:4].hex() or 'nothing'}.")
    if len(header) < _HEADER_BYTES:
        raise PcapError(f"{name} ends within its header, after {len(header)} bytes.")
    order, unit_s = _MAGICS[header[:4]]
    (link,) = struct.unpack(order + "I", header[20:24])
    if link & 0xFFFF != _ETHERNET:
        raise PcapError(f"{name} has frames of link type {link & 0xFFFF}; only Ethernet (1) is read.")
    record = struct.Struct(order + "IIII")
    place = _HEADER_BYTES
    while head := file.read(_RECORD_BYTES):
        if len(head) < _RECORD_BYTES:
            raise PcapError(f"{name} ends within the header of a record at byte {place}.")
        seconds, fraction, length, _ = record.unpack(head)
        if length > MOST_BYTES:
            raise PcapError(
                f"{name} has a record of {length} bytes at byte {place}; {MOST_BYTES} are the most."
            )
        frame = file.read(length)
        if len(frame) < length:
            raise PcapError(f"{name} ends within a record at byte {place}: {len(frame)} of {length} bytes.")
        yield Captured(seconds + fraction * unit_s, frame)
        place += _RECORD_BYTES + length
