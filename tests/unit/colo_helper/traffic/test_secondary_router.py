"""The copy gets what the client sent in its epoch; what it says goes to the comparator, or after a take-over out."""

import pytest

from colo_helper.proxy.packet import ACK, FIN, SYN, Kind, parse
from colo_helper.proxy.rewrite import Move
from colo_helper.traffic.secondary import SecondaryRouter
from tests.unit.colo_helper.proxy.frames import tcp, udp
from tests.unit.colo_helper.traffic.recorder import Recorder, raw

ONE, TWO, THREE = (udp(text) for text in (b"one", b"two", b"three"))


@pytest.fixture
def out():
    return Recorder()


@pytest.fixture
def router(out):
    return SecondaryRouter(1, out)


def begin(router, epoch):
    """The guest runs on from a checkpoint."""
    router.applied(epoch)
    router.resumed(0.0)


def given(out):
    frames, out.guest = [frame for _, frame in out.guest], []
    return frames


def test_nothing_is_given_before_the_first_checkpoint_and_then_what_is_of_it(router, out):
    router.from_peer(4, 0, raw(ONE), 0.0)
    router.from_peer(5, 0, raw(TWO), 0.0)
    assert given(out) == []
    begin(router, 5)
    assert given(out) == [TWO]
    router.from_peer(5, 0, raw(THREE), 0.0)
    assert given(out) == [THREE]


def test_what_the_primary_got_before_the_checkpoint_is_in_its_state_already(router, out):
    begin(router, 5)
    router.halted()
    router.from_peer(5, 0, raw(ONE), 0.0)
    router.from_peer(6, 0, raw(TWO), 0.0)
    begin(router, 6)
    router.from_peer(5, 0, raw(THREE), 0.0)
    assert given(out) == [TWO]


def test_a_copy_that_runs_on_from_its_own_state_gets_what_came_meanwhile(router, out):
    begin(router, 5)
    router.halted()
    router.from_peer(5, 0, raw(ONE), 0.0)
    assert given(out) == []
    router.resumed(0.0)
    assert given(out) == [ONE]


def test_what_it_says_goes_to_the_comparator_and_nowhere_else(router, out):
    begin(router, 5)
    router.from_guest(0, raw(ONE), 0.0)
    assert out.peer == [(5, 0, ONE)]
    assert out.network == []
    router.from_network(0, raw(TWO), 0.0)
    assert given(out) == []


def test_what_is_kept_while_it_stands_still_is_bounded(router, out):
    for _ in range(5000):
        router.from_peer(5, 0, raw(udp(bytes(1400))), 0.0)
    begin(router, 5)
    assert sum(map(len, given(out))) <= 4 << 20


def test_after_a_take_over_a_younger_connection_keeps_the_primary_s_numbers(router, out):
    begin(router, 5)
    router.from_peer(5, 0, raw(tcp(99, flags=SYN, outward=False)), 0.0)
    router.from_guest(0, raw(tcp(1000, 100, SYN | ACK)), 0.0)
    router.from_peer(5, 0, raw(tcp(100, 5001, outward=False)), 0.0)  # the primary's number was 5000
    assert parse(given(out)[-1]).ack == 1001
    assert router.rewriting.connections == 1
    router.take_over(0.0)
    router.from_guest(0, raw(tcp(1001, 100, payload=b"hello")), 1.0)
    assert parse(out.network[-1][1]).seq == 5001
    router.from_network(0, raw(tcp(100, 5006, outward=False)), 1.0)
    assert parse(given(out)[-1]).ack == 1006
    router.from_peer(5, 0, raw(ONE), 1.0)
    assert given(out) == []


def test_a_checkpoint_makes_the_numbers_equal(router, out):
    begin(router, 5)
    router.from_guest(0, raw(tcp(1000, 100, SYN | ACK)), 0.0)
    begin(router, 6)
    assert router.rewriting.connections == 0
    router.take_over(0.0)
    frame = tcp(1001, 100, payload=b"hello")
    router.from_guest(0, raw(frame), 1.0)
    assert out.network == [(0, frame)]


def test_after_a_take_over_clients_get_what_was_said_to_them_and_never_left(router, out):
    begin(router, 4)
    router.from_guest(0, raw(tcp(1000, 100, payload=b"before the checkpoint")), 0.0)
    begin(router, 5)
    answer, end = tcp(1021, 100, payload=b"answer"), tcp(1027, 100, FIN | ACK)
    router.from_guest(0, raw(answer, tcp(1027, 100), udp(b"datagram"), end), 0.0)
    router.take_over(1.0)
    assert out.network == [], "it is not on the network yet"
    router.say_again(1.0)
    assert out.network == [(0, answer), (0, end)]
    router.say_again(1.0)
    assert len(out.network) == 2, "once"


def test_what_is_said_again_has_the_primary_s_numbers(router, out):
    begin(router, 5)
    router.from_peer(5, 0, raw(tcp(99, flags=SYN, outward=False)), 0.0)
    router.from_guest(0, raw(tcp(1000, 100, SYN | ACK)), 0.0)
    router.from_peer(5, 0, raw(tcp(100, 5001, outward=False)), 0.0)
    router.from_guest(0, raw(tcp(1001, 100, payload=b"hello")), 0.5)
    router.take_over(1.0)
    router.say_again(1.0)
    *told, again = (parse(frame) for _, frame in out.network)
    assert again.seq == 5001
    assert [one.kind for one in told] == [Kind.ICMP] * 3  # its client is told that the outage is over


def test_what_is_said_again_of_a_connection_that_an_earlier_primary_had_is_moved_too(router, out):
    said = tcp(1001, 100, payload=b"hello")
    router.moves = [{parse(said).flow: Move(4000, 0)}]
    begin(router, 5)
    router.from_guest(0, raw(said), 0.5)
    router.take_over(1.0)
    router.say_again(1.0)
    assert [parse(frame).seq for _, frame in out.network] == [5001]


def test_what_the_old_state_said_is_void_as_soon_as_the_new_one_is_there(router, out):
    """The session may end before the guest runs on."""
    begin(router, 5)
    router.from_guest(0, raw(tcp(1000, 100, SYN | ACK), tcp(1001, 100, payload=b"hello")), 0.0)
    router.halted()
    router.applied(6)
    router.resumed(0.0)
    router.take_over(1.0)
    router.say_again(1.0)
    assert out.network == []
    assert router.rewriting.connections == 0


def test_what_is_said_before_the_network_is_there_is_said_again_and_later_words_are_not_kept(router, out):
    begin(router, 5)
    router.take_over(1.0)
    words = [tcp(1000 + at, 100, payload=b"x") for at in range(3)]
    router.from_guest(0, raw(words[0]), 1.0)
    router.say_again(1.0)
    router.from_guest(0, raw(words[1]), 1.0)
    router.say_again(1.0)
    assert [frame for _, frame in out.network] == [words[0], words[0], words[1]]


def test_a_segment_is_said_again_once_and_of_an_older_connection_nothing(router, out):
    begin(router, 5)
    old, new = tcp(9000, 100, payload=b"old"), tcp(1001, 100, payload=b"new")
    router.from_guest(0, raw(old, tcp(1000, 100, SYN | ACK), new, new), 0.0)
    router.take_over(1.0)
    router.say_again(1.0)
    assert [frame for _, frame in out.network] == [new]


def test_of_what_was_said_the_last_is_remembered_within_bounds(router, out):
    begin(router, 5)
    for number in range(1000):
        router.from_guest(0, raw(tcp(1000 + 1400 * number, 100, payload=bytes(1400))), 0.0)
    router.take_over(0.0)
    router.say_again(1.0)
    assert 900 << 10 < sum(len(frame) for _, frame in out.network) <= 1 << 20
    assert parse(out.network[-1][1]).seq == 1000 + 1400 * 999


def test_only_those_are_told_to_whom_something_is_said_after_it(router, out):
    begin(router, 5)
    for port in (1, 2):
        router.from_peer(5, 0, raw(tcp(100, 5001, outward=False, ports=(80, port))), 0.0)
    router.from_guest(0, raw(tcp(5001, 100, ports=(80, 2))), 0.5)  # an acknowledgement without bytes
    router.take_over(10.0)
    router.say_again(10.0)
    *told, again = (parse(frame) for _, frame in out.network)
    assert [one.kind for one in told] == [Kind.ICMP] * 3
    assert (again.kind, again.seq, again.ack) == (Kind.TCP, 5001, 100)
    assert again.flow[8:] == told[0].frame[-6:-4] + told[0].frame[-8:-6]


def test_a_client_is_known_by_what_it_said_in_an_older_epoch(router, out):
    begin(router, 5)
    router.from_peer(4, 0, raw(tcp(100, 5001, outward=False)), 0.0)
    router.from_guest(0, raw(tcp(5001, 100)), 0.5)
    router.take_over(10.0)
    router.say_again(10.0)
    assert out.guest == []
    assert len(out.network) == 4
