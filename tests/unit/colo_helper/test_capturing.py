"""A capture of what is compared, from the checkpoint that a request makes to a later one, written for nobody but root."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import pytest

from colo_helper.control.protocol import Request
from colo_helper.proxy.capture import Mark, Patience, Reached, Sent, Whose, read_capture
from colo_helper.replication import capturing
from colo_helper.traffic.framing import RawFrame, pack
from tests.unit.colo_helper.proxy.frames import udp
from tests.unit.colo_helper.replication_pair import PATIENCE_S, VM, eventually, pairs

WORD = udp(b"said by both")


@pytest.fixture
def clock(monkeypatch):
    """The clock by which a capture ends."""
    found = SimpleNamespace(now_s=0.0, monotonic=lambda: found.now_s)
    monkeypatch.setattr(capturing, "time", found)
    return found


@pytest.fixture
def both():
    with pairs() as pair:
        yield pair().start().replicating()


def asked(both, seconds=5):
    """Ask for a capture, and wait until it has begun."""
    request = Request("capture", seconds=seconds)
    epoch = both.p_monitor.state.epoch
    both.p_inbox.put_request(request)
    eventually(lambda: both.p_monitor.state.epoch > epoch, "the checkpoint with which it begins")
    return request


def answer(request):
    return request._answer.get(timeout=PATIENCE_S)


def say(host, frame=WORD):
    """Have a guest send a frame."""
    host.filters[host.find(VM)].ends[0].from_guest.sendall(pack(RawFrame(bytes(12) + frame, 12)))


def kept(both):
    path = both.directory / "primary" / capturing.FILE
    with path.open("rb") as file:
        return list(read_capture("it", file)), path


def test_all_that_both_say_between_two_checkpoints(both, clock):
    request = asked(both)
    say(both.primary_host)
    say(both.secondary_host)
    to_network = both.primary_host.filters[both.primary_host.find(VM)].ends[0].to_network
    to_network.settimeout(PATIENCE_S)
    assert to_network.recv(1 << 16).endswith(WORD)
    both.ask("primary", "checkpoint")
    assert request._answer.empty()
    clock.now_s = 5.0
    both.ask("primary", "checkpoint")
    found = answer(request)
    rows, path = kept(both)
    assert (found["ok"], found["path"], found["packets"], found["full"]) == (True, str(path), 2, False)
    assert found["sentence"] == f"2 packets were captured into {path}."
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert rows[0] == Patience(both.primary.config.latency_ms, 2 * both.primary.config.latency_ms)
    marks = [(row.mark, row.epoch) for row in rows if isinstance(row, Reached)]
    first = marks[0][1]
    assert marks == [
        (Mark.CUT, first),
        (Mark.RUN, first),
        (Mark.CUT, first + 1),
        (Mark.RUN, first + 1),
        (Mark.CUT, first + 2),
    ]
    assert [(row.whose, row.nic, row.frame) for row in rows if isinstance(row, Sent)] == [
        (Whose.PRIMARY, 0, WORD),
        (Whose.SECONDARY, 0, WORD),
    ]


def test_one_at_a_time(both, clock):
    first = asked(both)
    assert both.ask("primary", "capture")["code"] == "busy"
    clock.now_s = 5.0
    both.ask("primary", "checkpoint")
    assert answer(first)["ok"]


def test_what_was_captured_until_the_session_ends_is_kept(both, clock):
    request = asked(both)
    say(both.primary_host)
    both.p_inbox.put_stop("An operator asked to stop.")
    found = answer(request)
    assert found["ok"]
    assert found["sentence"].endswith("The session has ended.")
    assert kept(both)[0][1].mark is Mark.CUT


def test_no_more_than_the_limit(both, clock, monkeypatch):
    monkeypatch.setattr(capturing, "_MOST_BYTES", 1 << 20)
    request = asked(both)
    say(both.primary_host, bytes(60_000))
    for _ in range(20):
        say(both.primary_host, bytes(60_000))
    eventually(lambda: both.ask("primary", "checkpoint") and not request._answer.empty(), "it is full")
    found = answer(request)
    assert found["full"]
    assert found["packets"] == 17
    assert found["sentence"].endswith("No more than 1 MiB are kept.")


def test_a_file_that_cannot_be_written(both, clock):
    (both.directory / "primary" / capturing.FILE).mkdir()
    request = asked(both)
    clock.now_s = 5.0
    both.ask("primary", "checkpoint")
    found = answer(request)
    assert found["code"] == "not_written"
    assert found["error"].startswith("0 packets were captured, and cannot be kept: ")
    assert both.phase("primary", "replicating")


def test_where_nothing_is_compared():
    with pairs() as pair:
        both = pair(output="hold").start().replicating()
        found = both.ask("primary", "capture")
    assert (found["code"], found["error"]) == (
        "not_compared",
        "Packets of h1 are not compared: its output is 'hold'.",
    )
