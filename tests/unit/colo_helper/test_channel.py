"""Framing, streams, the forced command and the listener."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.channel import attach, wire
from colo_helper.channel.attach import AttachRefusedError, parse_command
from colo_helper.channel.listener import AttachListener, open_refusal
from colo_helper.channel.stream import ChannelLostError, FdStream, read_frame, write_frame
from colo_helper.channel.wire import Frame, Kind, WireError, encode

DOCUMENTED = re.compile(r"attach ([a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}) (forward|back)")
heads = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.booleans(), max_size=4)


def nothing():
    """Patience without end."""


@pytest.fixture
def streams():
    pairs = []

    def make():
        fds = [sock.detach() for sock in socket.socketpair()]
        pairs.extend(FdStream(fd, fd) for fd in fds)
        return pairs[-2:]

    yield make
    for stream in pairs:
        stream.release()


@given(st.sampled_from(Kind), heads, st.lists(st.binary(max_size=3000), max_size=wire.MAX_PARTS))
def test_frames_travel(kind, head, parts):
    ours, theirs = (FdStream(fd, fd) for fd in (sock.detach() for sock in socket.socketpair()))
    try:
        write_frame(ours, encode(kind, head, parts), nothing, 1.0)
        assert read_frame(theirs, nothing, 1.0) == Frame(kind, head, tuple(parts))
    finally:
        ours.release()
        theirs.release()


@given(st.binary(min_size=wire.PRELUDE_BYTES, max_size=wire.PRELUDE_BYTES))
def test_no_prelude_makes_us_take_much_memory(data):
    try:
        prelude = wire.parse_prelude(data)
    except WireError:
        return
    assert prelude.parts <= wire.MAX_PARTS
    assert prelude.head_bytes <= wire.MAX_HEAD_BYTES


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 400", "The peer sent b'HTTP' where a frame should start"),
        (b"COLO\x02\x01\0\0\0\0\0\0", "The peer speaks version 2 of the framing, we speak 1"),
        (b"COLO\x01\xff\0\0\0\0\0\0", "a frame of the unknown kind 255"),
        (b"COLO\x01\x01\x09\0\0\0\0\0", "A frame with 9 parts is more than the 8 allowed"),
        (b"COLO\x01\x01\0\0\xff\xff\xff\0", "A frame with a head of 16777215 bytes"),
    ],
)
def test_preludes_that_are_refused(data, reason):
    with pytest.raises(WireError, match=reason):
        wire.parse_prelude(data)


def test_parts_are_bounded_together_before_they_are_read():
    prelude = wire.Prelude(Kind.STREAM, 2, 2)
    half = wire.MAX_PAYLOAD_BYTES // 2
    data = half.to_bytes(4, "little") + (half + 1).to_bytes(4, "little")
    with pytest.raises(WireError, match="is more than the 67108864 allowed"):
        wire.parse_lengths(data, prelude)


@pytest.mark.parametrize("head", [b"[1]", b"{", b"\xff", b"[" * 60000])
def test_heads_that_are_refused(head):
    with pytest.raises(WireError, match="The head of a frame is not"):
        wire.parse_head(head)


def test_a_stream_that_ends_in_the_middle_of_a_frame():
    ours, theirs = socket.socketpair()
    stream = FdStream(theirs.fileno(), theirs.detach())
    with ours:
        ours.sendall(encode(Kind.CHUNK, {}, [b"x" * 100])[0] + b"x" * 99)
    with pytest.raises(ChannelLostError, match="The peer closed the channel"):
        read_frame(stream, nothing, 1.0)
    stream.release()


def test_patience_is_asked_while_nothing_moves(streams):
    ours, theirs = streams()

    def enough():
        raise ChannelLostError("That was long enough.")

    with pytest.raises(ChannelLostError, match="long enough"):
        theirs.read(1, enough, 0.01)
    with pytest.raises(ChannelLostError, match="long enough"):
        ours.write(bytes(10 << 20), enough, 0.01)


def test_closing_wakes_a_reader(streams):
    ours, _theirs = streams()
    caught = []

    def read():
        try:
            ours.read(1, nothing, 10.0)
        except ChannelLostError as error:
            caught.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    ours.close()
    thread.join(5)
    assert caught == ["The channel was closed on this side."]


# ------------------------------------------------------------------------------------- the forced command

words = st.text(st.sampled_from("aZ09_.- /\n;$\0é"), max_size=70)


@given(
    st.one_of(
        st.text(),
        st.builds(
            "{} {} {}".format,
            st.sampled_from(["attach", "Attach", "attach "]),
            words,
            st.sampled_from(["forward", "back", "up"]),
        ),
        st.from_regex(DOCUMENTED, fullmatch=True),
    )
)
def test_exactly_the_documented_commands_are_accepted(command):
    match = DOCUMENTED.fullmatch(command)
    if match and ".." not in command:
        assert parse_command(command) == match.groups()
    else:
        with pytest.raises(AttachRefusedError):
            parse_command(command)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (None, "This account has no shell"),
        ("", "This account has no shell"),
        ("sh -c id", "takes 'attach VM forward' and 'attach VM back' only"),
        ("attach h1 forward; id", "takes 'attach VM forward' and 'attach VM back' only"),
        ("attach ../etc forward", "not the name of a VM"),
        ("attach a..b forward", "not the name of a VM"),
        ("attach -h back", "not the name of a VM"),
        (f"attach {'a' * 64} back", "not the name of a VM"),
        ("attach h1 sideways", "must be 'forward' or 'back'"),
        ("attach h1 forward\n", "must be 'forward' or 'back'"),
    ],
)
def test_commands_that_are_refused(command, reason):
    with pytest.raises(AttachRefusedError, match=reason):
        parse_command(command)


def run_attach(command):
    environment = {**os.environ, "SSH_ORIGINAL_COMMAND": command}
    return subprocess.run(
        [sys.executable, "-m", "colo_helper.cli", "attach"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_refuses_with_a_sentence_and_a_status():
    done = run_attach("rm -rf /")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "This account takes 'attach VM forward' and 'attach VM back' only.\n"


def test_the_program_says_that_nobody_waits():
    done = run_attach("attach no-such-vm forward")
    assert done.returncode == 1
    assert done.stderr.startswith("No replicator waits for this VM here (/run/colo/no-such-vm/attach.sock")


def test_attach_starts_without_heavy_imports():
    program = "import sys; import colo_helper.cli, colo_helper.channel.attach; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    heavy = {
        "argparse",
        "json",
        "re",
        "paramiko",
        "asyncio",
        "ctypes",
        "bitarray",
        "zstandard",
        "logging",
        "subprocess",
    }
    assert heavy.isdisjoint(done.stdout.split())


# -------------------------------------------------------------------------------------------- the listener


@pytest.fixture
def listener(tmp_path):
    sessions = []
    refusal = []
    made = AttachListener(tmp_path / "attach.sock", "h1", lambda: "".join(refusal), sessions.append, group="")
    made.start()
    made.sessions, made.refusal = sessions, refusal
    yield made
    made.close()
    for session in sessions:
        session.close()


class Client:
    """An SSH client and its forced command in one."""

    def __init__(self, path, command_channel, opening):
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.said = ""
        self.path, self.fd, self.channel = str(path), theirs.detach(), command_channel
        ours.sendall(b"".join(opening))
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            attach.hand_over(self.path, self.channel, self.fd, self.fd)
        except AttachRefusedError as error:
            self.said = str(error)
        finally:
            os.close(self.fd)

    def end(self):
        self.thread.join(5)
        self.socket.close()
        assert not self.thread.is_alive()
        return self.said


def opening(session="12345678", channel="forward", vm="h1"):
    return encode(Kind.OPEN, {"session": session, "channel": channel, "vm": vm})


def test_two_channels_of_one_session_are_paired(listener, tmp_path):
    path = tmp_path / "attach.sock"
    first = Client(path, "back", opening(channel="back"))
    second = Client(path, "forward", opening())
    while not listener.sessions:
        assert first.thread.is_alive()
        assert second.thread.is_alive()
    session = listener.sessions[0]
    second.socket.sendall(b"".join(encode(Kind.HELLO)))
    assert read_frame(session.forward.stream, nothing, 1.0).kind is Kind.HELLO
    write_frame(session.back.stream, encode(Kind.HELLO), nothing, 1.0)
    assert first.socket.recv(4) == b"COLO"
    listener.sessions.clear()
    session.close()
    assert (first.end(), second.end()) == ("", "")


def test_a_half_whose_other_half_never_came_is_let_go(listener, tmp_path):
    path = tmp_path / "attach.sock"
    stale = Client(path, "forward", opening("stale-session"))
    fresh = [Client(path, "forward", opening("fresh-session"))]
    stale.thread.join(5)
    fresh.append(Client(path, "back", opening("fresh-session", "back")))
    while not listener.sessions:
        assert all(one.thread.is_alive() for one in fresh)
    assert listener.sessions.pop().close() is None
    assert [one.end() for one in [stale, *fresh]] == ["", "", ""]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (opening(vm="h2"), "The client wants VM 'h2', this replicator serves 'h1'."),
        (opening(channel="back"), "The channel 'back' came in by the command for 'forward'."),
        (opening(session="x"), "without the name of a session"),
        (encode(Kind.HELLO), "The channel began with HELLO instead of OPEN."),
        ([b"GET / HTTP/1.1\r\n"], "where a frame should start"),
    ],
)
@pytest.mark.usefixtures("listener")
def test_channels_that_are_refused(tmp_path, frame, reason):
    assert reason in Client(tmp_path / "attach.sock", "forward", frame).end()


def test_nobody_attaches_when_the_replicator_does_not_want_it(listener, tmp_path):
    listener.refusal.append("The copy waits for an operator.")
    assert Client(tmp_path / "attach.sock", "forward", opening()).end() == "The copy waits for an operator."


def test_the_first_frame_that_opens():
    assert (
        open_refusal(Frame(Kind.OPEN, {"session": "12345678", "channel": "back", "vm": "h1"}), "h1", "back")
        == ""
    )
