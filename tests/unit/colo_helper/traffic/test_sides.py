"""Both sides with real sockets and threads, on emulated NICs."""

import queue
import time

import pytest

from colo_helper.devices.emulated import EmulatedFilters
from colo_helper.devices.interface import DeviceError
from colo_helper.proxy.packet import parse
from colo_helper.proxy.rewrite import Move
from colo_helper.traffic.framing import FrameReader, FramingError, RawFrame, pack
from colo_helper.traffic.sides import PrimarySide, SecondarySide, permitted
from tests.unit.colo_helper.proxy.frames import tcp, udp
from tests.unit.colo_helper.replication_pair import eventually

ONE, TWO = udp(b"one"), udp(b"two")
FLOW = parse(tcp(0)).flow
#: A client that knows the numbers of a primary that is gone: they are 100 higher than the guest's.
ASKED, ASKED_OF_GUEST = tcp(8, 1100, outward=False), tcp(8, 1000, outward=False)
ANSWER, ANSWER_TO_CLIENT = tcp(1000, 8, payload=b"answer"), tcp(1100, 8, payload=b"answer")


def frames(end, count=1):
    end.settimeout(10)
    reader, found = FrameReader(), []
    while len(found) < count or reader.cut:
        data = end.recv(1 << 16)
        assert data, "closed"
        found += reader.feed(data)
    return [frame.data for frame in found]


def silent(end):
    end.settimeout(0.1)
    with pytest.raises(TimeoutError):
        end.recv(1)


class Pair:
    """A primary and a secondary whose packets for each other go through queues that the test sees."""

    def __init__(self, moves=(), permits=permitted):
        self.filters = [EmulatedFilters(), EmulatedFilters()]
        self.wanted, self.troubles = queue.Queue(), []
        self.primary = PrimarySide(
            self.filters[0],
            self.to_secondary,
            self.wanted.put,
            self.troubles.append,
            comparing=True,
            latency_s=0.5,
            moves=list(moves),
            permits=permits,
        )
        self.secondary = SecondarySide(
            self.filters[1], self.primary.from_peer, self.troubles.append, list(moves)
        )

    def to_secondary(self, epoch, nic, packed):
        self.secondary.from_peer(epoch, nic, packed)

    @property
    def ends(self):
        return self.filters[0].ends[0], self.filters[1].ends[0]

    def checkpoint(self, epoch):
        self.primary.halting()
        self.primary.cut(epoch)
        self.primary.resumed()
        self.secondary.halting()
        self.primary.received()
        self.secondary.applied(epoch)
        self.secondary.resumed()
        self.primary.both_run()

    def close(self):
        self.primary.close()
        self.secondary.close()
        assert self.troubles == []


@pytest.fixture
def pair():
    running = Pair()
    yield running
    running.close()


def test_a_request_reaches_both_copies_and_one_answer_leaves(pair):
    pair.checkpoint(1)
    ours, theirs = pair.ends
    ours.from_network.sendall(pack(RawFrame(ONE, 0)))
    assert frames(theirs.to_guest) == [ONE]
    ours.from_guest.sendall(pack(RawFrame(TWO, 0)))
    silent(ours.to_network)
    theirs.from_guest.sendall(pack(RawFrame(TWO, 0)))
    assert frames(ours.to_network) == [TWO]
    silent(theirs.to_network)


def test_answers_that_differ_leave_after_a_checkpoint(pair):
    pair.checkpoint(1)
    ours, theirs = pair.ends
    ours.from_guest.sendall(pack(RawFrame(ONE, 0)))
    theirs.from_guest.sendall(pack(RawFrame(TWO, 0)))
    assert "the copies differ at offset" in pair.wanted.get(timeout=10).sentence
    silent(ours.to_network)
    pair.checkpoint(2)
    assert frames(ours.to_network) == [ONE]


def test_what_is_let_go_without_the_right_to_speak_is_thrown_away():
    right = [False]
    pair = Pair(permits=lambda: right[0])
    try:
        pair.checkpoint(1)
        for word in (ONE, TWO):
            for end in pair.ends:
                end.from_guest.sendall(pack(RawFrame(word, 0)))
            if word == ONE:
                silent(pair.ends[0].to_network)
                assert pair.primary.counters()["muted"] == 1
                right[0] = True
        assert frames(pair.ends[0].to_network) == [TWO]
    finally:
        pair.close()


def test_all_that_was_sent_before_the_guest_stood_still_belongs_to_the_checkpoint(pair):
    pair.checkpoint(1)
    ours, _ = pair.ends
    with pair.primary._pump.hold():  # the thread has not seen it when the guest is stopped
        ours.from_guest.sendall(b"".join(pack(RawFrame(udp(bytes(1000)), 0)) for _ in range(100)))
        pair.checkpoint(2)
    assert len(frames(ours.to_network, 100)) == 100


def test_closing_lets_everything_go_first(pair):
    pair.checkpoint(1)
    ours, _ = pair.ends
    ours.from_guest.sendall(pack(RawFrame(ONE, 0)))
    deadline = time.monotonic() + 10
    while pair.primary.counters()["waiting"] != 1:
        assert time.monotonic() < deadline
    left = ours.to_network.dup()
    pair.primary.close()
    assert frames(left) == [ONE]
    assert pair.filters[0].attached == []


def test_after_a_take_over_the_guest_talks_with_the_network(pair):
    pair.checkpoint(1)
    _, theirs = pair.ends
    pair.secondary.take_over()
    theirs.from_network.sendall(pack(RawFrame(ONE, 0)))
    assert frames(theirs.to_guest) == [ONE]
    theirs.from_guest.sendall(pack(RawFrame(TWO, 0)))
    assert frames(theirs.to_network) == [TWO]


def test_a_guest_that_does_not_read_does_not_stop_the_others(pair):
    pair.checkpoint(1)
    ours, theirs = pair.ends
    for _ in range(2000):
        ours.from_network.sendall(pack(RawFrame(udp(bytes(1400)), 0)))
    ours.from_guest.sendall(pack(RawFrame(TWO, 0)))
    theirs.from_guest.sendall(pack(RawFrame(TWO, 0)))
    assert frames(ours.to_network) == [TWO]


def test_a_device_model_that_speaks_no_framing_is_said(pair):
    pair.checkpoint(1)
    pair.ends[0].from_guest.sendall(b"\xff" * 64)
    deadline = time.monotonic() + 10
    while not pair.troubles:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "cannot be moved any more" in pair.troubles.pop()
    pair.ends[0].to_network.settimeout(10)
    assert pair.ends[0].to_network.recv(1) == b"", "a device model that waited for us is let go"


def test_a_device_model_that_has_gone_is_told_at_once_and_breaks_nothing(pair):
    pair.checkpoint(1)
    pair.ends[0].close()
    eventually(lambda: pair.troubles, "told without a checkpoint")
    pair.checkpoint(2)
    told, pair.troubles = pair.troubles, []
    assert told == ["The device model has closed the way of the guest's packets."]


def test_the_packet_that_a_stopped_device_model_still_reads_is_given_to_the_copy_as_well(pair):
    pair.checkpoint(1)
    ours, theirs = pair.ends
    with pair.primary._pump.hold():
        ours.from_network.sendall(pack(RawFrame(ONE, 0)) + pack(RawFrame(TWO, 0)))
        pair.checkpoint(2)
    assert TWO in frames(theirs.to_guest)


def test_an_announcement_of_the_device_model_gets_the_header_that_the_framing_claims(pair):
    announcement = b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01" + b"\x80\x35" + bytes(46)
    ours, _ = pair.ends
    ours.from_guest.sendall(pack(RawFrame(announcement, 12))[: 8 + len(announcement)])
    ours.to_network.settimeout(10)
    assert FrameReader().feed(ours.to_network.recv(4096)) == [RawFrame(bytes(12) + announcement, 12)]


def test_the_filters_are_on_only_while_somebody_reads(pair):
    assert pair.filters[0].on
    pair.primary.close()
    assert not pair.filters[0].on


def test_filters_that_cannot_be_switched_on_are_taken_away():
    filters = EmulatedFilters(faults={"switch_on"})
    with pytest.raises(DeviceError, match="switch_on"):
        SecondarySide(filters, lambda *_: None, print, [])
    assert filters.attached == []


def test_half_a_packet_from_the_peer_is_refused(pair):
    with pytest.raises(FramingError, match="stops within one"):
        pair.primary.from_peer(1, 0, pack(RawFrame(ONE, 0))[:-1])


def test_a_guest_hears_the_network_after_the_last_of_them_has_ended(moving):
    ours, _ = moving.ends
    with moving.primary._pump.hold():
        moving.primary._moved.expire(time.monotonic() + 1e6)
    assert moving.primary.counters()["moved"] == 0
    for frame in (ONE, TWO):
        ours.from_network.sendall(pack(RawFrame(frame, 0)))
        assert frames(ours.to_guest) == [frame]


@pytest.fixture
def moving():
    running = Pair(moves=[{FLOW: Move(100, 0)}])
    yield running
    running.close()


def test_a_connection_that_was_taken_over_before_goes_on(moving):
    ours, _ = moving.ends
    ours.from_network.sendall(pack(RawFrame(ASKED, 0)))
    assert frames(ours.to_guest) == [ASKED_OF_GUEST]
    ours.from_guest.sendall(pack(RawFrame(ANSWER, 0)))
    assert frames(ours.to_network) == [ANSWER_TO_CLIENT]
    assert moving.primary.moves() == [{FLOW: Move(100, 0)}]


def test_its_secondary_sees_the_numbers_of_the_guest_that_it_is_a_copy_of(moving):
    moving.checkpoint(1)
    ours, theirs = moving.ends
    ours.from_network.sendall(pack(RawFrame(ASKED, 0)))
    assert frames(ours.to_guest) == frames(theirs.to_guest) == [ASKED_OF_GUEST]
    for end in (ours, theirs):
        end.from_guest.sendall(pack(RawFrame(ANSWER, 0)))
    assert frames(ours.to_network) == [ANSWER_TO_CLIENT]
    assert moving.wanted.empty()


def test_and_moves_them_when_it_takes_over_in_turn(moving):
    moving.checkpoint(1)
    _, theirs = moving.ends
    moving.secondary.take_over()
    theirs.from_network.sendall(pack(RawFrame(ASKED, 0)))
    assert frames(theirs.to_guest) == [ASKED_OF_GUEST]
    theirs.from_guest.sendall(pack(RawFrame(ANSWER, 0)))
    assert frames(theirs.to_network) == [ANSWER_TO_CLIENT]
    assert moving.secondary.followed == 1


def test_what_comes_while_the_guest_stands_still_is_given_to_both_of_the_new_epoch(moving):
    moving.checkpoint(1)
    ours, theirs = moving.ends
    moving.primary.halting()
    ours.from_network.sendall(pack(RawFrame(ASKED, 0)))
    silent(ours.to_guest)
    moving.primary.cut(2)
    moving.primary.resumed()
    moving.secondary.halting()
    moving.secondary.applied(2)
    moving.secondary.resumed()
    assert frames(ours.to_guest) == frames(theirs.to_guest) == [ASKED_OF_GUEST]


def test_what_came_is_given_to_a_guest_whose_checkpoint_was_given_up(moving):
    moving.checkpoint(1)
    ours, _ = moving.ends
    moving.primary.halting()
    ours.from_network.sendall(pack(RawFrame(ASKED, 0)))
    silent(ours.to_guest)
    moving.primary.release()
    assert frames(ours.to_guest) == [ASKED_OF_GUEST]


def test_a_device_model_that_must_obey_still_gives_the_guest_what_comes(moving):
    moving.checkpoint(1)
    moving.primary.must_obey()
    ours, _ = moving.ends
    ours.from_network.sendall(pack(RawFrame(ASKED, 0)))
    assert frames(ours.to_guest) == [ASKED_OF_GUEST]


def test_a_connection_that_has_ended_since_is_not_moved_by_who_takes_over(moving):
    moving.checkpoint(1)
    moving.secondary.know([{}])
    moving.secondary.take_over()
    theirs = moving.ends[1]
    theirs.from_guest.sendall(pack(RawFrame(ANSWER, 0)))
    assert frames(theirs.to_network) == [ANSWER]
