"""A miniature TCP: enough of RFC 9293, 7323 and 2018 to notice a number that is not its own."""

from __future__ import annotations

import struct

from colo_helper.proxy.packet import ACK, FIN, RST, SYN, parse
from colo_helper.proxy.sequence import distance
from colo_helper.proxy.tcp_options import SACK, TIMESTAMPS, options
from tests.unit.colo_helper.proxy.frames import CLIENT, GUEST, checksum, ones_sum, pseudo, tcp


class Endpoint:
    """One end of the connection. Offsets: 0 is the SYN, 1 the first byte; ``clock`` is what its timestamps show.

    It asserts what a real one would silently drop: checksums, acknowledgements of what it has not sent, echoes of what its
    clock has not shown, a clock that runs backwards, blocks of SACK outside of what is under way.
    """

    def __init__(
        self, *, guest: bool, isn: int, clock: int, vnet_bytes: int = 0, odd_options: bool = False
    ) -> None:
        self.guest, self.isn, self.clock, self.vnet_bytes = guest, isn, clock, vnet_bytes
        self.odd_options = odd_options
        self.sent, self.una, self.top = b"", 0, 1
        self.got = b""
        self.peer_isn, self.peer_clock = None, None
        self.shown: set[int] = set()
        self.sacked: list[tuple[int, int]] = []
        self.peer_ended = False

    def _frame(self, offset, flags, payload=b"", sack=()):
        self.clock = (self.clock + 1) & 0xFFFFFFFF
        self.shown.add(self.clock)
        edges = b"".join(struct.pack(">II", *(edge & 0xFFFFFFFF for edge in block)) for block in sack)
        blocks = bytes((SACK, 2 + len(edges))) + edges if sack else b""
        stamps = struct.pack(">BBII", TIMESTAMPS, 10, self.clock, self.peer_clock or 0)
        text = (b"\x01" if self.odd_options else b"\x01\x01") + blocks + stamps
        ack = 0 if self.peer_isn is None else self.peer_isn + 1 + len(self.got) + self.peer_ended
        flags |= ACK * (self.peer_isn is not None)
        self.top = max(self.top, offset + len(payload) + bool(flags & (SYN | FIN)))
        partial = bool(self.vnet_bytes and self.guest)
        return tcp(
            self.isn + offset,
            ack,
            flags,
            payload,
            text,
            outward=self.guest,
            partial=partial,
            vnet_bytes=self.vnet_bytes,
        )

    def opens(self):
        return self._frame(0, SYN)

    def acks(self, sack=()):
        return self._frame(self.top, 0, sack=[(self.peer_isn + a, self.peer_isn + b) for a, b in sack])

    def says(self, data):
        start = len(self.sent) + 1
        self.sent += data
        return self._frame(start, 0, data)

    def says_again(self):
        """All that is not acknowledged."""
        start = max(self.una, 1)
        return self._frame(start, 0, self.sent[start - 1 :])

    def ends(self):
        return self._frame(len(self.sent) + 1, FIN)

    def resets(self):
        return self._frame(len(self.sent) + 1, RST)

    def receive(self, frame):
        packet = parse(frame, self.vnet_bytes)
        self._check_sum(packet)
        if packet.flags & SYN and self.peer_isn is None:
            self.peer_isn = packet.seq
        if packet.flags & ACK:
            acked = distance(packet.ack, self.isn)
            assert 0 < acked <= self.top, "acknowledges what was never sent"
            self.una = max(self.una, acked)
        self._check_options(packet)
        start = distance(packet.seq, self.peer_isn)
        payload = frame[packet.payload : packet.end]
        missing = len(self.got) + 1
        assert start <= missing, "a hole, or numbers of somebody else"
        self.got += payload[max(0, missing - max(start, 1)) :]
        self.peer_ended |= bool(packet.flags & FIN)

    def _check_sum(self, packet):
        segment = packet.frame[packet.transport : packet.end]
        addresses = pseudo(*((CLIENT, GUEST) if self.guest else (GUEST, CLIENT)), 6, len(segment))
        if packet.ethernet and packet.frame[0] & 1:  # what the device would do with NEEDS_CSUM
            done = checksum(segment)
            segment = segment[:16] + struct.pack(">H", done) + segment[18:]
        assert ones_sum(addresses + segment) == 0xFFFF

    def _check_options(self, packet):
        for kind, at, length in options(packet):
            if kind == TIMESTAMPS:
                shown, echoed = struct.unpack_from(">II", packet.frame, at + 2)
                if self.peer_clock is not None:
                    assert distance(shown, self.peer_clock) >= 0, "its clock runs backwards"
                self.peer_clock = shown
                if packet.flags & ACK:
                    assert echoed in self.shown, "echoes what the clock has not shown"
            if kind == SACK:
                for place in range(at + 2, at + length, 8):
                    edges = struct.unpack_from(">II", packet.frame, place)
                    low, high = (distance(edge, self.isn) for edge in edges)
                    assert self.una <= low < high <= self.top
                    self.sacked.append((low, high))
