"""One TCP connection of the guest: two byte streams that must be the same stream, however they are cut into segments.

Offsets count from each side's own initial sequence number: 0 is the SYN, 1 the first byte, and the FIN stands behind the last.
A connection that was there before the comparator knew it counts from the first byte seen of either side: then both sides
have the same sequence numbers, because one is a copy of the other. docs/architecture/proxy.md has the rules and their reasons.
"""

from __future__ import annotations

from colo_helper.proxy.packet import ACK, FIN, RST, SYN, URG, Packet
from colo_helper.proxy.sequence import MASK, at_least, distance
from colo_helper.proxy.spans import History, Past, Spans, slice_of
from colo_helper.proxy.tcp_options import opening
from colo_helper.proxy.verdicts import SHOWN_BYTES, Cause, DisagreementError, differing
from colo_helper.proxy.waiting import Flow, Held, Waiting

_UNUSUAL = SYN | RST | URG
#: The end of what no agreement lets go.
_NEVER = 1 << 62
_NO_FIN = -1
#: RFC 7323, 2.3.
_LARGEST_WINDOW = 1 << 30
_GIVES_UP = "that it gives the connection up"


class _Side:
    """What one copy has said. ``isn`` and ``ack`` are None until they are known, ``opening`` is empty."""

    __slots__ = ("ack", "fin", "isn", "opening", "reset", "said")

    def __init__(self) -> None:
        self.isn: int | None = None
        self.ack: int | None = None
        self.opening = b""
        self.fin = _NO_FIN
        self.reset = False
        #: What this side has said and the other has not.
        self.said = Spans()

    def copy(self) -> _Side:
        """Return a side with the same state and nothing said."""
        side = _Side()
        side.isn, side.ack, side.opening = self.isn, self.ack, self.opening
        side.fin, side.reset = self.fin, self.reset
        return side

    def heard(self, ack: int) -> None:
        """Take note of an acknowledgement."""
        if self.ack is None or at_least(ack, self.ack):
            self.ack = ack


class Connection(Flow):
    """The comparison of one connection.

    ``agreed``: both sides have said everything before it, and the same. What lies before ``floor`` was released before the last
    checkpoint or, while ``floor_open`` is false, was never seen.
    """

    __slots__ = (
        "_counted",
        "_floor",
        "_floor_open",
        "_history",
        "_ours",
        "_past",
        "_theirs",
        "_top",
        "agreed",
    )

    def __init__(self, waiting: Waiting, history: History, name: str) -> None:
        super().__init__(waiting, name)
        self._history = history
        self._begin()

    def _begin(self) -> None:
        self._ours, self._theirs = _Side(), _Side()
        self._past: Past = Past()
        self._counted = 0
        self._floor_open = False
        self.agreed = self._floor = self._top = 0

    @property
    def evictable(self) -> bool:
        """Return whether nothing is lost when the connection is forgotten.

        Not while the sides' sequence numbers differ: found again, it would be taken for one where they are the same.
        """
        return (
            not self.stuck and not self.held and not self._is_ahead() and self._ours.isn == self._theirs.isn
        )

    # ------------------------------------------------------------------------------------------------ the primary

    def primary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Let a segment go when the secondary has said and acknowledged all that is in it."""
        if self.stuck:
            self.hold(packet, now_s, _NEVER)
            return []
        before = self.agreed
        try:
            end = self._hear_primary(packet)
        except DisagreementError as error:
            self.hold(packet, now_s, _NEVER)
            raise self.stick(error) from None
        if not self.held and self._may_leave(packet, end):
            released = [packet]
            self._gone(packet)
        else:
            self.hold(packet, now_s, end)
            released = self._leave() if self.agreed != before else []
        if self.waiting.is_ahead(self):
            self._look(now_s, self.agreed != before)
        return released

    def _hear_primary(self, packet: Packet) -> int:
        """Return up to which offset both must have spoken before this may leave."""
        flags, ours = packet.flags, self._ours
        if flags & _UNUSUAL:
            return self._hear_unusual(packet)
        if flags & ACK:
            ours.heard(packet.ack)
        length = packet.end - packet.payload
        if not length and not flags & FIN:
            return 0
        if ours.isn is None:
            if self._theirs.isn is not None:
                return _NEVER  # of a connection that was here before the one which the secondary has opened
            self._adopt(packet.seq)
        assert ours.isn is not None
        start = self.agreed + distance(packet.seq, ours.isn + self.agreed)
        if start > self.agreed + _LARGEST_WINDOW:
            raise self._uncomparable("sent bytes farther ahead than any window reaches")
        stop = start + length
        end = stop + (flags & FIN)
        self._top = max(self._top, end)
        if start < self.agreed and length:
            self._check_again(packet, start, min(stop, self.agreed))
        self._hear(ours, packet, start, stop)
        self._match()
        return end

    def _check_again(self, packet: Packet, start: int, stop: int) -> None:
        """Compare what the primary says again with what both have said, as far as the client may not have it yet."""
        low = max(start, self._floor)
        if start < self._floor and not self._floor_open:
            raise self._uncomparable("sent again what it had sent before the connection was known here")
        if low >= stop:
            return
        both = slice_of(self._past, low, stop)
        if both is None:
            raise self._uncomparable(f"sent again what is not remembered any more, from offset {low - 1}")
        first = packet.payload + low - start
        again = packet.frame[first : first + stop - low]
        if again != both:
            raise DisagreementError(Cause.DIVERGENCE, differing(self.name, low - 1, again, both))

    def _may_leave(self, packet: Packet, end: int) -> bool:
        if end > self.agreed:
            return False
        if packet.flags & RST:
            return self._theirs.reset
        if packet.flags & ACK:
            acked = self._theirs.ack
            return acked is not None and at_least(acked, packet.ack)
        return True

    def _leave(self) -> list[Packet]:
        released = []
        held = self.held
        while held and self._may_leave(held[0].packet, held[0].end):
            packet = self.pop()
            released.append(packet)
            self._gone(packet)
        return released

    def _gone(self, packet: Packet) -> None:
        if packet.flags & RST:
            self._theirs.said.clear()  # both have given the connection up: what was under way does not matter

    # ---------------------------------------------------------------------------------------------- the secondary

    def secondary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Take note of what the secondary says, and let go what waited for it."""
        if self.stuck:
            return []
        before = self.agreed
        try:
            self._hear_secondary(packet)
        except DisagreementError as error:
            raise self.stick(error) from None
        released = self._leave() if self.held else []
        self._look(now_s, self.agreed != before)
        return released

    def _hear_secondary(self, packet: Packet) -> None:
        flags, theirs = packet.flags, self._theirs
        if flags & _UNUSUAL:
            self._hear_unusual(packet, primary=False)
            return
        if theirs.isn is None and self._ours.isn is not None:
            return  # of a connection that was here before the one which the primary has opened
        if flags & ACK:
            theirs.heard(packet.ack)
        length = packet.end - packet.payload
        if not length and not flags & FIN:
            return
        if theirs.isn is None:
            self._adopt(packet.seq)
        assert theirs.isn is not None
        start = self.agreed + distance(packet.seq, theirs.isn + self.agreed)
        self._hear(theirs, packet, start, start + length)
        self._match()

    # ------------------------------------------------------------------------------------------------- both sides

    def _hear(self, side: _Side, packet: Packet, start: int, stop: int) -> None:
        """Note payload from ``start`` to ``stop`` and a FIN behind it."""
        who = "primary" if side is self._ours else "secondary"
        if side.fin >= 0 and (stop > side.fin or (packet.flags & FIN and stop != side.fin)):
            raise self._uncomparable(f"sent bytes beyond its own end at offset {side.fin - 1}", who)
        if packet.flags & FIN and side.fin < 0:
            if stop < max(self.agreed, side.said.end):
                raise self._uncomparable(f"ended at offset {stop - 1}, before bytes that it had said", who)
            side.fin = stop
        first = max(start, self.agreed)
        if first < stop:
            payload = packet.payload + first - start
            wrong = side.said.add(first, packet.frame[payload : packet.end])
            if wrong >= 0:
                raise self._uncomparable(f"said two different things at offset {wrong - 1}", who)

    def _adopt(self, seq: int) -> None:
        """Begin to count in a connection that was here before: this is its first byte."""
        self._ours.isn = self._theirs.isn = (seq - 1) & MASK
        self.agreed = self._floor = self._top = 1
        self._floor_open = False

    def _hear_unusual(self, packet: Packet, *, primary: bool = True) -> int:
        side, who = (self._ours, "primary") if primary else (self._theirs, "secondary")
        flags = packet.flags
        if flags & URG or packet.payload < packet.end or (flags & SYN and flags & (RST | FIN)):
            raise self._uncomparable("used an urgent pointer, or bytes in a SYN or a RST", who)
        if flags & RST:
            side.reset = True
            return 0
        if side.isn != packet.seq or not side.opening:
            self._open(side, who)
            side = self._ours if primary else self._theirs
            side.isn, side.ack = packet.seq, None
            side.opening = opening(packet)
        elif side.opening != opening(packet):
            raise self._uncomparable("opened the connection a second time in another way", who)
        if flags & ACK:
            side.heard(packet.ack)
        self._match()
        return 1

    def _open(self, side: _Side, who: str) -> None:
        """Begin anew, unless it was the other side that did so just now."""
        if side.isn is None and self._other(side).opening and self.agreed == 0:
            return
        if self.held or self._is_ahead():
            raise self._uncomparable("opened the connection anew while its end was not compared", who)
        self._begin()

    def _other(self, side: _Side) -> _Side:
        return self._theirs if side is self._ours else self._ours

    def _match(self) -> None:
        """Move ``agreed`` on over all that both have said. Raises DisagreementError where they differ."""
        ours, theirs = self._ours.said, self._theirs.said
        if self.agreed == 0:
            self._match_opening()
        while ours.chunks and theirs.chunks:
            start, data = ours.chunks[0]
            their_start, their_data = theirs.chunks[0]
            if start != self.agreed or their_start != start:
                break
            if data != their_data:
                shorter = min(len(data), len(their_data))
                if data[:shorter] != their_data[:shorter]:
                    raise DisagreementError(
                        Cause.DIVERGENCE, differing(self.name, start - 1, data, their_data)
                    )
                data = data[:shorter]
            ours.take(len(data))
            theirs.take(len(data))
            self.agreed += len(data)
            self._history.remember(self._past, start, data)
        if self._ours.fin >= 0 or self._theirs.fin >= 0:
            self._match_end()

    def _match_opening(self) -> None:
        ours, theirs = self._ours.opening, self._theirs.opening
        if not ours or not theirs:
            return
        if ours != theirs:
            raise DisagreementError(
                Cause.DIVERGENCE, differing(f"the opening of {self.name}", 0, ours, theirs)
            )
        self.agreed = 1

    def _match_end(self) -> None:
        ours, theirs = self._ours, self._theirs
        if ours.fin == theirs.fin == self.agreed:
            self.agreed += 1
        elif ours.fin == self.agreed and self._begins_here(theirs):
            self._end_differs("primary", theirs)
        elif theirs.fin == self.agreed and self._begins_here(ours):
            self._end_differs("secondary", ours)

    def _begins_here(self, side: _Side) -> bool:
        return bool(side.said.chunks) and side.said.chunks[0][0] == self.agreed

    def _end_differs(self, who: str, side: _Side) -> None:
        more = side.said.chunks[0][1][:SHOWN_BYTES].hex()
        raise DisagreementError(
            Cause.DIVERGENCE,
            f"On {self.name} the {who} ends its stream at offset {self.agreed - 1}, where the other says {more}.",
        )

    def _uncomparable(self, what: str, who: str = "primary") -> DisagreementError:
        return DisagreementError(Cause.UNCOMPARABLE, f"On {self.name} the {who} {what}.")

    # ------------------------------------------------------------------------------------------------ what is ahead

    def _is_ahead(self) -> bool:
        """Return whether the secondary has said something that the primary has not."""
        ours, theirs = self._ours, self._theirs
        return bool(
            theirs.said.chunks
            or (theirs.fin >= 0 and ours.fin != theirs.fin)
            or (theirs.opening and not ours.opening)
            or (theirs.reset and not ours.reset)
        )

    def _look(self, now_s: float, moved: bool) -> None:
        """Count what only the secondary has said; ``moved``: both have just agreed on something."""
        size = self._theirs.said.size
        self.waiting.bytes += size - self._counted
        self._counted = size
        if not self._is_ahead():
            self.waiting.level(self)
        elif moved or not self.waiting.is_ahead(self):
            self.waiting.ahead(self, now_s)

    def missing(self, entry: Held) -> str:
        """Return the first byte that waits, or what else it is."""
        packet = entry.packet
        if packet.flags & RST:
            return _GIVES_UP
        if entry.end <= self.agreed:
            return f"the acknowledgement of the client's bytes up to number {packet.ack}"
        if self.agreed == 0:
            return "that it opens the connection"
        chunks = self._ours.said.chunks
        shown = chunks[0][1][:SHOWN_BYTES].hex() if chunks and chunks[0][0] == self.agreed else "the end"
        return f"from offset {self.agreed - 1} {shown}"

    def surplus(self) -> str:
        """Return the first bytes that only the secondary has said, or what else it is."""
        ours, theirs = self._ours, self._theirs
        if theirs.said.chunks:
            start, data = theirs.said.chunks[0]
            return f"from offset {start - 1} {data[:SHOWN_BYTES].hex()}"
        if theirs.fin >= 0 and ours.fin != theirs.fin:
            return f"the end of its stream at offset {theirs.fin - 1}"
        return "that it opens the connection" if not ours.opening and theirs.opening else _GIVES_UP

    def forget(self) -> None:
        """The secondary is a copy of the primary: what it said counts no longer, and its numbers are the primary's."""
        self.waiting.bytes -= self._counted
        self._counted = 0
        ours, top = self._ours, self._top
        self._begin()
        if ours.isn is None:
            self._ours.ack = ours.ack
        else:
            self._ours = ours.copy()
            self.agreed = self._floor = self._top = top
            self._floor_open = True
        self._theirs = self._ours.copy()
