"""Where connections arrive at the secondary: which session each belongs to, and who is sent away with which words."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from colo_helper.channel import attach
from colo_helper.channel.attach import AttachRefusedError
from colo_helper.channel.listener import UNKNOWN, AttachListener, open_refusal
from colo_helper.channel.session import BACK, Session, Timing
from colo_helper.channel.stream import FdStream, read_frame, write_frame
from colo_helper.channel.wire import Frame, Kind, encode

PATIENCE_S = 10.0
TIMING = Timing(30.0)


def nothing():
    """Patience without end."""


def opening(session="12345678", channel="forward", vm="h1", received=0, resumes=False):
    head = {"session": session, "channel": channel, "vm": vm, "received": received, "resumes": resumes}
    return encode(Kind.OPEN, head)


class Listener(AttachListener):
    """One whose sessions are kept for the test."""

    def __init__(self, path):
        self.sessions, self.made, self.refusal = [], [], []
        self.handed_on = threading.Event()
        super().__init__(path, "h1", lambda: "".join(self.refusal), self.make, self.keep, group="")

    def keep(self, session):
        self.sessions.append(session)
        self.handed_on.set()

    def make(self, name):
        self.made.append(Session(name, BACK, TIMING))
        return self.made[-1]


@pytest.fixture
def listener(tmp_path):
    made = Listener(tmp_path / "attach.sock")
    made.start()
    yield made
    made.close()
    for session in made.made:
        session.close()


class Client:
    """An SSH client and its forced command in one."""

    def __init__(self, path, command_channel, frame):
        ours, theirs = socket.socketpair()
        fd = ours.detach()
        self.stream = FdStream(fd, fd)
        self.said = ""
        self.path, self.fd, self.channel = str(path), theirs.detach(), command_channel
        write_frame(self.stream, frame, nothing, 1.0)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            attach.hand_over(self.path, self.channel, self.fd, self.fd)
        except AttachRefusedError as error:
            self.said = str(error)
        finally:
            os.close(self.fd)

    def opened(self):
        """Wait for the answer; returns how many frames the other side has."""
        deadline = time.monotonic() + PATIENCE_S

        def limited():
            assert self.thread.is_alive(), self.said
            assert time.monotonic() < deadline

        frame = read_frame(self.stream, limited, 0.1)
        assert frame.kind is Kind.OPENED
        return frame.head["received"]

    def end(self):
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        self.stream.release()
        return self.said


@pytest.fixture
def client(listener, tmp_path):
    made = []

    def make(channel="forward", frame=None, **head):
        frame = frame or opening(channel=channel, **head)
        made.append(Client(tmp_path / "attach.sock", channel, frame))
        return made[-1]

    make.listener = listener
    yield make
    for one in made:
        one.stream.close()


def begin(client, session="12345678"):
    """Open the connections of a session; returns them by channel."""
    found = {channel: client(channel, session=session) for channel in ("forward", "back", "heartbeat")}
    for one in found.values():
        assert one.opened() == 0
    assert client.listener.handed_on.wait(PATIENCE_S)
    return found


def test_a_session_is_handed_on_once_when_the_needed_channels_are_there(listener, client):
    back = client("back")
    assert back.opened() == 0
    assert listener.sessions == []
    forward = client()
    assert forward.opened() == 0
    heartbeat = client("heartbeat")
    assert heartbeat.opened() == 0
    (session,) = listener.sessions
    frames, came = [], threading.Event()

    def on_frame(frame):
        frames.append(frame)
        came.set()

    session.start(on_frame, nothing)
    write_frame(forward.stream, encode(Kind.HELLO, {}, (), 1), nothing, 1.0)
    assert came.wait(PATIENCE_S)
    session.send(Kind.HELLO, {"here": True})
    assert read_frame(back.stream, nothing, 1.0).head == {"here": True}
    session.close()
    assert [one.end() for one in (forward, back, heartbeat)] == ["", "", ""]


def test_a_connection_that_breaks_is_made_anew(listener, client):
    forward = begin(client)["forward"]
    (session,) = listener.sessions
    frames, second = [], threading.Event()

    def on_frame(frame):
        frames.append(frame.number)
        if frame.number == 2:
            second.set()

    session.start(on_frame, nothing)
    write_frame(forward.stream, encode(Kind.HELLO, {}, (), 1), nothing, 1.0)
    write_frame(forward.stream, encode(Kind.CHUNK, {}, (b"x",), 2), nothing, 1.0)
    assert second.wait(PATIENCE_S)
    again = client(resumes=True)
    assert again.opened() == 2, "both frames have come"
    assert forward.end() == "", "the new connection takes the place of the old one"
    assert frames == [1, 2]
    assert len(listener.sessions) == 1


def test_a_session_that_never_became_whole_is_let_go(listener, client):
    stale = client(session="stale-session")
    stale.opened()
    fresh = begin(client, "fresh-session")
    assert stale.end() == ""
    assert [session.name for session in listener.sessions] == ["fresh-session"]
    assert len(fresh) == 3


def test_nobody_comes_back_to_a_session_that_is_not_known_here(client):
    assert client(resumes=True).end() == UNKNOWN


def test_nobody_comes_back_to_a_session_that_has_ended(listener, client):
    begin(client)
    listener.sessions[0].close()
    assert client(resumes=True).end() == UNKNOWN


def test_a_second_primary_is_refused_and_the_first_goes_on(listener, client):
    begin(client)
    listener.refusal.append("Another primary of h1 is attached already.")
    assert client(session="another-one").end() == "Another primary of h1 is attached already."
    assert client(resumes=True).opened() == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (opening(vm="h2"), "The client wants VM 'h2', this replicator serves 'h1'."),
        (opening(channel="back"), "The channel 'back' came in by the command for 'forward'."),
        (opening(session="x"), "without the name of a session"),
        (opening(received=-1), "with -1 frames received"),
        (opening(received=True), "with True frames received"),
        (opening(resumes="yes"), "without a word on whether it goes on"),
        (opening(received=3), "The peer has 3 frames of the forward channel, of which 0 were sent"),
        (encode(Kind.HELLO, number=1), "The channel began with HELLO instead of OPEN."),
        ([b"GET / HTTP/1.1\r\n\r\n\r\n"], "where a frame should start"),
    ],
)
def test_connections_that_are_refused(client, frame, reason):
    assert reason in client(frame=frame).end()


def test_the_first_frame_that_opens():
    head = {"session": "12345678", "channel": "back", "vm": "h1", "received": 5, "resumes": True}
    assert open_refusal(Frame(Kind.OPEN, head), "h1", "back") == ""
