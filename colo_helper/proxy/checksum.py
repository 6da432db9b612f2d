"""The Internet checksum when a number under it changes (RFC 1624, equation 3), and when there is only a part of it.

A frame of virtio-net may leave the checksum to the device: then the header in front of the frame has NEEDS_CSUM set and says
where the checksum stands, and the field has the sum of the pseudo header only (virtio 1.2, 5.1.6.2). That sum covers addresses,
protocol and length, so it stays right whatever changes in TCP's header.
"""

from __future__ import annotations

import struct

from colo_helper.proxy.packet import Packet

_NEEDS_CSUM = 1
_CHECKSUM_AT = 16
_vnet_flags = struct.Struct("<B5xHH").unpack_from


def internet_checksum(data: bytes) -> int:
    """Return the checksum of data (RFC 1071), whose own place is zero in it."""
    total = int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF
    return total ^ 0xFFFF if total or not any(data) else 0


def updated(checksum: int, old: int, new: int, *, odd: bool = False) -> int:
    """Return the checksum after a number of 32 bits has changed; ``odd``: it stands at an odd place of what is summed up.

    HC' = ~(~HC + ~m + m'). A number of 32 bits counts as its two words do, because 2**16 is 1 modulo 0xffff.
    """
    total = (old ^ 0xFFFF_FFFF) + new
    if odd:
        total <<= 8
    total += checksum ^ 0xFFFF
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def is_partial(packet: Packet) -> bool:
    """Return whether a TCP packet's checksum is left to the device."""
    if not packet.ethernet:
        return False
    flags, start, offset = _vnet_flags(packet.frame)
    ours = packet.transport + _CHECKSUM_AT - packet.ethernet
    return bool(flags & _NEEDS_CSUM) and start + offset == ours


def with_numbers(packet: Packet, numbers: list[tuple[int, int]]) -> bytes:
    """Return the frame of a TCP packet with numbers (place in the frame, 32 bits) changed and its checksum right again.

    A checksum that was wrong stays wrong: damage on the way is still noticed.
    """
    frame = bytearray(packet.frame)
    place = packet.transport + _CHECKSUM_AT
    checksum = int.from_bytes(frame[place : place + 2], "big")
    for at, new in numbers:
        old = int.from_bytes(frame[at : at + 4], "big")
        frame[at : at + 4] = new.to_bytes(4, "big")
        checksum = updated(checksum, old, new, odd=bool((at - packet.transport) % 2))
    if not is_partial(packet):
        frame[place : place + 2] = checksum.to_bytes(2, "big")
    return bytes(frame)
