"""Keeps the secondary's TCP connections in step with numbers that only the primary has told the client.

A connection that was opened after the last checkpoint has its own initial sequence number and its own clock for timestamps on
each copy. The client knows the primary's. So what goes into the secondary's guest has acknowledgements and echoed timestamps
moved to the secondary's numbers, and what comes out of it has sequence numbers and timestamps moved to the primary's.

How far to move them is learned from the first segment with an acknowledgement that the client sends after the secondary's SYN
or SYN-ACK: it acknowledges the primary's number plus one, and echoes the primary's timestamp. It cannot come earlier, because
the comparator lets the primary's SYN go only after the secondary's has come out. docs/architecture/proxy.md has the holes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colo_helper.proxy.checksum import with_numbers
from colo_helper.proxy.packet import ACK, FIN, RST, SYN, Kind, Packet, opposite
from colo_helper.proxy.sequence import MASK
from colo_helper.proxy.tcp_options import SACK, TIMESTAMPS, TIMESTAMPS_BYTES, options

_SEQ_AT, _ACK_AT = 4, 8


@dataclass(frozen=True, slots=True)
class Move:
    """What the numbers of a connection are moved by on their way from the guest to its client, modulo 2**32."""

    sequence: int
    clock: int


@dataclass(slots=True)
class _Tracked:
    """One connection. ``offset`` is the primary's number minus the secondary's, modulo 2**32, or None until it is learned.

    ``isn`` None: the connection is known from an earlier takeover.
    """

    isn: int | None
    clock: int | None
    offset: int | None = None
    clock_offset: int = 0
    guest_ended: bool = False
    client_ended: bool = False
    used_s: float = 0.0


class Rewriter:
    """Of one NIC of the secondary. Packets of other kinds than TCP, and of other connections, pass as they are.

    ``most``: so many connections can be opened between two checkpoints; one more is not followed, and its copy falls silent,
    which costs a checkpoint. ``linger_s``: a connection that has ended is followed until nothing has come for so long, because
    its last segments may be repeated (RFC 9293, 3.6.1; Linux waits 60 s). ``idle_s``: one that has not ended is given up after
    so long a silence (what Linux gives it, nf_conntrack_tcp_timeout_established).
    """

    def __init__(self, most: int = 65_536, linger_s: float = 120.0, idle_s: float = 432_000.0) -> None:
        self._most = most
        self._linger_s = linger_s
        self._idle_s = idle_s
        self._tracked: dict[bytes, _Tracked] = {}
        self._alone = False

    def __len__(self) -> int:
        """Return how many connections are followed."""
        return len(self._tracked)

    def checkpointed(self) -> None:
        """Forget all: the secondary is a copy of the primary, with its numbers."""
        self._tracked.clear()

    def taken_over(self, moves: Mapping[bytes, Move], now_s: float) -> None:
        """There is no primary any more: what is opened from now on has this guest's numbers.

        ``moves`` are of connections that the primary itself had taken over, by the guest's flow; where one of them was
        opened anew since, the new one counts.
        """
        self._alone = True
        for flow, move in moves.items():
            known = _Tracked(None, None, move.sequence, move.clock, used_s=now_s)
            self._tracked.setdefault(flow, known)

    def moves(self) -> dict[bytes, Move]:
        """Return what is known of the connections that need it, by the guest's flow."""
        return {
            flow: Move(tracked.offset or 0, tracked.clock_offset)
            for flow, tracked in self._tracked.items()
            if (tracked.offset or tracked.clock_offset) and not (tracked.guest_ended and tracked.client_ended)
        }

    def expire(self, now_s: float) -> int:
        """Forget what was quiet for long enough; return how many connections are left."""
        for flow, tracked in list(self._tracked.items()):
            ended = tracked.guest_ended and tracked.client_ended
            if now_s - tracked.used_s >= (self._linger_s if ended else self._idle_s):
                del self._tracked[flow]
        return len(self._tracked)

    def from_guest(self, packet: Packet, now_s: float) -> bytes:
        """Return the frame as the client must see it.

        To be called for all that the secondary's guest sends, before a take-over as well: then the comparator gets the frame as
        it was, and this one is dropped.
        """
        if packet.kind is not Kind.TCP:
            return packet.frame
        if packet.flags & SYN:
            self._opened(packet)
        tracked = self._tracked.get(packet.flow)
        if tracked is None:
            return packet.frame
        tracked.used_s = now_s
        tracked.guest_ended |= bool(packet.flags & (FIN | RST))
        tracked.client_ended |= bool(packet.flags & RST)
        numbers = []
        if tracked.offset:
            numbers.append((packet.transport + _SEQ_AT, (packet.seq + tracked.offset) & MASK))
        if tracked.clock_offset:
            numbers += _moved_clock(packet, 2, tracked.clock_offset)
        return with_numbers(packet, numbers) if numbers else packet.frame

    def to_guest(self, packet: Packet, now_s: float) -> bytes:
        """Return the client's frame as the secondary's guest must see it."""
        tracked = self._tracked.get(opposite(packet.flow)) if packet.kind is Kind.TCP else None
        if tracked is None:
            return packet.frame
        tracked.used_s = now_s
        tracked.client_ended |= bool(packet.flags & (FIN | RST))
        tracked.guest_ended |= bool(packet.flags & RST)
        if not packet.flags & ACK:
            return packet.frame
        if tracked.offset is None:
            _learn(tracked, packet)
        numbers = []
        if tracked.offset:
            numbers.append((packet.transport + _ACK_AT, (packet.ack - tracked.offset) & MASK))
            numbers += _moved_sack(packet, -tracked.offset)
        if tracked.clock_offset:
            numbers += _moved_clock(packet, 6, -tracked.clock_offset)
        return with_numbers(packet, numbers) if numbers else packet.frame

    def _opened(self, packet: Packet) -> None:
        """Take note of a SYN or SYN-ACK of the guest.

        The first one's timestamp counts. If the client has seen a later one of the primary's, the moved clock stands ahead of
        the primary's by the time between the two; were it behind, the client would drop what comes after a take-over.
        """
        tracked = self._tracked.get(packet.flow)
        if tracked is not None and tracked.isn == packet.seq:
            return
        if self._alone:
            self._tracked.pop(packet.flow, None)
        elif tracked is not None or len(self._tracked) < self._most:
            self._tracked[packet.flow] = _Tracked(packet.seq, _clock(packet, 2))


def _learn(tracked: _Tracked, packet: Packet) -> None:
    assert tracked.isn is not None
    tracked.offset = (packet.ack - 1 - tracked.isn) & MASK
    echoed = _clock(packet, 6)
    if tracked.clock is not None and echoed is not None:
        tracked.clock_offset = (echoed - tracked.clock) & MASK


def _number(packet: Packet, at: int) -> int:
    return int.from_bytes(packet.frame[at : at + 4], "big")


def _clock_at(packet: Packet, within: int) -> int | None:
    for kind, at, length in options(packet):
        if kind == TIMESTAMPS and length == TIMESTAMPS_BYTES:
            return at + within
    return None


def _clock(packet: Packet, within: int) -> int | None:
    """Return TSval (``within`` 2) or TSecr (6), or None without the option."""
    at = _clock_at(packet, within)
    return None if at is None else _number(packet, at)


def _moved_clock(packet: Packet, within: int, by: int) -> list[tuple[int, int]]:
    at = _clock_at(packet, within)
    return [] if at is None else [(at, (_number(packet, at) + by) & MASK)]


def _moved_sack(packet: Packet, by: int) -> list[tuple[int, int]]:
    """Return the edges of the blocks that the client has got, moved."""
    return [
        (edge, (_number(packet, edge) + by) & MASK)
        for kind, at, length in options(packet)
        if kind == SACK
        for edge in range(at + 2, at + length - 3, 4)
    ]
