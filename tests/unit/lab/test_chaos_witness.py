"""What the lab's ground of the fault campaign sees where the clients are."""

import socket
import zlib

import pytest

from lab.guests import Answer
from tests.chaos.lab.client import undone
from tests.chaos.lab.listener import Heard, is_answer, longest_silence, speakers
from tests.unit.colo_helper.proxy.frames import tcp


def chained(writes, token, before, counter=100):
    return Answer(counter, writes, token, zlib.crc32(token.encode(), before))


BEFORE = chained(1, "t-1", 0)


def test_an_answer_is_what_follows_from_all_that_was_written():
    assert undone(BEFORE, "t-2", chained(2, "t-2", BEFORE.chain)) == ""


@pytest.mark.parametrize(
    "answer",
    [
        chained(1, "t-2", 0),  # the write before it is gone
        chained(3, "t-2", BEFORE.chain),  # done twice
        chained(2, "t-1", BEFORE.chain),
        chained(2, "t-2", 7),  # another history
        chained(2, "t-2", BEFORE.chain, counter=99),
    ],
)
def test_what_was_heard_and_is_undone_is_found(answer):
    assert undone(BEFORE, "t-2", answer).startswith("What a client had heard is undone: ")


def test_turns_and_silence():
    heard = [Heard(1.0, "xa"), Heard(2.0, "xa"), Heard(9.5, "xb"), Heard(9.6, "xa")]
    assert [one.host for one in speakers(heard)] == ["xa", "xb", "xa"]
    assert longest_silence(heard, 1.5) == 7.5
    assert longest_silence([], 0.0) == 0.0


@pytest.mark.parametrize(
    ("frame", "counts"),
    [
        (tcp(1, payload=b"counter=1"), True),
        (tcp(1, payload=b"counter=1", pad=120), True),
        (tcp(1), False),  # an acknowledgement may be either copy's kernel's
        (tcp(1, pad=60), False),  # padding is no payload
        (tcp(1, payload=b"read", outward=False), False),
        (b"\x00" * 64, False),
    ],
)
def test_an_answer_is_a_piece_of_the_guests_stream(frame, counts):
    assert is_answer(frame, socket.inet_aton("192.0.2.10"), 80) is counts
