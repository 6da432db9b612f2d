"""Frames exactly once and in order, over connections that break at any byte.

COLO_SOAK_MIB asks for more bytes than a quick run has.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading

import pytest

from colo_helper.channel import lane as lane_module
from colo_helper.channel.lane import WINDOW_BYTES, Hooks, Lane
from colo_helper.channel.stream import ChannelLostError, FdStream, read_frame, write_frame
from colo_helper.channel.wire import Kind, WireError, encode

SOAK_BYTES = int(os.environ.get("COLO_SOAK_MIB", "48")) << 20
PATIENCE_S = 20.0


def nothing():
    """Patience without end."""


class End:
    """One side's lane and what it said."""

    def __init__(self, on_frame=lambda _frame: None):
        self.breaks, self.broken = [], threading.Event()
        self.lane = Lane("forward", Hooks(on_frame, lambda *_: None, self.on_broken))
        self.beats = []

    def on_broken(self, _name, end):
        self.breaks.append(end)
        self.broken.set()


def join(one, other, sockets=None):
    """Give both a new connection, as Opening and the listener do; returns the sockets under it."""
    pair = sockets or socket.socketpair()
    streams = [FdStream(sock.fileno(), sock.fileno()) for sock in pair]
    received = [end.lane.detach() for end in (one, other)]
    one.lane.attach(streams[0], received[1])
    other.lane.attach(streams[1], received[0])
    return [sock.detach() for sock in pair]


class Breaking(FdStream):
    """A stream that ends in the middle of a byte count of its reads or writes."""

    def __init__(self, fd, budget):
        super().__init__(fd, fd)
        self.budget = budget
        self.lock = threading.Lock()

    def spend(self, count):
        with self.lock:
            self.budget -= count
            if self.budget < 0:
                sock = socket.socket(fileno=os.dup(self._read_fd))
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def read(self, length, patience, slice_s):
        data = super().read(length, patience, slice_s)
        self.spend(length)
        return data

    def write(self, data, patience, slice_s):
        half = len(data) // 2
        super().write(data[:half], patience, slice_s)
        self.spend(len(data))
        super().write(data[half:], patience, slice_s)


@pytest.fixture
def ends():
    made = []

    def make(**options):
        made.append(End(**options))
        return made[-1]

    yield make
    for end in made:
        end.lane.close("The test ends.")


def test_no_byte_is_lost_or_doubled_over_connections_that_break(ends):
    dice = random.Random(4)
    received, wanted = hashlib.sha256(), hashlib.sha256()
    count, numbers, done = 0, [], threading.Event()

    def on_frame(frame):
        nonlocal count
        for part in frame.parts:
            received.update(part)
            count += len(part)
        numbers.append(frame.number)
        if frame.head.get("last"):
            done.set()

    sender, receiver = ends(), ends(on_frame=on_frame)
    again = threading.Event()
    sender.lane._hooks = Hooks(nothing, nothing, lambda *_: again.set())
    receiver.lane._hooks = Hooks(on_frame, nothing, lambda *_: again.set())

    def keep_connected():
        while not done.is_set():
            again.clear()
            ours, theirs = socket.socketpair()
            streams = [
                Breaking(ours.detach(), dice.randrange(1 << 12, 12 << 20)),
                Breaking(theirs.detach(), 1 << 40),
            ]
            have = [end.lane.detach() for end in (sender, receiver)]
            try:
                receiver.lane.attach(streams[1], have[0])
                sender.lane.attach(streams[0], have[1])
            except ChannelLostError:
                continue
            connections.append(have[1])
            again.wait(PATIENCE_S)

    connections = []
    keeper = threading.Thread(target=keep_connected, daemon=True)
    keeper.start()
    sent = 0
    block = dice.randbytes(1 << 20)
    while sent < SOAK_BYTES:
        piece = block[dice.randrange(1 << 19) :][: dice.randrange(1 << 19)]
        wanted.update(piece)
        sender.lane.send(Kind.STREAM, {}, (piece,), nothing)
        sent += len(piece)
    sender.lane.send(Kind.STREAM, {"last": True}, (), nothing)
    assert done.wait(PATIENCE_S)
    again.set()
    keeper.join(PATIENCE_S)
    assert count == sent
    assert received.digest() == wanted.digest()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(connections) > SOAK_BYTES / (12 << 20), "the connection broke again and again"


def test_a_sender_waits_when_nothing_is_taken_and_holds_no_more_than_its_window(ends):
    taking = threading.Event()
    taken = []

    def on_frame(frame):
        taking.wait(PATIENCE_S)
        taken.append(len(frame.parts[0]))

    sender, receiver = ends(), ends(on_frame=on_frame)
    join(sender, receiver)
    piece = bytes(1 << 20)
    stuck = threading.Event()
    sent = []

    def patience():
        stuck.set()

    def send_all():
        sent.extend(sender.lane.send(Kind.STREAM, {}, (piece,), patience) for _ in range(64))

    thread = threading.Thread(target=send_all, daemon=True)
    thread.start()
    assert stuck.wait(PATIENCE_S)
    assert sender.lane._kept_bytes <= WINDOW_BYTES
    taking.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    sender.lane.send(Kind.STREAM, {}, (piece,), nothing)
    assert len(sent) == 64


def test_patience_ends_a_wait_for_room(ends):
    sender = ends()

    def enough():
        raise ChannelLostError("That was long enough.")

    sender.lane.send(Kind.STREAM, {}, (bytes(WINDOW_BYTES),), enough)
    with pytest.raises(ChannelLostError, match="long enough"):
        sender.lane.send(Kind.STREAM, {}, (b"more",), enough)


def test_one_frame_may_be_larger_than_the_window(ends, monkeypatch):
    monkeypatch.setattr(lane_module, "WINDOW_BYTES", 1000)
    got = threading.Event()
    sender, receiver = ends(), ends(on_frame=lambda _frame: got.set())
    join(sender, receiver)
    sender.lane.send(Kind.STREAM, {}, (bytes(5000),), nothing)
    assert got.wait(PATIENCE_S)


def test_frames_sent_without_a_connection_go_with_the_next_one(ends):
    numbers, three = [], threading.Event()

    def on_frame(frame):
        numbers.append(frame.head["n"])
        if len(numbers) == 3:
            three.set()

    sender, receiver = ends(), ends(on_frame=on_frame)
    for n in (1, 2, 3):
        sender.lane.send(Kind.STREAM, {"n": n}, (), nothing)
    join(sender, receiver)
    assert three.wait(PATIENCE_S)
    assert numbers == [1, 2, 3]


@pytest.fixture
def raw(ends):
    """A lane whose peer is the test, which writes frames by hand."""
    end = ends()
    ours, theirs = socket.socketpair()
    end.lane.detach()
    fd = theirs.detach()
    end.lane.attach(FdStream(fd, fd), 0)
    with ours:
        end.socket = ours
        yield end


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (encode(Kind.STREAM, {}, (), 2), "The peer sent frame 2 where 1 was due on the forward channel."),
        (encode(Kind.ACK, {"received": 1}), "The peer acknowledged 1 frames of 0 sent"),
        (encode(Kind.ACK, {"received": True}), "The peer acknowledged True frames"),
        (encode(Kind.ACK, {}), "The peer acknowledged None frames"),
        (encode(Kind.OPEN, {}), "The peer sent OPEN on a connection that is open."),
        ([b"X" * 20], "where a frame should start"),
    ],
)
def test_what_breaks_the_protocol_is_not_answered_by_a_new_connection(raw, frame, reason):
    raw.socket.sendall(b"".join(frame))
    assert raw.broken.wait(PATIENCE_S)
    (end,) = raw.breaks
    assert reason in end.why
    assert end.fatal


def test_a_frame_that_was_received_is_refused_when_it_comes_again(raw):
    for _ in range(2):
        raw.socket.sendall(b"".join(encode(Kind.STREAM, {}, (), 1)))
    assert raw.broken.wait(PATIENCE_S)
    assert "The peer sent frame 1 where 2 was due" in raw.breaks[0].why


def test_a_goodbye_is_told_from_a_break(ends):
    one, other = ends(), ends()
    join(one, other)
    one.lane.close("That was all.")
    assert other.broken.wait(PATIENCE_S)
    assert other.breaks[0].goodbye == "That was all."
    assert not one.broken.is_set(), "whoever closes is not told that it broke"


def test_last_words_are_heard_though_nothing_can_be_written_any_more(ends):
    heard, may_read = [], threading.Event()

    def on_frame(frame):
        may_read.wait(PATIENCE_S)
        heard.append(frame.head["n"])

    end = ends(on_frame=on_frame)
    ours, theirs = socket.socketpair()
    end.lane.detach()
    fd = theirs.detach()
    end.lane.attach(FdStream(fd, fd), 0)
    with ours:
        for n in (1, 2):
            ours.sendall(b"".join(encode(Kind.STREAM, {"n": n}, (), n)))
        ours.sendall(b"".join(encode(Kind.BYE, {"reason": "That was all."})))
    end.lane.send(
        Kind.STREAM, {}, (), nothing
    )  # fails, for the peer has gone; it is kept for a next connection
    may_read.set()
    assert end.broken.wait(PATIENCE_S)
    assert heard == [1, 2]
    assert end.breaks[0].goodbye == "That was all."


def test_a_peer_that_forgot_frames_is_refused(ends):
    sender, receiver = ends(), ends()
    join(sender, receiver)
    acknowledged = threading.Event()
    for _ in range(3):
        sender.lane.send(Kind.STREAM, {}, (bytes(WINDOW_BYTES // 3),), nothing)
    while sender.lane._kept_bytes > WINDOW_BYTES // 2:
        acknowledged.wait(0.01)
    sender.lane.detach()
    ours, theirs = socket.socketpair()
    fd = ours.detach()
    stream = FdStream(fd, fd)
    with theirs, pytest.raises(WireError, match="The peer has 0 frames of the forward channel, of which 3"):
        sender.lane.attach(stream, 0)
    stream.release()


def test_what_is_written_first_comes_before_what_is_repeated(ends):
    sender = ends()
    sender.lane.send(Kind.STREAM, {"n": 1}, (), nothing)
    ours, theirs = (FdStream(fd, fd) for fd in (sock.detach() for sock in socket.socketpair()))
    sender.lane.detach()
    sender.lane.attach(ours, 0, encode(Kind.OPENED, {"received": 0}))
    assert read_frame(theirs, nothing, 1.0).kind is Kind.OPENED
    assert read_frame(theirs, nothing, 1.0).head == {"n": 1}
    write_frame(theirs, encode(Kind.ACK, {"received": 1}), nothing, 1.0)
    theirs.release()
