"""UDP, ICMP, announcements, fragments and what nobody knows."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import parse
from colo_helper.proxy.verdicts import NOTHING, Cause, Limits
from tests.unit.colo_helper.proxy.frames import CLIENT, GUEST6, arp, ethernet, icmp, ip, udp


def primary(comparator, frame, now_s=0.0):
    return comparator.primary(parse(frame), now_s)


def secondary(comparator, frame, now_s=0.0):
    return comparator.secondary(parse(frame), now_s)


def is_empty(comparator):
    held = comparator.held_packets, comparator.held_bytes, comparator.flows
    return held == (0, 0, 0) and comparator.deadline() is None


def echo(number, text=b"ping", talk=1, **kwargs):
    return icmp(0, 0, struct.pack(">HH", talk, number) + text, **kwargs)


def unreachable(text=b"what it was about", **kwargs):
    return icmp(3, 3, bytes(4) + text, **kwargs)


MAKERS = {
    "udp": lambda n, **kwargs: udp(b"answer %d" % n, **kwargs),
    "udp6": lambda n, **kwargs: udp(b"answer %d" % n, GUEST6, "2001:db8::1", **kwargs),
    "echo": echo,
    "unreachable": lambda n, **kwargs: unreachable(b"%d" % n, **kwargs),
    "sctp": lambda n, **kwargs: ip(b"chunk %d" % n, 132, **kwargs),
    "lldp": lambda n, **_: ethernet(b"station %d" % n, 0x88CC),
    "damaged": lambda n, **_: udp(b"answer %d" % n)[:-1],
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("first", ["primary", "secondary"])
def test_equal_packets_leave_in_order(name, first):
    make, comparator = MAKERS[name], Comparator()
    ours = [parse(make(n)) for n in range(3)]
    theirs = [parse(make(n, ttl=9, ident=500 + n)) for n in range(3)]
    left = []
    if first == "primary":
        for packet in ours:
            assert comparator.primary(packet, 0.0) is NOTHING
        for packet in theirs:
            left += comparator.secondary(packet, 0.0).release
    else:
        for packet in theirs:
            assert comparator.secondary(packet, 0.0) is NOTHING
        for packet in ours:
            left += comparator.primary(packet, 0.0).release
    assert left == ours
    assert is_empty(comparator)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("first", ["primary", "secondary"])
def test_different_packets_ask_for_a_checkpoint(name, first):
    make, comparator = MAKERS[name], Comparator()
    sides = {"primary": primary, "secondary": secondary}
    second = next(side for side in sides if side != first)
    assert sides[first](comparator, make(1)) is NOTHING
    verdict = sides[second](comparator, make(2))
    assert verdict.release == ()
    assert verdict.checkpoint.cause is Cause.DIVERGENCE
    assert secondary(comparator, make(1)) is NOTHING, "after a difference nothing counts"
    assert primary(comparator, make(3)) is NOTHING
    ours = {"primary": 1, "secondary": 2}[first]
    assert comparator.checkpointed().release == [parse(make(ours)), parse(make(3))]
    assert is_empty(comparator)


def test_what_the_secondary_said_before_a_difference_counts_no_longer():
    comparator = Comparator()
    for text in (b"a", b"b"):
        secondary(comparator, udp(text))
    assert primary(comparator, udp(b"x")).checkpoint.cause is Cause.DIVERGENCE
    assert primary(comparator, udp(b"b")) is NOTHING


def test_a_difference_is_named():
    comparator = Comparator()
    primary(comparator, udp(b"answer 17"))
    assert secondary(comparator, udp(b"answer 2")).checkpoint.sentence == (
        "On UDP 192.0.2.10:53 to 198.51.100.7:4000 the copies differ at offset 7: the primary said 3137, the secondary 32."
    )


def test_a_longer_datagram_differs_where_the_shorter_ends():
    comparator = Comparator()
    primary(comparator, udp(b"answer"))
    assert secondary(comparator, udp(b"answers")).checkpoint.sentence.endswith(
        "at offset 6: the primary said no more, the secondary 73."
    )


def test_flows_do_not_wait_for_one_another():
    comparator = Comparator()
    primary(comparator, udp(b"a", ports=(53, 1)))
    primary(comparator, udp(b"b", ports=(53, 2)))
    primary(comparator, echo(1, talk=7))
    primary(comparator, echo(1, talk=8))
    assert secondary(comparator, udp(b"b", ports=(53, 2))).release == [parse(udp(b"b", ports=(53, 2)))]
    assert secondary(comparator, echo(1, talk=8)).release == [parse(echo(1, talk=8))]
    assert comparator.held_packets == 2


def test_padding_is_not_payload():
    comparator = Comparator()
    primary(comparator, udp(b"a", pad=60))
    assert len(secondary(comparator, udp(b"a")).release) == 1


@pytest.mark.parametrize(
    ("sender", "cause", "sentence"),
    [
        (
            primary,
            Cause.SECONDARY_SILENT,
            "the secondary has not said within 500 ms what the primary has: a packet that begins with 616263.",
        ),
        (
            secondary,
            Cause.PRIMARY_SILENT,
            "the primary has not said within 500 ms what the secondary has: a packet that begins with 616263.",
        ),
    ],
)
def test_deadlines(sender, cause, sentence):
    comparator = Comparator(Limits(secondary_s=0.5, primary_s=0.5))
    sender(comparator, udp(b"abc"), 3.0)
    sender(comparator, udp(b"def"), 3.4)
    assert comparator.deadline() == 3.5
    asked = comparator.expire(3.5).checkpoint
    assert asked.cause is cause
    assert asked.sentence == f"On UDP 192.0.2.10:53 to 198.51.100.7:4000 {sentence}"


def test_progress_of_the_primary_gives_it_more_time():
    comparator = Comparator(Limits(primary_s=1.0))
    for text in (b"a", b"b"):
        secondary(comparator, udp(text), 1.0)
    assert len(primary(comparator, udp(b"a"), 1.5).release) == 1
    assert comparator.deadline() == 2.5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=40))
def test_nothing_leaves_that_the_secondary_did_not_send_in_the_same_place(steps):
    """Each step: a side sends its next packet on one of three flows. From some place on the secondary's differ."""
    comparator, counts = Comparator(), {}
    said: set[tuple[int, int]] = set()
    for is_primary, flow in steps:
        number = counts.setdefault((is_primary, flow), 0)
        counts[is_primary, flow] += 1
        text = b"%d" % number if is_primary or number < 3 else b"other"
        frame = udp(text, ports=(53, flow))
        if not is_primary and number < 3:
            said.add((flow, number))
        verdict = (primary if is_primary else secondary)(comparator, frame)
        for packet in verdict.release:
            assert (packet.flow[-1], int(packet.frame[packet.payload : packet.end])) in said
    for flow in range(3):
        ours, theirs = counts.get((True, flow), 0), counts.get((False, flow), 0)
        if ours > 3 and theirs > 3:
            assert comparator.asked.cause is Cause.DIVERGENCE


def test_progress_in_one_flow_gives_the_others_no_time():
    comparator = Comparator(Limits(primary_s=1.0))
    for now_s, port, text in ((1.0, 1, b"a"), (1.0, 1, b"b"), (1.2, 2, b"c")):
        secondary(comparator, udp(text, ports=(53, port)), now_s)
    primary(comparator, udp(b"a", ports=(53, 1)), 1.9)
    assert comparator.deadline() == 2.2
    assert ":53 to 198.51.100.7:2 the primary" in comparator.expire(2.2).checkpoint.sentence


# ------------------------------------------------------------------------------------------------ announcements


def test_what_the_secondary_stands_for_is_not_compared_one_by_one():
    comparator = Comparator()
    assert primary(comparator, arp(2)) is NOTHING
    assert secondary(comparator, arp(1, target="192.0.2.77")).release == [parse(arp(2))]
    for operation in (1, 2, 2):
        assert primary(comparator, arp(operation)).release == [parse(arp(operation))]
    assert secondary(comparator, arp(2)) is NOTHING
    assert secondary(comparator, arp(2, address="192.0.2.11")) is NOTHING
    assert comparator.deadline() is None, "the secondary's own announcements are dropped"


def test_an_address_that_only_the_primary_has_taken_waits():
    comparator = Comparator(Limits(secondary_s=0.5))
    secondary(comparator, arp())
    assert primary(comparator, arp(address="192.0.2.11"), 7.0) is NOTHING
    asked = comparator.expire(comparator.deadline()).checkpoint
    assert asked.cause is Cause.SECONDARY_SILENT
    assert asked.sentence == (
        "On the guest's announcements the secondary has not said within 500 ms what the primary has: "
        "is at 00163e00000ac000020b."
    )
    assert comparator.checkpointed().release == [parse(arp(address="192.0.2.11"))]
    assert len(primary(comparator, arp(address="192.0.2.11")).release) == 1
    assert primary(comparator, arp()) is NOTHING, "the primary has not said this before the checkpoint"


def test_announcements_wait_for_their_own_only():
    comparator = Comparator()
    waiting = [arp(address=address) for address in ("192.0.2.11", "192.0.2.12", "192.0.2.11")]
    for frame in waiting:
        primary(comparator, frame)
    left = secondary(comparator, arp(address="192.0.2.11")).release
    assert left == [parse(waiting[0]), parse(waiting[2])]
    assert comparator.held_packets == 1


def test_only_so_many_announcements_are_remembered():
    comparator = Comparator()
    for number in (*range(1024), 0, 1024):
        secondary(comparator, arp(address=f"10.0.{number >> 8}.{number & 255}"))
    assert primary(comparator, arp(address="10.0.0.1")) is NOTHING
    for address in ("10.0.0.0", "10.0.0.2"):
        assert len(primary(comparator, arp(address=address)).release) == 1


# ---------------------------------------------------------------------------------------------------- fragments


def test_fragments_ask_for_a_checkpoint():
    comparator = Comparator()
    fragments = [udp(b"first", fragment=0x2000), udp(b"second", fragment=5)]
    assert secondary(comparator, fragments[0]) is NOTHING
    assert is_empty(comparator)
    verdict = primary(comparator, fragments[0])
    assert verdict.release == ()
    assert verdict.checkpoint.cause is Cause.UNCOMPARABLE
    assert verdict.checkpoint.sentence == (
        f"The primary sent fragments of IP protocol 17 192.0.2.10 to {CLIENT}, which cannot be compared."
    )
    assert primary(comparator, fragments[1]).checkpoint is None
    assert comparator.checkpointed().release == [parse(frame) for frame in fragments]
    assert primary(comparator, fragments[0]).checkpoint.cause is Cause.UNCOMPARABLE


@pytest.mark.parametrize("sender", [primary, secondary])
def test_many_flows_are_bounded(sender):
    comparator = Comparator(Limits(packets=100, bytes=100_000))
    asked = [sender(comparator, udp(b"scan", ports=(53, port))).checkpoint for port in range(300)]
    assert [checkpoint.cause for checkpoint in asked if checkpoint] == [Cause.MEMORY]
    comparator.checkpointed()
    assert is_empty(comparator)
