"""What must hold for every TCP conversation: equal streams need no checkpoint, and no byte leaves that differs."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st

from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import FIN, SYN
from colo_helper.proxy.sequence import at_least
from colo_helper.proxy.verdicts import Cause, Limits
from tests.unit.colo_helper.proxy.conversations import CLIENT_ISN, Talk, interleaved, isns, segments

MOST = 60


class Client:
    """What the client gets to see, held against what the secondary has said: the model of output commit.

    Every byte, event and acknowledgement that the client has got must be the secondary's as well. ``floor`` is the first offset
    that counts, ``acked`` what the copy made by a checkpoint has acknowledged.
    """

    def __init__(self, ours: Talk, theirs: Talk, floor: int = 1, acked: int | None = None) -> None:
        self.ours, self.theirs, self.floor, self.acked = ours, theirs, floor, acked
        self.said: dict[int, int] = {}
        self.ends: set[int] = set()
        self.opened = False
        self.got: dict[int, int] = {}

    @staticmethod
    def _bytes(packet, isn):
        start = (packet.seq - isn) & 0xFFFF_FFFF
        return start, packet.frame[packet.payload : packet.end]

    def secondary(self, packet):
        start, payload = self._bytes(packet, self.theirs.isn)
        self.said.update(enumerate(payload, start))
        if packet.flags & FIN:
            self.ends.add(start + len(payload))
        self.opened |= bool(packet.flags & SYN)
        if self.acked is None or at_least(packet.ack, self.acked):
            self.acked = packet.ack

    def released(self, packet):
        start, payload = self._bytes(packet, self.ours.isn)
        for offset, byte in enumerate(payload, start):
            if offset >= self.floor:
                assert self.said.get(offset) == byte, f"offset {offset} left and was not said"
            self.got[offset] = byte
        if packet.flags & FIN:
            assert start + len(payload) in self.ends
        if packet.flags & SYN:
            assert self.opened
        assert at_least(self.acked, packet.ack)


def run(comparator, client, order, now_s=0.0):
    """Feed both in this order; return (packets of the primary that left, the checkpoint asked for, if any)."""
    left, asked = [], None
    packets = [client.ours.packet(said) for said in client.ours.says]
    others = [client.theirs.packet(said, window=9) for said in client.theirs.says]
    for is_primary, number in order:
        if is_primary:
            verdict = comparator.primary(packets[number], now_s)
        else:
            client.secondary(others[number])
            verdict = comparator.secondary(others[number], now_s)
        for packet in verdict.release:
            client.released(packet)
            left.append(packet)
        asked = asked or verdict.checkpoint
    assert left == packets[: len(left)], "the primary's order"
    return left, asked


@st.composite
def equal_talks(draw, fin=None):
    stream = draw(st.binary(min_size=1, max_size=MOST))
    acks = sorted(draw(st.lists(st.integers(1, 90), min_size=1, max_size=5)))
    fin = draw(st.booleans()) if fin is None else fin
    talks = []
    for _ in range(2):
        talk = Talk(draw(isns), stream)
        talk.says = draw(segments(1, len(stream) + 1, acks, opens=True, fin=fin))
        talks.append(talk)
    return talks


@given(st.data())
def test_equal_streams_leave_without_a_checkpoint(data):
    ours, theirs = data.draw(equal_talks())
    comparator, client = Comparator(), Client(ours, theirs)
    left, asked = run(comparator, client, data.draw(interleaved(ours.says, theirs.says)))
    assert asked is None
    assert len(left) == len(ours.says)
    assert bytes(client.got[n + 1] for n in range(len(ours.stream))) == ours.stream == theirs.stream
    assert (comparator.held_packets, comparator.held_bytes, comparator.deadline()) == (0, 0, None)


@st.composite
def different_talks(draw):
    """Streams of which one byte differs, or one is longer, or only one ends."""
    ours, theirs = draw(equal_talks())
    length = len(ours.stream)
    at = draw(st.integers(0, length - 1))
    way = draw(st.sampled_from(["byte", "shorter", "longer"]))
    if way == "byte":
        change = draw(st.integers(1, 255))
        theirs.stream = theirs.stream[:at] + bytes([theirs.stream[at] ^ change]) + theirs.stream[at + 1 :]
    else:
        shorter = ours if way == "longer" else theirs
        shorter.stream = shorter.stream[:at]
        acks = [said.ack for said in shorter.says[1:]]
        shorter.says = draw(segments(1, at + 1, sorted(acks), opens=True, fin=True))
    return way, at, ours, theirs


@given(st.data())
def test_what_differs_is_found_before_it_leaves(data):
    way, at, ours, theirs = data.draw(different_talks())
    event(way)
    comparator, client = Comparator(), Client(ours, theirs)
    left, asked = run(comparator, client, data.draw(interleaved(ours.says, theirs.says)))
    assert max(client.got, default=0) <= at, "only what comes before the difference"
    if way == "byte":
        assert asked is not None
        assert asked.cause is Cause.DIVERGENCE
        assert f"at offset {at}: the primary said {ours.stream[at : at + 1].hex()}" in asked.sentence
    else:
        late = comparator.expire(comparator.deadline() or 0.0).checkpoint
        assert asked or late
    released = comparator.checkpointed().release
    assert [*left, *released] == [ours.packet(said) for said in ours.says], "nothing is lost"
    assert (comparator.held_packets, comparator.held_bytes, comparator.deadline()) == (0, 0, None)


@given(st.data())
def test_after_a_checkpoint_the_numbers_are_the_primarys(data):
    """The first talk is torn at any place; then the secondary is a copy that goes on with the primary's numbers."""
    ours, theirs = data.draw(equal_talks(fin=False))
    comparator = Comparator()
    order = data.draw(interleaved(ours.says, theirs.says))
    client = Client(ours, theirs)
    stop = data.draw(st.integers(0, len(order)))
    run(comparator, client, [*order[:stop], *(step for step in order[stop:] if step[0])])
    comparator.checkpointed()

    floor = len(ours.stream) + 1
    more = ours.stream + data.draw(st.binary(max_size=MOST))
    acked = max(said.ack for said in ours.says)
    acks = sorted(acked + n for n in data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=3)))
    talks = []
    for _ in range(2):
        talk = Talk(ours.isn, more)
        talk.says = data.draw(segments(floor, len(more) + 1, acks, opens=False, fin=True))
        talks.append(talk)
    again = Client(*talks, floor=floor, acked=CLIENT_ISN + acked)
    left, asked = run(comparator, again, data.draw(interleaved(talks[0].says, talks[1].says)))
    assert asked is None
    assert len(left) == len(talks[0].says)


@given(st.data())
def test_a_connection_found_in_the_middle(data):
    """Both sides have the same numbers; whatever asks for a checkpoint, nothing leaves that differs."""
    ours, theirs = data.draw(st.one_of(equal_talks(), different_talks().map(lambda talk: talk[2:])))
    for talk in (ours, theirs):
        talk.isn = 0xFFFF_FFF0
        del talk.says[0]
    client = Client(ours, theirs)
    run(Comparator(), client, data.draw(interleaved(ours.says, theirs.says)))
    assert all(theirs.stream[offset - 1] == byte for offset, byte in client.got.items())


@given(st.data())
def test_history_that_is_too_short_costs_a_checkpoint_and_no_byte(data):
    """A primary that says something else when it repeats itself is found out, however little is remembered."""
    ours, theirs = data.draw(equal_talks(fin=False))
    liar = Talk(ours.isn, data.draw(st.binary(min_size=len(ours.stream), max_size=len(ours.stream))))
    comparator, client = (
        Comparator(Limits(history_bytes=data.draw(st.integers(0, 900)))),
        Client(ours, theirs),
    )
    run(comparator, client, data.draw(interleaved(ours.says, theirs.says)))
    for said in data.draw(segments(1, len(ours.stream) + 1, [1], opens=False, fin=False)):
        packet = liar.packet(said)
        for left in comparator.primary(packet, 0.0).release:
            client.released(left)
