"""A connection that the primary opened goes on with the secondary, whose numbers and clock are others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.proxy.packet import ACK, FIN, RST, SYN, parse
from colo_helper.proxy.rewrite import Move, Rewriter
from tests.unit.colo_helper.proxy.conversations import isns
from tests.unit.colo_helper.proxy.endpoints import Endpoint
from tests.unit.colo_helper.proxy.frames import tcp, udp


class World:
    """A client, two copies of a guest, and the rewriter before the second."""

    def __init__(self, numbers, clocks, vnet_bytes=0, odd_options=False):
        make = {"vnet_bytes": vnet_bytes, "odd_options": odd_options}
        self.primary, self.secondary = (
            Endpoint(guest=True, isn=isn, clock=clock, **make)
            for isn, clock in zip(numbers[:2], clocks, strict=True)
        )
        self.client = Endpoint(guest=False, isn=numbers[2], clock=77, **make)
        self.rewriter, self.vnet_bytes = Rewriter(), vnet_bytes
        self.alone = False

    def to_guests(self, frame):
        if not self.alone:
            self.primary.receive(frame)
        self.secondary.receive(self.rewriter.to_guest(parse(frame, self.vnet_bytes), 0.0))

    def from_guests(self, action, *, lost=False):
        """Let both guests do the same; the client hears the primary, or after the take-over the secondary."""
        theirs = self.rewriter.from_guest(parse(action(self.secondary), self.vnet_bytes), 0.0)
        ours = theirs if self.alone else action(self.primary)
        if not lost:
            self.client.receive(ours)

    def open(self, *, by_guest):
        if by_guest:
            self.from_guests(Endpoint.opens)
            self.to_guests(self.client.opens())
            self.from_guests(Endpoint.acks)
        else:
            self.to_guests(self.client.opens())
            self.from_guests(Endpoint.opens)
            self.to_guests(self.client.acks())

    def take_over(self):
        self.alone = True
        self.rewriter.taken_over({}, 0.0)
        self.from_guests(Endpoint.says_again)

    def close(self):
        self.from_guests(Endpoint.ends)
        self.to_guests(self.client.ends())


data = st.binary(min_size=1, max_size=20)
turns = st.lists(
    st.one_of(
        st.tuples(st.just("client"), data),
        st.tuples(st.sampled_from(["guest", "guest, lost"]), data),
    ),
    max_size=8,
)


def talk(world, turns):
    for who, text in turns:
        if who == "client":
            world.to_guests(world.client.says(text))
            world.from_guests(Endpoint.acks)
            continue
        if who == "guest, lost":  # the client gets what comes after it, and says so
            start = len(world.client.got) + 1
            behind = start + len(text)
            world.from_guests(lambda guest, text=text: guest.says(text), lost=True)
            world.from_guests(lambda guest: guest.says(b"behind"), lost=True)
            world.to_guests(world.client.acks(sack=[(behind, behind + 6)]))
            assert world.secondary.sacked[-1] == (behind, behind + 6)
            world.from_guests(Endpoint.says_again)
        else:
            world.from_guests(lambda guest, text=text: guest.says(text))
        world.to_guests(world.client.acks())


@given(
    numbers=st.tuples(isns, isns, isns),
    clocks=st.tuples(isns, isns),
    vnet_bytes=st.sampled_from([0, 10, 12]),
    by_guest=st.booleans(),
    odd_options=st.booleans(),
    before=turns,
    after=turns,
)
def test_a_connection_survives_the_take_over(
    numbers, clocks, vnet_bytes, by_guest, odd_options, before, after
):
    world = World(numbers, clocks, vnet_bytes, odd_options)
    world.open(by_guest=by_guest)
    talk(world, before)
    world.take_over()
    talk(world, after)
    said = b"".join(
        text + (b"behind" if "lost" in who else b"") for who, text in before + after if who != "client"
    )
    heard = b"".join(text for who, text in before + after if who == "client")
    assert world.client.got == world.secondary.sent == said
    assert world.secondary.got == heard
    world.close()
    assert world.rewriter.expire(119.0) == 1
    assert world.rewriter.expire(120.0) == 0


def test_a_handshake_that_the_primary_did_not_end():
    """The client has the primary's SYN-ACK; its answer comes when only the secondary is left."""
    world = World((1000, 5_000_000, 3), (10, 99))
    world.to_guests(world.client.opens())
    world.from_guests(Endpoint.opens)
    world.alone = True
    world.rewriter.taken_over({}, 0.0)
    world.to_guests(world.client.acks())
    world.from_guests(lambda guest: guest.says(b"banner"))
    assert world.client.got == b"banner"


def packet(*args, **kwargs):
    return parse(tcp(*args, **kwargs))


def opened(rewriter, isn=5000, primary=1000, now_s=0.0):
    """The guest answers a SYN; the client answers with what the primary told it."""
    rewriter.from_guest(packet(isn, 8, SYN | ACK), now_s)
    return parse(rewriter.to_guest(packet(8, primary + 1, outward=False), now_s))


def test_both_directions_by_exact_numbers():
    rewriter = Rewriter()
    assert opened(rewriter).ack == 5001
    assert parse(rewriter.to_guest(packet(8, 1011, outward=False), 0.0)).ack == 5011
    assert parse(rewriter.from_guest(packet(5011, 8), 0.0)).seq == 1011
    assert parse(rewriter.from_guest(packet(5000, 8, SYN | ACK), 0.0)).seq == 1000, "said again"
    assert len(rewriter) == 1


def stamps(shown, echoed):
    return b"\x01\x01\x08\x0a" + shown.to_bytes(4, "big") + echoed.to_bytes(4, "big")


def test_the_clock_is_that_of_the_first_syn():
    rewriter = Rewriter()
    for clock in (10, 20):
        rewriter.from_guest(packet(5000, 8, SYN | ACK, options=stamps(clock, 3)), 0.0)
    answer = rewriter.to_guest(packet(8, 1001, options=stamps(4, 500), outward=False), 0.0)
    assert answer == tcp(8, 5001, options=stamps(4, 10), outward=False)
    out = rewriter.from_guest(packet(5001, 8, options=stamps(30, 4)), 0.0)
    assert out == tcp(1001, 8, options=stamps(520, 4))


def test_only_the_clock_differs():
    rewriter = Rewriter()
    rewriter.from_guest(packet(1000, 8, SYN | ACK, options=stamps(10, 3)), 0.0)
    rewriter.to_guest(packet(8, 1001, options=stamps(4, 12), outward=False), 0.0)
    out = rewriter.from_guest(packet(1001, 8, options=stamps(30, 4)), 0.0)
    assert out == tcp(1001, 8, options=stamps(32, 4))


def test_after_a_checkpoint_nothing_is_moved():
    rewriter = Rewriter()
    opened(rewriter)
    rewriter.checkpointed()
    frame = tcp(1011, 8)
    assert rewriter.from_guest(parse(frame), 0.0) is frame
    assert rewriter.to_guest(packet(8, 1011, outward=False), 0.0) == tcp(8, 1011, outward=False)


def test_a_connection_that_both_opened_with_the_same_number_is_not_learned_twice():
    rewriter = Rewriter()
    opened(rewriter, isn=1000, primary=1000)
    rewriter.from_guest(packet(1000, 8, SYN | ACK), 0.0)
    assert parse(rewriter.to_guest(packet(8, 1500, outward=False), 0.0)).ack == 1500


@pytest.mark.parametrize("frame", [tcp(7, 8), udp(b"abc"), b"\0" * 20, tcp(7, 8, six=True)])
def test_what_is_not_followed_passes_as_it_is(frame):
    rewriter = Rewriter()
    opened(rewriter)
    other = parse(frame)
    if other.flow != packet(1).flow:
        assert rewriter.from_guest(other, 0.0) is frame
    assert rewriter.to_guest(other, 0.0) is frame


def test_segments_without_an_acknowledgement_pass_as_they_are():
    rewriter = Rewriter()
    rewriter.from_guest(packet(5000, 8, SYN | ACK), 0.0)
    for flags in (SYN, RST):
        frame = tcp(7, 0, flags, outward=False)
        assert rewriter.to_guest(parse(frame), 0.0) is frame
    assert parse(rewriter.to_guest(packet(8, 1001, outward=False), 0.0)).ack == 5001


def test_what_is_opened_after_the_take_over_has_the_secondarys_numbers():
    rewriter = Rewriter()
    opened(rewriter)
    rewriter.taken_over({}, 0.0)
    assert opened(rewriter, isn=9000, primary=9000).ack == 9001
    assert len(rewriter) == 0


def test_a_port_used_again_begins_anew():
    rewriter = Rewriter()
    opened(rewriter)
    assert opened(rewriter, isn=7000, primary=2000).ack == 7001


@pytest.mark.parametrize(("most", "followed"), [(1, 1), (2, 2)])
def test_no_more_connections_are_followed_than_may_be(most, followed):
    rewriter = Rewriter(most)
    for port in (1, 2, 3):
        rewriter.from_guest(packet(5000, 8, SYN | ACK, ports=(80, port)), 0.0)
    assert len(rewriter) == followed


def test_a_connection_that_was_reset_is_forgotten_when_it_was_quiet():
    for reset in (
        lambda rewriter: rewriter.from_guest(packet(5001, 8, RST), 7.0),
        lambda rewriter: rewriter.to_guest(packet(8, 1001, RST, outward=False), 7.0),
    ):
        rewriter = Rewriter(linger_s=10.0)
        opened(rewriter)
        assert rewriter.expire(1000.0) == 1
        reset(rewriter)
        assert rewriter.expire(16.9) == 1
        assert rewriter.expire(17.0) == 0


def test_who_goes_on_with_a_guest_moves_what_was_moved_before():
    before = Rewriter()
    opened(before)
    before.from_guest(packet(5001, 8, ports=(80, 7)), 0.0)
    flow = packet(5001, 8).flow
    assert before.moves() == {flow: Move(2**32 - 4000, 0)}
    after = Rewriter()
    after.taken_over(before.moves(), 0.0)
    assert parse(after.to_guest(packet(8, 1011, outward=False), 0.0)).ack == 5011
    assert parse(after.from_guest(packet(5011, 8), 0.0)).seq == 1011
    assert after.moves() == before.moves()


def test_a_connection_that_was_opened_anew_since_counts():
    rewriter = Rewriter()
    opened(rewriter)
    flow = packet(5001, 8).flow
    rewriter.taken_over({flow: Move(77, 0)}, 0.0)
    assert parse(rewriter.from_guest(packet(5011, 8), 0.0)).seq == 1011
    again = Rewriter()
    again.taken_over({flow: Move(77, 0)}, 0.0)
    assert parse(again.from_guest(packet(9000, 8, SYN | ACK), 0.0)).seq == 9000


def test_a_handshake_that_nothing_is_known_of_yet_is_not_handed_on():
    rewriter = Rewriter()
    rewriter.from_guest(packet(5000, 8, SYN | ACK), 0.0)
    assert len(rewriter) == 1
    assert rewriter.moves() == {}


def test_a_connection_that_never_ends_is_given_up_after_days_of_silence():
    rewriter = Rewriter()
    opened(rewriter)
    assert rewriter.expire(431_999.0) == 1
    assert rewriter.expire(432_000.0) == 0


def test_a_connection_that_both_have_ended_is_not_handed_on():
    rewriter = Rewriter()
    opened(rewriter)
    rewriter.from_guest(packet(5001, 9, ACK | FIN), 0.0)
    assert rewriter.moves() != {}
    rewriter.to_guest(packet(9, 1001, ACK | FIN, outward=False), 0.0)
    assert rewriter.moves() == {}
