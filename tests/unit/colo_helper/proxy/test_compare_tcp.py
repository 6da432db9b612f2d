"""Which segment of the primary leaves when, and what is said when it cannot."""

from __future__ import annotations

import pytest

from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import ACK, FIN, RST, SYN, URG, parse
from colo_helper.proxy.verdicts import NOTHING, Cause, Counters, Limits
from tests.unit.colo_helper.proxy.frames import tcp

FLOW = "TCP 192.0.2.10:80 to 198.51.100.7:51000"
OURS, THEIRS = 1000, 0xFFFF_FFFA
PSH = 8


class Pair:
    """A comparator; what the primary and the secondary say on one connection by offsets: 0 is the SYN."""

    def __init__(self, *, opened=True, limits=None, ours=OURS, theirs=THEIRS, **kwargs):
        self.comparator = Comparator(limits)
        self.isn = {"primary": ours, "secondary": theirs}
        self.now_s = 0.0
        self.kwargs = kwargs
        if opened:
            self.secondary(0, flags=SYN | ACK)
            assert len(self.primary(0, flags=SYN | ACK)) == 1

    def say(self, side, offset, payload=b"", flags=ACK, ack=1, **kwargs):
        frame = tcp(self.isn[side] + offset, ack, flags, payload, **self.kwargs | kwargs)
        return getattr(self.comparator, side)(parse(frame), self.now_s)

    def primary(self, offset, payload=b"", flags=ACK, ack=1, **kwargs):
        """Return what of the primary leaves, by offset and payload."""
        return self.left(self.say("primary", offset, payload, flags, ack, **kwargs))

    def secondary(self, offset, payload=b"", flags=ACK, ack=1, **kwargs):
        return self.left(self.say("secondary", offset, payload, flags, ack, **kwargs))

    def left(self, verdict):
        assert verdict.checkpoint is None, verdict
        return [
            ((packet.seq - self.isn["primary"]) & 0xFFFFFFFF, packet.frame[packet.payload : packet.end])
            for packet in verdict.release
        ]

    def asks(self, side, *args, **kwargs):
        """Return the checkpoint that this asks for."""
        verdict = self.say(side, *args, **kwargs)
        assert verdict.release == ()
        return verdict.checkpoint

    def checkpoint(self):
        self.isn["secondary"] = self.isn["primary"]
        return self.left(self.comparator.checkpointed())


@pytest.mark.parametrize("six", [False, True])
def test_the_same_bytes_cut_in_other_places(six):
    pair = Pair(six=six)
    assert pair.primary(1, b"abcd") == []
    assert pair.primary(5, b"efgh", flags=ACK | PSH) == []
    assert pair.secondary(1, b"abc", window=9) == []
    assert pair.secondary(4, b"def") == [(1, b"abcd")]
    assert pair.secondary(7, b"ghij") == [(5, b"efgh")]
    assert pair.primary(9, b"ij") == [(9, b"ij")]


def test_the_secondary_may_be_first():
    pair = Pair()
    assert pair.secondary(1, b"abcd") == []
    assert pair.primary(1, b"ab") == [(1, b"ab")]
    assert pair.primary(3, b"cd") == [(3, b"cd")]


def test_padding_is_not_payload():
    """What e1000 puts behind a short frame; QEMU's comparator takes it for payload."""
    pair = Pair()
    assert pair.primary(1, pad=60) == [(1, b"")]
    assert pair.primary(1, b"abc", pad=60) == []
    assert pair.secondary(1, b"abc", pad=100) == [(1, b"abc")]


def test_a_difference_is_named():
    pair = Pair()
    pair.secondary(1, b"HTTP/1.1 200 OK\r\nDate: 1")
    pair.primary(1, b"HTTP/1.1 ")
    assert pair.asks("primary", 10, b"200 OK\r\nDate: 2 and some more") == pair.comparator.asked
    assert pair.comparator.asked.cause is Cause.DIVERGENCE
    assert pair.comparator.asked.sentence == (
        f"On {FLOW} the copies differ at offset 23: the primary said 3220616e6420736f6d65206d6f7265, "
        "the secondary 31."
    )
    assert pair.primary(40, b"later") == []
    assert pair.secondary(40, b"later") == []
    assert pair.checkpoint() == [(10, b"200 OK\r\nDate: 2 and some more"), (40, b"later")]
    assert pair.comparator.counters.checkpoints == {Cause.DIVERGENCE: 1}


def test_at_most_sixteen_bytes_are_shown():
    pair = Pair()
    pair.primary(1, b"a" * 40)
    assert pair.asks("secondary", 1, b"b" * 40).sentence == (
        f"On {FLOW} the copies differ at offset 0: the primary said {'61' * 16}, the secondary {'62' * 16}."
    )


def test_only_one_checkpoint_is_asked_for():
    pair = Pair()
    pair.primary(1, b"a")
    assert pair.asks("secondary", 1, b"b")
    assert pair.comparator.deadline() is None
    assert pair.comparator.expire(99.0) is NOTHING
    frame = parse(tcp(5, 1, ACK | URG, ports=(1, 2)))
    assert pair.comparator.primary(frame, 0.0).checkpoint is None
    assert pair.comparator.counters.checkpoints.total() == 1


def test_bytes_with_a_hole_wait_for_it():
    pair = Pair()
    assert pair.secondary(4, b"def") == []
    assert pair.primary(4, b"def") == []
    assert pair.primary(1, b"abc") == []
    assert pair.secondary(1, b"abc") == [(4, b"def"), (1, b"abc")]


# --------------------------------------------------------------------------------------------- acknowledgements


def test_an_acknowledgement_waits_for_the_secondarys():
    pair = Pair()
    assert pair.primary(1, ack=50) == []
    assert pair.secondary(1, ack=49) == []
    assert pair.secondary(1, ack=50) == [(1, b"")]
    assert pair.primary(1, ack=50) == [(1, b"")]
    assert pair.primary(1, ack=20) == [(1, b"")]


def test_payload_waits_for_the_acknowledgement_too():
    pair = Pair()
    pair.secondary(1, b"abc", ack=40)
    assert pair.primary(1, b"abc", ack=41) == []
    assert pair.secondary(4, ack=41) == [(1, b"abc")]


def test_what_the_secondary_alone_has_acknowledged_is_forgotten_at_a_checkpoint():
    pair = Pair()
    pair.secondary(1, ack=90)
    pair.primary(1, ack=40)
    pair.checkpoint()
    assert pair.primary(1, ack=40) == [(1, b"")]
    assert pair.primary(1, ack=60) == [], "the copy has not got these bytes"
    assert pair.secondary(1, ack=60) == [(1, b"")]


def test_acknowledgements_of_the_connection_before_are_forgotten():
    pair = Pair(opened=False, theirs=OURS)
    pair.secondary(0, flags=SYN | ACK, ack=500)
    pair.primary(1, ack=9000)
    pair.primary(0, flags=SYN | ACK, ack=500)
    pair.checkpoint()
    assert pair.primary(1, ack=501) == [], "the copy has not got these bytes"
    assert pair.secondary(1, ack=501) == [(1, b"")]


def test_acknowledgements_go_round():
    pair = Pair(opened=False)
    pair.secondary(0, flags=SYN | ACK, ack=0xFFFF_FFF0)
    assert len(pair.primary(0, flags=SYN | ACK, ack=0xFFFF_FFF0)) == 1
    assert pair.primary(1, ack=5) == []
    assert pair.secondary(1, ack=6) == [(1, b"")]


# ------------------------------------------------------------------------------------------------------- events


def test_a_syn_waits_for_the_secondarys():
    pair = Pair(opened=False)
    assert pair.primary(0, flags=SYN, ack=0) == []
    assert pair.secondary(0, flags=SYN, ack=0) == [(0, b"")]
    assert pair.primary(0, flags=SYN, ack=0) == [(0, b"")]


MSS, MSS_SMALL, STAMPS = b"\x02\x04\x05\xb4", b"\x02\x04\x02\x00", b"\x08\x0a\0\0\0\1\0\0\0\2"


def test_a_syn_may_have_another_time_but_no_other_option():
    pair = Pair(opened=False)
    pair.primary(0, flags=SYN | ACK, options=MSS + STAMPS)
    assert len(pair.secondary(0, flags=SYN | ACK, options=MSS + STAMPS[:5] + b"\7" + STAMPS[6:])) == 1
    pair = Pair(opened=False)
    pair.primary(0, flags=SYN | ACK, options=MSS)
    asked = pair.asks("secondary", 0, flags=SYN | ACK, options=MSS_SMALL)
    assert asked.cause is Cause.DIVERGENCE
    assert asked.sentence == (
        f"On the opening of {FLOW} the copies differ at offset 3: the primary said 05b4, the secondary 0200."
    )


def test_a_fin_waits_for_the_secondarys():
    pair = Pair()
    pair.secondary(1, b"bye")
    assert pair.primary(1, b"bye", flags=ACK | FIN) == []
    assert pair.secondary(4, flags=ACK | FIN) == [(1, b"bye")]
    assert pair.primary(4, flags=ACK | FIN) == [(4, b"")]


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_an_end_where_the_other_goes_on(side):
    other = {"primary": "secondary", "secondary": "primary"}[side]
    pair = Pair()
    pair.say(side, 1, b"bye", flags=ACK | FIN)
    asked = pair.asks(other, 1, b"bye, bye")
    assert asked.cause is Cause.DIVERGENCE
    assert (
        asked.sentence
        == f"On {FLOW} the {side} ends its stream at offset 3, where the other says 2c20627965."
    )


def test_a_reset_waits_for_the_secondarys():
    pair = Pair()
    pair.secondary(1, b"only the secondary got so far")
    assert pair.primary(1, flags=RST) == []
    assert pair.secondary(30, flags=RST | ACK) == [(1, b"")]
    assert pair.primary(1, flags=RST) == [(1, b"")]
    assert pair.comparator.deadline() is None


def test_a_reset_of_a_port_where_nobody_listens():
    pair = Pair(opened=False, ours=0, theirs=0)
    assert pair.primary(0, flags=RST | ACK) == []
    assert pair.secondary(0, flags=RST | ACK) == [(0, b"")]
    assert pair.comparator.held_bytes == 0


def test_a_port_used_again():
    pair = Pair()
    for side in ("secondary", "primary"):
        pair.say(side, 1, flags=ACK | FIN)
    pair.isn = {"primary": 77, "secondary": 99}
    assert pair.secondary(0, flags=SYN | ACK, ack=500) == []
    assert pair.primary(0, flags=SYN | ACK, ack=500) == [(0, b"")]
    assert pair.primary(1, b"new", ack=500) == []
    assert pair.secondary(1, b"new", ack=500) == [(1, b"new")]
    pair.isn = {"primary": 7777, "secondary": 99}
    assert pair.primary(0, flags=SYN | ACK, ack=900) == []
    assert pair.secondary(4, b"of the old one", ack=500) == [], "has nothing to do with the new one"
    pair.isn["secondary"] = 9999
    assert pair.secondary(0, flags=SYN | ACK, ack=900) == [(0, b"")]
    agreed(pair, 1, b"newest", ack=900)


@pytest.mark.parametrize("said", ["primary", "secondary"])
@pytest.mark.parametrize("opens", ["primary", "secondary"])
def test_a_port_used_again_too_early(said, opens):
    pair = Pair()
    pair.say(said, 1, b"and nobody else says this")
    asked = pair.asks(opens, 5000, flags=SYN | ACK)
    assert asked.cause is Cause.UNCOMPARABLE
    assert asked.sentence == (
        f"On {FLOW} the {opens} opened the connection anew while its end was not compared."
    )


# ------------------------------------------------------------------------------------------- what cannot be judged


@pytest.mark.parametrize(
    ("side", "args", "reason"),
    [
        ("primary", {"flags": ACK | URG}, "the primary used an urgent pointer, or bytes in a SYN or a RST"),
        ("secondary", {"flags": ACK | URG}, "the secondary used an urgent pointer"),
        ("primary", {"flags": SYN, "payload": b"early"}, "bytes in a SYN"),
        ("primary", {"flags": SYN | FIN}, "bytes in a SYN"),
        ("primary", {"flags": RST, "payload": b"reason"}, "bytes in a SYN or a RST"),
        ("primary", {"offset": 2 + (1 << 30), "payload": b"d"}, "sent bytes farther ahead than any window reaches"),
        ("primary", {"payload": b"aXc"}, "the primary said two different things at offset 1"),
        ("secondary", {"payload": b"dXf", "offset": 4}, "the secondary said two different things at offset 4"),
        ("primary", {"flags": ACK | FIN}, "the primary ended at offset 0, before bytes that it had said"),
        ("primary", {"flags": SYN | ACK, "offset": 0, "options": MSS}, "opened the connection a second time"),
        ("primary", {"flags": SYN | ACK, "offset": 5000}, "opened the connection anew while its end was not"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(side, args, reason):
    pair = Pair()
    pair.primary(1, b"abc")
    pair.secondary(4, b"def")
    asked = pair.asks(side, **{"offset": 1} | args)
    assert asked.cause is Cause.UNCOMPARABLE
    assert asked.sentence.startswith(f"On {FLOW} the ")
    assert reason in asked.sentence


def test_bytes_as_far_ahead_as_a_window_reaches_only_wait():
    assert Pair().primary(1 + (1 << 30), b"d") == []


def test_bytes_behind_the_end():
    pair = Pair()
    pair.primary(1, b"abc", flags=ACK | FIN)
    assert "sent bytes beyond its own end at offset 3" in pair.asks("primary", 4, b"d").sentence


def test_an_end_below_what_both_have_said():
    pair = Pair()
    pair.secondary(1, b"abcdef")
    pair.primary(1, b"abcdef")
    assert "the primary ended at offset 2, before" in pair.asks("primary", 1, b"ab", flags=ACK | FIN).sentence


# ------------------------------------------------------------------------------------------ what was said before


def agreed(pair, offset=1, text=b"abcdef", ack=1):
    pair.secondary(offset, text, ack=ack)
    assert pair.primary(offset, text, ack=ack) == [(offset, text)]


def test_what_is_said_again_is_compared_again():
    pair = Pair()
    agreed(pair)
    agreed(pair, 7, b"ghi")
    assert pair.primary(3, b"cdefgh") == [(3, b"cdefgh")]
    asked = pair.asks("primary", 3, b"cdeXgh")
    assert asked.cause is Cause.DIVERGENCE
    assert "at offset 5: the primary said 586768, the secondary 666768." in asked.sentence


def test_what_is_not_remembered_any_more_asks_for_a_checkpoint():
    pair = Pair(limits=Limits(history_bytes=300))
    agreed(pair)
    agreed(pair, 7, b"ghi")
    assert pair.primary(7, b"ghi") == [(7, b"ghi")]
    asked = pair.asks("primary", 3, b"cdefgh")
    assert asked.cause is Cause.UNCOMPARABLE
    assert "the primary sent again what is not remembered any more, from offset 2" in asked.sentence


def test_what_left_before_the_checkpoint_may_be_said_again():
    pair = Pair()
    agreed(pair)
    pair.primary(7, b"ghi")
    assert pair.checkpoint() == [(7, b"ghi")]
    assert pair.primary(3, b"cdefghi") == [(3, b"cdefghi")]
    assert pair.primary(7, b"ghijk") == []
    assert pair.secondary(10, b"jk") == [(7, b"ghijk")]


def test_a_connection_that_was_there_before():
    pair = Pair(opened=False, ours=OURS, theirs=OURS)
    assert pair.primary(5, b"abc") == []
    assert pair.secondary(5, b"abcd") == [(5, b"abc")]
    asked = pair.asks("primary", 3, b"??abc")
    assert asked.cause is Cause.UNCOMPARABLE
    assert "sent again what it had sent before the connection was known here" in asked.sentence
    assert pair.checkpoint() == [(3, b"??abc")]
    assert pair.primary(3, b"??abc") == [(3, b"??abc")]


def test_a_checkpoint_makes_room_to_remember_again():
    pair = Pair(limits=Limits(history_bytes=300))
    for number in range(5):
        agreed(pair, 1 + 6 * number)
        assert pair.checkpoint() == []
    agreed(pair, 31)
    assert pair.primary(31, b"abcdef") == [(31, b"abcdef")]


def test_segments_of_the_connection_before_wait_when_only_the_secondary_has_opened_a_new_one():
    pair = Pair(opened=False, theirs=OURS)
    pair.secondary(0, flags=SYN | ACK)
    assert pair.primary(1, b"of the old one") == []
    assert pair.secondary(1, b"of the old one") == [], "is of the new one, though it looks the same"
    pair.checkpoint()
    assert pair.primary(15, b"more") == []
    assert pair.secondary(15, b"more") == [(15, b"more")]


def test_a_connection_on_which_the_guest_only_acknowledges():
    pair = Pair(opened=False, theirs=OURS)
    assert pair.primary(1, ack=40) == []
    assert pair.secondary(1, ack=40) == [(1, b"")]
    assert pair.checkpoint() == []
    assert pair.primary(1, ack=40) == [(1, b"")]
    assert pair.primary(1, ack=41) == []


def test_garbage_at_the_place_of_the_syn():
    pair = Pair()
    assert pair.asks("primary", 0, b"?").cause is Cause.UNCOMPARABLE


# ---------------------------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize(
    ("say", "missing"),
    [
        (lambda pair: pair.primary(1, b"abc"), "from offset 0 616263"),
        (lambda pair: pair.primary(1, ack=77), "the acknowledgement of the client's bytes up to number 77"),
        (lambda pair: pair.primary(1, flags=ACK | FIN), "from offset 0 the end"),
        (lambda pair: pair.primary(1, flags=RST), "that it gives the connection up"),
        (lambda pair: pair.primary(0, flags=SYN, ports=(80, 7)), "that it opens the connection"),
    ],
)
def test_a_silent_secondary(say, missing):
    pair = Pair(limits=Limits(secondary_s=0.25))
    pair.now_s = 10.0
    assert say(pair) == []
    assert pair.comparator.deadline() == 10.25
    assert pair.comparator.expire(10.2) is NOTHING
    asked = pair.comparator.expire(10.25).checkpoint
    assert asked.cause is Cause.SECONDARY_SILENT
    assert "the secondary has not said within 250 ms what the primary has: " in asked.sentence
    assert asked.sentence.endswith(f": {missing}.")
    assert pair.comparator.held_packets == 1
    assert len(pair.comparator.checkpointed().release) == 1


@pytest.mark.parametrize(
    ("say", "surplus"),
    [
        (lambda pair: pair.secondary(1, b"abc"), "from offset 0 616263"),
        (lambda pair: pair.secondary(1, flags=ACK | FIN), "the end of its stream at offset 0"),
        (lambda pair: pair.secondary(1, flags=RST), "that it gives the connection up"),
        (lambda pair: pair.secondary(0, flags=SYN, ports=(80, 7)), "that it opens the connection"),
    ],
)
def test_a_silent_primary(say, surplus):
    pair = Pair(limits=Limits(primary_s=0.25))
    pair.now_s = 10.0
    assert say(pair) == []
    assert pair.comparator.deadline() == 10.25
    asked = pair.comparator.expire(10.25).checkpoint
    assert asked.cause is Cause.PRIMARY_SILENT
    assert asked.sentence.endswith(
        f"the primary has not said within 250 ms what the secondary has: {surplus}."
    )
    assert pair.checkpoint() == []
    assert pair.comparator.held_bytes == 0


def test_only_progress_of_the_primary_gives_it_more_time():
    pair = Pair(limits=Limits(primary_s=1.0))
    pair.secondary(1, b"abcdef")
    pair.now_s = 0.5
    pair.secondary(7, b"ghi")
    pair.primary(1)
    assert pair.comparator.deadline() == 1.0
    pair.primary(1, b"abc")
    assert pair.comparator.deadline() == 1.5
    pair.primary(4, b"defghi")
    assert pair.comparator.deadline() is None


def test_the_oldest_packet_sets_the_deadline():
    pair = Pair(limits=Limits(secondary_s=1.0))
    for pair.now_s, offset in ((1.0, 1), (2.0, 4), (3.0, 7)):
        pair.primary(offset, b"abc")
    assert pair.comparator.deadline() == 2.0
    pair.secondary(1, b"abc")
    assert pair.comparator.deadline() == 3.0
    pair.secondary(4, b"abc")
    assert pair.comparator.deadline() == 4.0


# ------------------------------------------------------------------------------------------------------- limits


def test_the_counters():
    pair = Pair()
    agreed(pair)
    pair.primary(7, b"x")
    assert pair.comparator.counters == Counters(primary=3, secondary=2, released=2)
    pair.checkpoint()
    assert pair.comparator.counters.released == 3


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_what_is_held_is_bounded(side):
    pair = Pair(limits=Limits(packets=50, bytes=100_000))
    verdicts = [pair.say(side, 1 + 1000 * n, b"a" * 1000) for n in range(200)]
    asked = [verdict.checkpoint for verdict in verdicts if verdict.checkpoint]
    assert len(asked) == 1
    assert asked[0].cause is Cause.MEMORY
    assert asked[0].sentence.endswith("bytes are held, of 50 and 100000 that may be.")
    assert pair.comparator.full
    if side == "secondary":  # what comes after it is dropped: the checkpoint makes it void
        assert 100_000 <= pair.comparator.held_bytes < 102_000
        assert pair.checkpoint() == []
    else:
        assert len(pair.checkpoint()) == 200, "nothing is lost"
    assert (pair.comparator.held_bytes, pair.comparator.held_packets) == (0, 0)
    assert not pair.comparator.full


def test_the_number_of_packets_is_bounded():
    pair = Pair(limits=Limits(packets=3))
    for offset in (1, 2):
        assert pair.primary(offset, b"a") == []
        assert not pair.comparator.full
    assert pair.asks("primary", 3, b"a").sentence.startswith("3 packets wait and ")


def test_the_connection_idle_longest_is_forgotten():
    pair = Pair(opened=False, theirs=OURS, limits=Limits(connections=3))
    for port in (1, 2, 3, 1, 4):
        pair.secondary(1, ack=5, ports=(80, port))
        assert pair.primary(1, ack=5, ports=(80, port)) == [(1, b"")]
    assert pair.comparator.connections == 3
    assert pair.primary(1, ack=5, ports=(80, 1)) == [(1, b"")]
    assert pair.primary(1, ack=5, ports=(80, 2)) == [], "is not known any more"


def test_a_connection_that_is_stuck_is_not_forgotten():
    pair = Pair(opened=False, theirs=OURS, limits=Limits(connections=1))
    agreed(pair)
    assert pair.asks("secondary", 1, b"ab", flags=ACK | FIN)
    pair.primary(1, b"x", ports=(80, 7))
    assert pair.comparator.connections == 2


@pytest.mark.parametrize("busy", ["held", "other numbers", "ahead"])
def test_a_connection_that_is_not_idle_is_not_forgotten(busy):
    pair = Pair(opened=False, limits=Limits(connections=2))
    for port in (1, 2):
        if busy == "held":
            pair.primary(1, b"abc", ports=(80, port))
        elif busy == "ahead":
            pair.secondary(1, b"abc", ports=(80, port))
        else:
            pair.secondary(0, flags=SYN | ACK, ports=(80, port))
            pair.primary(0, flags=SYN | ACK, ports=(80, port))
    asked = pair.asks("primary", 1, b"abc", ports=(80, 3))
    assert asked.cause is Cause.MEMORY
    assert asked.sentence.startswith("3 connections are remembered, of 2 that may be")
    assert pair.comparator.full
    pair.checkpoint()
    assert not pair.comparator.full
    pair.primary(1, b"abc", ports=(80, 4))
    assert pair.comparator.asked is None
