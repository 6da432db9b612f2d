"""The counting service as the guest runs it, over a real socket pair."""

import importlib.util
import socket
import zlib
from pathlib import Path

import pytest

import lab
from lab.guests import Answer, check_name, parse_answer

_PATH = Path(lab.__file__).parent / "files" / "guest" / "counter.py"
_SPEC = importlib.util.spec_from_file_location("counter", _PATH)
counter = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(counter)


def answer(state, line):
    return parse_answer(state.answer(line) + "\n")


def test_every_answer_tells_ticks_writes_and_history():
    state = counter.Counter(work_pages=2)
    assert answer(state, "read") == Answer(0, 0, "-", 0)
    state.tick()
    assert answer(state, "write a") == Answer(1, 1, "a", zlib.crc32(b"a"))
    assert answer(state, "write b") == Answer(1, 2, "b", zlib.crc32(b"ab"))


def test_a_tick_dirties_the_pages_it_was_told_to():
    state = counter.Counter(work_pages=3)
    before = bytes(state.arena)
    state.tick()
    after = bytes(state.arena)
    size = counter.PAGE
    changed = [i for i in range(0, len(before), size) if before[i : i + size] != after[i : i + size]]
    assert len(changed) == 3


def test_requests_in_pieces_and_in_one_piece():
    state = counter.Counter(1)
    ours, theirs = socket.socketpair()
    pending = {theirs: b""}
    with ours, theirs:
        ours.sendall(b"wri")
        assert counter.receive(state, theirs, pending)
        ours.sendall(b"te x\nread\n")
        assert counter.receive(state, theirs, pending)
        lines = ours.recv(4096).decode().splitlines(keepends=True)
        assert [parse_answer(line).writes for line in lines] == [1, 1]


def test_a_client_that_leaves_or_floods_is_dropped():
    state = counter.Counter(1)
    ours, theirs = socket.socketpair()
    with theirs:
        assert (
            not counter.receive(state, theirs, {theirs: b"x" * (counter.LINE_LIMIT + 1)})
            if ours.send(b"y")
            else False
        )
        ours.close()
        assert not counter.receive(state, theirs, {theirs: b""})


def test_unknown_requests_are_named():
    assert counter.Counter(1).answer("jump 3") == "error=unknown-request-jump"
    with pytest.raises(ValueError, match="not an answer"):
        parse_answer("error=unknown-request-jump\n")


def test_unknown_guests_are_named():
    with pytest.raises(lab.errors.LabError, match="no guest nosuch; it has h1, h2, pvh1, pv1"):
        check_name("nosuch")


def test_one_answer_is_the_same_in_every_copy_and_one_is_in_none():
    states = [counter.Counter(work_pages=1) for _ in range(2)]
    states[1].tick()
    assert {state.answer("echo hello") for state in states} == {"echo=hello"}
    assert len({state.answer("clock") for state in states}) == 2
