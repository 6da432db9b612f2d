"""Writes and reads captures as pcapng, which Wireshark opens (the format: draft-ietf-opsawg-pcapng).

Only what a capture needs: one section, interfaces with a name, enhanced packet blocks. Blocks of other types are passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import BinaryIO, NamedTuple

#: No capture program writes longer packets (libpcap's MAXIMUM_SNAPLEN).
MOST_BYTES = 262_144

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_MAGIC = 0x1A2B3C4D
_END, _NAME, _RESOLUTION = 0, 2, 9
_NANOSECONDS = 9
#: Blocks begin and end with their type and length: u32 each, and the length again.
_FRAME_BYTES = 12
_UNKNOWN_LENGTH = 0xFFFF_FFFF_FFFF_FFFF


class PcapngError(ValueError):
    """The file cannot be read; the text says why and where."""


class LinkType(IntEnum):
    """What the packets of an interface are."""

    ETHERNET = 1
    #: LINKTYPE_USER0: what its writer likes.
    PRIVATE = 147


class Interface(NamedTuple):
    """Where packets were seen."""

    name: str
    link: int


class Captured(NamedTuple):
    """One packet, with the seconds since 1970 at which it was seen."""

    time_s: float
    interface: Interface
    data: bytes


def write_pcapng(file: BinaryIO, interfaces: Sequence[Interface], captured: Iterable[Captured]) -> None:
    """Write a capture; ``captured`` are of these interfaces. Raises OSError."""
    file.write(_block(_SECTION, struct.pack("<IHHQ", _MAGIC, 1, 0, _UNKNOWN_LENGTH)))
    for interface in interfaces:
        options = _option(_NAME, interface.name.encode()) + _option(_RESOLUTION, bytes([_NANOSECONDS]))
        body = struct.pack("<HHI", interface.link, 0, MOST_BYTES) + options + struct.pack("<HH", _END, 0)
        file.write(_block(_INTERFACE, body))
    for time_s, interface, data in captured:
        time_ns = int(time_s * 1e9)
        head = struct.pack(
            "<IIIII", interfaces.index(interface), time_ns >> 32, time_ns & 0xFFFF_FFFF, len(data), len(data)
        )
        file.write(_block(_PACKET, head + _padded(data)))


def read_pcapng(name: str, file: BinaryIO) -> Iterator[Captured]:
    """Yield what a file holds. Raises PcapngError with a sentence that names the file and the place."""
    return _Reader(name, file).packets()


class _Reader:
    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file
        self._at = 0
        self._order = "<"
        self._interfaces: list[tuple[Interface, float]] = []

    def packets(self) -> Iterator[Captured]:
        first = True
        while head := self._read(8, "the header of a block", may_end=True):
            if head[:4] == b"\x0a\x0d\x0d\x0a":
                self._begin_section(head)
            elif first:
                raise PcapngError(f"{self._name} is not a pcapng file: it begins with {head[:4].hex()}.")
            else:
                kind, length = struct.unpack(self._order + "II", head)
                body = self._body(length, b"")
                if kind == _INTERFACE:
                    self._interfaces.append(self._interface(body))
                elif kind == _PACKET:
                    yield self._packet(body)
            first = False
        if first:
            raise PcapngError(f"{self._name} is not a pcapng file: it begins with nothing.")

    def _begin_section(self, head: bytes) -> None:
        """Every section says in which order its bytes are, and counts interfaces anew."""
        magic = self._read(4, "the header of a section")
        self._order = "<" if magic == struct.pack("<I", _MAGIC) else ">"
        if magic != struct.pack(self._order + "I", _MAGIC):
            raise PcapngError(f"{self._name} has a section without its magic at byte {self._at - 4}.")
        (length,) = struct.unpack(self._order + "I", head[4:])
        self._body(length, magic)
        self._interfaces = []

    def _body(self, length: int, begun: bytes) -> bytes:
        """Return what stands between a block's header, which was read with the bytes in ``begun``, and its end."""
        place = self._at - 8 - len(begun)
        if length % 4 or not _FRAME_BYTES + len(begun) <= length <= _FRAME_BYTES + 2 * MOST_BYTES:
            raise PcapngError(f"{self._name} has a block of {length} bytes at byte {place}, which cannot be.")
        body = begun + self._read(length - _FRAME_BYTES - len(begun), "a block")
        if self._read(4, "a block") != struct.pack(self._order + "I", length):
            raise PcapngError(f"{self._name} has a block at byte {place} that ends with another length.")
        return body

    def _interface(self, body: bytes) -> tuple[Interface, float]:
        """Return an interface, and what a unit of its times is in seconds."""
        if len(body) < 8:
            raise PcapngError(f"{self._name} has an interface that is too short, before byte {self._at}.")
        (link,) = struct.unpack_from(self._order + "H", body)
        name, unit_s = f"interface {len(self._interfaces)}", 1e-6
        for code, value in self._options(body[8:]):
            if code == _NAME:
                name = value.decode(errors="replace")
            elif code == _RESOLUTION and len(value) == 1:
                unit_s = 2.0 ** -(value[0] & 0x7F) if value[0] & 0x80 else 10.0 ** -value[0]
        return Interface(name, link), unit_s

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at + 4 <= len(data):
            code, length = struct.unpack_from(self._order + "HH", data, at)
            if code == _END or at + 4 + length > len(data):
                return
            yield code, data[at + 4 : at + 4 + length]
            at += 4 + length + -length % 4

    def _packet(self, body: bytes) -> Captured:
        if len(body) < 20:
            raise PcapngError(f"{self._name} has a packet that is too short, before byte {self._at}.")
        number, high, low, length, _ = struct.unpack_from(self._order + "IIIII", body)
        if number >= len(self._interfaces) or length > len(body) - 20:
            raise PcapngError(
                f"{self._name} has a packet of {length} bytes of interface {number}, before byte {self._at}, "
                f"in a block of {len(body)}; it has {len(self._interfaces)} interfaces."
            )
        interface, unit_s = self._interfaces[number]
        return Captured((high << 32 | low) * unit_s, interface, body[20 : 20 + length])

    def _read(self, count: int, what: str, *, may_end: bool = False) -> bytes:
        data = self._file.read(count)
        if len(data) < count and not (may_end and not data):
            raise PcapngError(f"{self._name} ends within {what}, after {self._at + len(data)} bytes.")
        self._at += len(data)
        return data


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", _FRAME_BYTES + len(body))
    return struct.pack("<I", kind) + length + body + length


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
