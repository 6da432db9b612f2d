"""The three lanes of a pair: beats, round trips, who is suspected, and how a session ends."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from colo_helper.channel.liveness import Life
from colo_helper.channel.session import BACK, FORWARD, HEARTBEAT, LANES, Session, Timing
from colo_helper.channel.stream import ChannelLostError, FdStream
from colo_helper.channel.wire import Kind

PATIENCE_S = 10.0
QUICK = Timing(1.0)


class Side:
    """A session with what it has said."""

    def __init__(self, sends_on, timing, opener=None, epoch=0):
        self.events, self.frames, self.losses = [], [], []
        self.lost = threading.Event()
        self.epoch = epoch
        self.session = Session(
            "12345678",
            sends_on,
            timing,
            opener=opener,
            epoch=lambda: self.epoch,
            event=lambda kind, sentence: self.events.append((kind, sentence)),
        )

    def start(self):
        self.session.start(self.frames.append, self._on_lost)

    def _on_lost(self, sentence):
        self.losses.append(sentence)
        self.lost.set()

    def reason(self):
        assert self.lost.wait(PATIENCE_S)
        (sentence,) = self.losses
        return sentence


class Direct:
    """An Opener without SSH: one socket pair a connection, given to the other session."""

    def __init__(self):
        self.other, self.without, self.streams = None, {}, {}
        self.idles = 0

    def open(self, channel, session, received, resumes, patience):
        if channel in self.without:
            raise self.without[channel]
        ours, theirs = socket.socketpair()
        fds = [sock.detach() for sock in (ours, theirs)]
        here, there = (FdStream(fd, fd) for fd in fds)
        self.streams[channel] = fds
        mine = self.other.session._lanes[channel].detach()
        self.other.session._lanes[channel].attach(there, received)
        return here, mine

    def break_one(self, channel):
        sock = socket.socket(fileno=os.dup(self.streams[channel][0]))
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def idle(self):
        self.idles += 1

    def close(self):
        self.idles = -1


@pytest.fixture
def sides():
    made = []

    def make(timing=QUICK, **options):
        opener = Direct()
        primary, secondary = Side(FORWARD, timing, opener, **options), Side(BACK, timing)
        opener.other = secondary
        primary.opener = opener
        made.extend((primary, secondary))
        return primary, secondary

    yield make
    for side in made:
        side.session.close()


def connected(sides, **options):
    primary, secondary = sides(**options)
    primary.session.open()
    for side in (secondary, primary):
        side.start()
    eventually(
        lambda: not primary.session.figures()["broken"], "the heartbeat, which follows in the background"
    )
    return primary, secondary


def eventually(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def test_beats_tell_both_sides_the_round_trip_and_the_others_epoch(sides):
    primary, secondary = connected(sides, epoch=7)
    for side in (primary, secondary):
        eventually(lambda side=side: side.session.figures()["round_trip"], "a round trip")
        assert 0 <= side.session.figures()["round_trip"]["p50_ms"] < 1000
        assert side.session.figures()["life"] == "alive"
    assert secondary.session.figures()["peer_epoch"] == 7


def test_idle_lanes_keep_nothing_that_has_arrived(sides):
    primary, secondary = connected(sides)
    primary.session.send(Kind.HELLO, {"n": 1})
    eventually(lambda: secondary.frames, "the frame")
    eventually(lambda: not primary.session._lanes[FORWARD]._kept, "a beat acknowledges it")


def test_a_silent_peer_is_dead_after_the_timeout(sides):
    primary, secondary = connected(sides)
    secondary.session._ended.set()  # as a frozen process: its connections stay, nothing is said
    started = time.monotonic()
    assert "The peer has been silent on every path for 1." in primary.reason()
    assert time.monotonic() - started > QUICK.timeout_s * 0.8
    with pytest.raises(ChannelLostError, match="silent on every path"):
        primary.session.send(Kind.HELLO)


def test_a_session_goes_on_without_its_heartbeat_and_says_so(sides):
    primary, secondary = sides()
    primary.opener.without[HEARTBEAT] = ChannelLostError("The second network is down.")
    primary.session.open()
    for side in (secondary, primary):
        side.start()
    eventually(lambda: primary.session.figures()["life"] == "suspected", "the silence of one path")
    assert (
        "channel_broken",
        "There is no heartbeat channel yet: The second network is down.",
    ) in primary.events
    assert primary.session.figures()["broken"] == {HEARTBEAT: "The second network is down."}
    primary.session.send(Kind.HELLO)
    eventually(lambda: secondary.frames, "the frame")
    assert not primary.lost.is_set()
    del primary.opener.without[HEARTBEAT]
    eventually(lambda: primary.session.figures()["life"] == "alive", "the heartbeat")
    assert primary.session.figures()["broken"] == {}


@pytest.mark.parametrize("channel", LANES)
def test_a_broken_connection_is_made_anew(sides, channel):
    primary, secondary = connected(sides)
    primary.opener.break_one(channel)
    eventually(lambda: primary.session.figures()["reopened"][channel] == 1, "the new connection")
    primary.session.send(Kind.HELLO, {"n": 1})
    secondary.session.send(Kind.HELLO, {"n": 2})
    eventually(lambda: secondary.frames and primary.frames, "both frames")
    assert any(kind == "channel_broken" for kind, _ in primary.events)
    assert any(kind == "channel_reopened" for kind, _ in primary.events)


@pytest.mark.parametrize("channel", LANES)
def test_a_connection_that_leads_nowhere_is_made_anew_although_nothing_closed_it(sides, channel):
    primary, secondary = connected(sides)
    secondary.session._lanes[channel].beat = lambda *_: None  # what it says on this way does not arrive
    eventually(lambda: primary.session.figures()["reopened"][channel] > 0, "the new connection")
    assert any(
        kind == "channel_broken" and f"The {channel} channel broke: Nothing came over it for 0." in sentence
        for kind, sentence in primary.events
    )
    assert not primary.lost.is_set()


def test_a_connection_is_not_silent_before_the_session_has_started(sides):
    """On a slow host it takes a while to make the second one, and nobody sends beats before both are there."""
    primary, secondary = sides()
    primary.session._open(FORWARD)
    time.sleep(QUICK.timeout_s * 0.6)
    primary.session._open(BACK)
    for side in (secondary, primary):
        side.start()
    eventually(lambda: not primary.session.figures()["broken"], "the heartbeat")
    eventually(lambda: primary.session.figures()["round_trip"], "a round trip")
    assert [sentence for kind, sentence in primary.events if kind == "channel_broken"] == []


def test_a_slow_taker_of_frames_is_not_silent(sides):
    primary, secondary = sides(timing=QUICK)
    primary.session.open()
    taking, taken = threading.Event(), threading.Event()

    def take(_frame):
        taken.set()
        taking.wait(PATIENCE_S)

    secondary.session.start(take, secondary._on_lost)
    primary.start()
    primary.session.send(Kind.STREAM, {}, (b"x",))
    assert taken.wait(PATIENCE_S)
    time.sleep(QUICK.timeout_s * 2)  # that it takes longer than the timeout is the point
    taking.set()
    assert primary.session.figures()["reopened"] == dict.fromkeys(LANES, 0)
    assert not primary.lost.is_set()
    assert not secondary.lost.is_set()


@pytest.mark.parametrize("channel", [FORWARD, BACK])
def test_a_lasting_refusal_ends_the_session_at_once(sides, channel):
    primary, _secondary = connected(sides, timing=Timing(60.0))
    primary.opener.without[channel] = ChannelLostError("The host key has changed.", lasting=True)
    primary.opener.break_one(channel)
    assert primary.reason() == f"The {channel} channel was not made again: The host key has changed."


def test_the_other_side_hears_why_a_session_was_given_up(sides):
    primary, secondary = connected(sides, timing=Timing(60.0))
    primary.session._lose("The forward channel could not be made again.")
    assert secondary.reason() == "The peer gave the session up: The forward channel could not be made again."


def test_an_orderly_end_is_known_at_once_and_after_all_frames(sides):
    primary, secondary = connected(sides, timing=Timing(60.0))
    for n in range(50):
        secondary.session.send(Kind.HASHES, {"n": n}, (bytes(1000),))
    secondary.session.close()
    assert primary.reason() == "The peer closed the session."
    assert [frame.head["n"] for frame in primary.frames] == list(range(50))
    assert secondary.losses == []


def test_an_end_that_came_before_the_start_is_told_at_the_start(sides):
    primary, secondary = sides(timing=Timing(60.0))
    primary.session.open()
    primary.session.close()
    eventually(lambda: secondary.session.ended, "the goodbye is heard")
    secondary.start()
    assert secondary.reason() == "The peer closed the session."


def test_a_needed_channel_that_cannot_be_made_is_an_error(sides):
    primary, _ = sides()
    primary.opener.without[BACK] = ChannelLostError("No route to host.")
    with pytest.raises(ChannelLostError, match="No route to host"):
        primary.session.open()


def test_life_is_told_once_for_each_change(sides):
    primary, _secondary = connected(sides)
    assert primary.session._life is Life.ALIVE
    eventually(lambda: primary.session.figures()["round_trip"], "beats")
    assert [kind for kind, _ in primary.events if kind.startswith("peer_")] == []


def test_the_opener_hears_of_quiet_moments_and_of_the_end(sides):
    primary, secondary = connected(sides)
    primary.session.idle()
    secondary.session.idle()
    assert primary.opener.idles == 1
    primary.session.close()
    assert primary.opener.idles == -1
