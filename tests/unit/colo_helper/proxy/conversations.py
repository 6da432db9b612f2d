"""Conversations as two copies of a guest hold them: one stream, cut, repeated and reordered by each in its own way."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import strategies as st

from colo_helper.proxy.packet import ACK, FIN, SYN, parse
from tests.unit.colo_helper.proxy.frames import tcp

CLIENT_ISN = 0xFFFF_FF00


@dataclass(frozen=True)
class Said:
    """One segment: offsets of the first byte and behind the last (the SYN is 0), the acknowledgement, SYN or FIN."""

    start: int
    end: int
    ack: int
    syn: bool = False
    fin: bool = False


@dataclass
class Talk:
    """What one side says in one conversation, in its order."""

    isn: int
    stream: bytes
    says: list[Said] = field(default_factory=list)

    def packet(self, said: Said, window: int = 500):
        payload = self.stream[max(0, said.start - 1) : max(0, said.end - 1)]
        flags = ACK | SYN * said.syn | FIN * said.fin
        return parse(tcp(self.isn + said.start, CLIENT_ISN + said.ack, flags, payload, window=window))


isns = st.one_of(st.integers(0, 0xFFFF_FFFF), st.integers(0xFFFF_FF00, 0xFFFF_FFFF))


@st.composite
def segments(draw, start, end, acks, *, opens, fin):
    """Segments that say all from ``start`` to ``end``, and acknowledge up to the last of ``acks`` in the end."""
    cuts = sorted({start, end, *draw(st.lists(st.integers(start, end), max_size=8))})
    says = list(pairwise(cuts))
    for _ in range(draw(st.integers(0, 3))):  # repeated, cut elsewhere
        low = draw(st.integers(1, end))
        says.insert(draw(st.integers(0, len(says))), (low, draw(st.integers(low, end))))
    for _ in range(draw(st.integers(0, 3))):  # reordered
        if len(says) > 1:
            at = draw(st.integers(0, len(says) - 2))
            says[at], says[at + 1] = says[at + 1], says[at]
    said = [
        Said(low, high, draw(st.sampled_from(acks)), fin=fin and high == end and low < high)
        for low, high in says
    ]
    tail = [Said(end, end, acks[-1], fin=fin)]
    if not opens:
        return said + tail
    return [Said(0, 0, 1, syn=True), *said, *tail]


@st.composite
def interleaved(draw, ours, theirs):
    """One order of arrival of two sides' segments: (is the primary's, number)."""
    order = [(True, n) for n in range(len(ours))]
    places = sorted(draw(st.lists(st.integers(0, len(ours)), min_size=len(theirs), max_size=len(theirs))))
    for number, place in enumerate(places):
        order.insert(place + number, (False, number))
    return order
