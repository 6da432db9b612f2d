"""TCP's options: where each stands (RFC 9293, 3.1; SACK: RFC 2018; timestamps: RFC 7323)."""

from __future__ import annotations

from collections.abc import Iterator

from colo_helper.proxy.packet import ACK, SYN, Packet

SACK, TIMESTAMPS = 5, 8
_END, _NO_OPERATION = 0, 1
_HEADER_BYTES = 20
#: A timestamps option: kind, length, TSval, TSecr.
TIMESTAMPS_BYTES = 10


def options(packet: Packet) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, offset into the frame, length) of each option; ends at the first that is damaged."""
    frame, at, end = packet.frame, packet.transport + _HEADER_BYTES, packet.payload
    while at < end:
        kind = frame[at]
        if kind == _NO_OPERATION:
            at += 1
            continue
        if kind == _END or at + 1 >= end:
            return
        length = frame[at + 1]
        if length < 2 or at + length > end:
            return
        yield kind, at, length
        at += length


def opening(packet: Packet) -> bytes:
    """Return what a SYN or SYN-ACK settles for the connection: its kind and options, without the time."""
    settled = bytes((packet.flags & (SYN | ACK),))
    for kind, at, length in options(packet):
        shown = 2 if kind == TIMESTAMPS else length
        settled += packet.frame[at : at + shown]
    return settled
