"""A packet of the primary leaves when the secondary has said the same, or when the secondary has a checkpoint with it."""

import pytest

from colo_helper.proxy.verdicts import Cause, Limits
from colo_helper.traffic.primary import PrimaryRouter
from tests.unit.colo_helper.proxy.frames import udp
from tests.unit.colo_helper.traffic.recorder import Recorder, raw

ONE, TWO, THREE, OTHER = (udp(text) for text in (b"one", b"two", b"three", b"other"))


class Bench:
    def __init__(self, **options):
        self.out = Recorder()
        self.router = PrimaryRouter(2, self.out, clock=lambda: 0.0, **options)

    def guest(self, *frames, nic=0, now=0.0):
        self.router.from_guest(nic, raw(*frames), now)

    def secondary(self, *frames, nic=0, epoch=1):
        self.router.from_peer(epoch, nic, raw(*frames), 0.0)

    def checkpoint(self, epoch=1):
        self.router.halting()
        self.router.cut(epoch)
        self.router.resumed()
        self.router.received()
        self.router.both_run()
        return self

    @property
    def left(self):
        left, self.out.network = [frame for _, frame in self.out.network], []
        return left


@pytest.fixture
def bench():
    return Bench()


def test_before_the_first_cut_everything_leaves_at_once_and_the_peer_hears_nothing(bench):
    bench.guest(ONE, nic=1)
    bench.router.from_network(0, raw(TWO), 0.0)
    assert bench.out.network == [(1, ONE)]
    assert bench.out.peer == []
    assert bench.router.expire(0.0) is None


def test_a_packet_leaves_when_the_secondary_has_said_the_same_on_that_nic(bench):
    bench.checkpoint()
    bench.guest(ONE)
    bench.secondary(ONE, nic=1)
    assert bench.left == []
    bench.secondary(ONE)
    assert bench.out.network == [(0, ONE)]
    assert bench.out.checkpoints == []


def test_what_differs_asks_for_one_checkpoint_and_leaves_when_the_secondary_has_it(bench):
    bench.checkpoint()
    bench.guest(ONE, TWO)
    bench.secondary(OTHER, TWO)
    assert [one.cause for one in bench.out.checkpoints] == [Cause.DIVERGENCE]
    assert bench.left == []
    bench.router.cut(2)
    assert bench.left == []
    bench.router.received()
    assert bench.left == [ONE, TWO]


def test_what_is_sent_after_the_cut_waits_although_the_checkpoint_has_come(bench):
    bench.checkpoint()
    bench.guest(ONE)
    bench.router.cut(2)
    bench.guest(TWO)
    bench.router.received()
    assert bench.left == [ONE]
    bench.router.both_run()
    bench.secondary(TWO, epoch=2)
    assert bench.left == [TWO]


def test_the_secondary_may_be_ahead_of_the_word_that_it_runs(bench):
    bench.checkpoint()
    bench.router.cut(2)
    bench.secondary(TWO, epoch=2)
    bench.guest(TWO)
    bench.router.received()
    assert bench.left == []
    bench.router.both_run()
    assert bench.left == [TWO]


@pytest.mark.parametrize("epoch", [1, 3])
def test_what_the_secondary_said_in_another_epoch_is_void(bench, epoch):
    bench.checkpoint().checkpoint(2)
    bench.guest(ONE)
    bench.secondary(ONE, epoch=epoch)
    assert bench.left == []


def test_the_client_s_packets_go_to_the_secondary_with_their_epoch(bench):
    bench.checkpoint()
    bench.router.from_network(1, raw(ONE), 0.0)
    bench.router.cut(2)
    bench.router.from_network(1, raw(TWO), 0.0)
    assert bench.out.peer == [(1, 1, ONE), (2, 1, TWO)]


def test_a_silent_secondary_costs_a_checkpoint_at_the_deadline(bench):
    bench.checkpoint()
    bench.guest(ONE, now=10.0)
    due = bench.router.expire(10.0)
    assert due == pytest.approx(10.5)
    assert bench.out.checkpoints == []
    assert bench.router.expire(due) is None
    assert [one.cause for one in bench.out.checkpoints] == [Cause.SECONDARY_SILENT]


def test_its_time_to_answer_begins_when_the_secondary_runs(bench):
    bench.checkpoint()
    bench.router.cut(2)
    bench.guest(ONE, now=-5.0)
    bench.router.received()
    assert bench.router.expire(100.0) is None
    bench.router.both_run()
    assert bench.router.expire(0.0) == pytest.approx(0.5)


def test_without_a_secondary_everything_leaves_in_order_and_goes_on_leaving(bench):
    bench.checkpoint()
    bench.guest(ONE)
    bench.router.cut(2)
    bench.guest(TWO)
    bench.router.release_all()
    bench.guest(THREE)
    assert bench.left == [ONE, TWO, THREE]
    bench.secondary(ONE, epoch=2)
    assert bench.left == []


@pytest.mark.parametrize("comparing", [True, False])
def test_of_a_guest_that_died_nothing_leaves_any_more(comparing):
    bench = Bench(comparing=comparing).checkpoint()
    bench.guest(ONE)
    bench.router.cut(2)
    bench.guest(TWO)
    bench.router.discard_all()
    bench.router.release_all()
    bench.guest(THREE)
    assert bench.left == []


def test_held_output_leaves_only_after_checkpoints():
    bench = Bench(comparing=False).checkpoint()
    bench.guest(ONE)
    bench.secondary(ONE)
    bench.router.cut(2)
    bench.guest(TWO)
    assert bench.left == []
    bench.router.received()
    assert bench.left == [ONE]
    bench.router.both_run()
    bench.checkpoint(3)
    assert bench.left == [TWO]
    assert bench.out.peer == []


def test_a_guest_that_says_too_much_is_not_held_back_while_its_device_model_must_obey():
    bench = Bench(limits=Limits(bytes=4000)).checkpoint()
    bench.guest(*[udp(bytes(1000))] * 5)
    bench.router.must_obey()
    assert not bench.router.crowded
    bench.checkpoint(2)
    bench.guest(*[udp(bytes(1000))] * 5)
    assert bench.router.crowded


@pytest.mark.parametrize("comparing", [True, False])
def test_a_guest_that_says_too_much_is_held_back_until_it_is_stopped_for_a_checkpoint(comparing):
    bench = Bench(comparing=comparing, limits=Limits(bytes=4000)).checkpoint()
    bench.guest(*[udp(bytes(1000))] * 5)
    assert [one.cause for one in bench.out.checkpoints] == [Cause.MEMORY]
    assert bench.router.crowded
    bench.router.halting()
    assert not bench.router.crowded
    bench.router.cut(2)
    bench.guest(*[udp(bytes(1000))] * 5)
    assert not bench.router.crowded
    bench.router.resumed()
    assert bench.router.crowded
    assert bench.router.received()
    bench.router.both_run()
    assert len(bench.left) == 5
    assert bench.router.crowded


def test_what_waits_for_a_checkpoint_under_way_is_bounded_too():
    bench = Bench(limits=Limits(bytes=4000)).checkpoint()
    bench.router.cut(2)
    bench.router.resumed()
    bench.guest(*[udp(bytes(1000))] * 5)
    assert bench.router.crowded


def test_it_counts_by_cause(bench):
    bench.checkpoint()
    bench.guest(ONE, TWO)
    bench.secondary(ONE, OTHER)
    counters = bench.router.counters()
    assert counters["asked_divergence"] == 1
    assert (counters["primary"], counters["secondary"], counters["released"], counters["waiting"]) == (
        2,
        2,
        1,
        1,
    )
