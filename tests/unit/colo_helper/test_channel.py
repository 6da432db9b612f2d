"""Framing and streams."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.channel import wire
from colo_helper.channel.stream import ChannelLostError, FdStream, read_frame, write_frame
from colo_helper.channel.wire import UNNUMBERED, Frame, Kind, WireError, encode

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


@given(
    st.sampled_from(Kind),
    heads,
    st.lists(st.binary(max_size=3000), max_size=wire.MAX_PARTS),
    st.integers(1, 2**64 - 1),
)
def test_frames_travel(kind, head, parts, number):
    number = 0 if kind in UNNUMBERED else number
    ours, theirs = (FdStream(fd, fd) for fd in (sock.detach() for sock in socket.socketpair()))
    try:
        write_frame(ours, encode(kind, head, parts, number), nothing, 1.0)
        assert read_frame(theirs, nothing, 1.0) == Frame(kind, head, tuple(parts), number)
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
        (b"COLO\x01\x01\0\0\0\0\0\0", "The peer speaks version 1 of the framing, we speak 2"),
        (b"COLO\x02\xff\0\0\0\0\0\0", "a frame of the unknown kind 255"),
        (b"COLO\x02\x01\x09\0\0\0\0\0", "A frame with 9 parts is more than the 8 allowed"),
        (b"COLO\x02\x01\0\0\xff\xff\xff\0", "A frame with a head of 16777215 bytes"),
        (b"COLO\x02\x01\0\0\0\0\0\0\x07", "The peer sent BEAT with the number 7"),
        (b"COLO\x02\x0d\0\0\0\0\0\0", "The peer sent STREAM with the number 0"),
    ],
)
def test_preludes_that_are_refused(data, reason):
    with pytest.raises(WireError, match=reason):
        wire.parse_prelude(data.ljust(wire.PRELUDE_BYTES, b"\0"))


def test_parts_are_bounded_together_before_they_are_read():
    prelude = wire.Prelude(Kind.STREAM, 2, 2, 1)
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
        ours.sendall(encode(Kind.CHUNK, {}, [b"x" * 100], 1)[0] + b"x" * 99)
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
