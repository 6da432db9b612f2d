"""State and event files, systemd's notifications, the control socket, the command line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest

from colo_helper import commands
from colo_helper.control.client import ask
from colo_helper.control.protocol import MAX_LINE_BYTES, RefusedError
from colo_helper.control.server import ControlServer
from colo_helper.monitor import files
from colo_helper.monitor.monitor import Monitor
from colo_helper.monitor.recent import WINDOW, Recent
from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.state import Checkpoint, State
from colo_helper.replication.config import parse_config
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.runner import Desk
from tests.unit.colo_helper.test_decisions import PRIMARY

RECORD = Checkpoint(1, 2, 3, 4, 0, 4, 5000, 12.5, {"suspend": 1.0}, 2.5, 3.5, "2026-01-01T00:00:00Z")
CHANNELS = {"life": "alive", "peer_epoch": 1, "round_trip": {}, "broken": {}, "reopened": {}}
DOCUMENTED = {
    "format", "vm", "role", "mode", "phase", "reason", "domid", "peer", "epoch", "since", "updated", "updated_monotonic_s",
    "boot_id", "last", "totals", "recent", "progress", "channels", "generation", "ended_generation",
    "packets", "interval", "followed", "maintenance", "shared", "override", "guest_ended",
}  # fmt: skip


@pytest.fixture
def monitor(tmp_path):
    return Monitor(tmp_path, State("h1", "primary", "connecting", "It starts.", "xb"), Notifier(""))


def saved(tmp_path):
    return json.loads((tmp_path / "state.json").read_text())


def test_the_state_file_has_the_documented_fields(monitor, tmp_path):
    monitor.enter("replicating", "Both run.", domid=3)
    monitor.checkpoint(RECORD, CHANNELS)
    state = saved(tmp_path)
    assert set(state) == DOCUMENTED
    assert (state["format"], state["mode"], state["epoch"], state["domid"]) == (1, "colo", 1, 3)
    assert set(state["last"]) == {
        "epoch", "a_pages", "b_pages", "d_pages", "ahead_pages", "sent_pages", "bytes", "pause_ms", "phases_ms",
        "commit_ms", "apply_ms", "completed", "why",
    }  # fmt: skip
    assert state["channels"] == CHANNELS
    assert state["totals"] == {"checkpoints": 1, "bytes": 5000, "b_nonempty": 1}
    assert state["recent"] == {
        "checkpoints": 1,
        "pause_ms": {"p50": 12.5, "p99": 12.5, "max": 12.5},
        "phases_ms": {"suspend": 1.0},
        "commit_ms": 2.5,
        "apply_ms": 3.5,
        "bytes": 5000,
    }


def test_recent_figures_forget_what_is_long_ago():
    recent = Recent()
    for number in range(1, WINDOW + 101):
        recent.add(replace(RECORD, pause_ms=float(number)))
    assert recent.figures()["checkpoints"] == WINDOW
    assert recent.figures()["pause_ms"] == {"p50": 100.0 + WINDOW / 2, "p99": 354.0, "max": 356.0}


def test_progress_ends_with_the_phase(monitor, tmp_path):
    monitor.progress("copy", 7, 1.26)
    assert saved(tmp_path)["progress"] == {"step": "copy", "bytes": 7, "elapsed_s": 1.3}
    monitor.enter("replicating", "Both run.")
    assert saved(tmp_path)["progress"] is None


def test_events_are_appended(monitor, tmp_path):
    monitor.enter("copying", "It copies.")
    monitor.event("copied", "It took 1 s.", bytes=5)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line["sentence"]) for line in lines] == [
        ("copying", "It copies."),
        ("copied", "It took 1 s."),
    ]
    assert lines[1]["bytes"] == 5


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    files.write_json(path, {"epoch": 1})

    def full(_fd):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"epoch": 2})
    assert files.read_json(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("decides", [False, True])
def test_a_full_disk_matters_only_to_what_says_who_has_the_vm(tmp_path, monkeypatch, capsys, decides):
    monitor = Monitor(
        tmp_path, State("h1", "primary", "connecting", "It starts.", "xb"), Notifier(""), decides=decides
    )

    def full(_path, _value):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        for name in ("write_json", "append_line"):
            disk.setattr(f"colo_helper.monitor.monitor.{name}", full)
        _without_room(monitor, decides, capsys)
    assert not (tmp_path / "state.json").exists()
    monitor.catch_up()
    assert saved(tmp_path)["phase"] == ("replicating" if decides else "handed_over")


def _without_room(monitor, decides, capsys):
    monitor.event("lease", "It was not renewed.")
    monitor.checkpoint(RECORD, CHANNELS)
    monitor.progress("copy", 7, 1.26)
    assert monitor.state.epoch == 1
    monitor.enter("replicating", "Both run.")
    assert monitor.state.phase == "replicating"
    with pytest.raises(OSError, match="No space") if decides else nullcontext():
        monitor.enter("handed_over", "It is the other's.", role="secondary")
    # What must be written and was not, was not done.
    assert (monitor.state.phase, monitor.state.role) == (
        ("replicating", "primary") if decides else ("handed_over", "secondary")
    )
    said = capsys.readouterr().err
    assert "h1 lease: It was not renewed.\n" in said
    assert "h1 state.json was not written: [Errno 28] No space left on device\n" in said
    assert "h1 replicating: Both run." in said
    assert ("h1 handed_over: It is the other's." in said) is not decides


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "state.json"
    files.write_json(path, {"value": "a" * 5000})
    done = threading.Event()

    def write():
        for index in range(200):
            files.write_json(path, {"value": "ab"[index % 2] * 5000})
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert set(files.read_json(path)["value"]) in ({"a"}, {"b"})
    thread.join()


def test_systemd_is_told(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = Notifier(path)
        notifier.ready()
        notifier.status("one\ntwo")
        notifier.stopping()
        assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=one two", b"STOPPING=1"]


# ------------------------------------------------------------------------------------------ control socket


@pytest.fixture
def desk(monitor, tmp_path):
    """A control server with its desk, and the inbox behind it."""
    inbox = Inbox()
    made = Desk(parse_config(PRIMARY, "h1"), monitor, inbox)
    path = tmp_path / "control.sock"
    server = ControlServer(path, made.serve)
    server.start()
    made.inbox, made.path, made.server = inbox, str(path), server
    yield made
    server.close()


def test_the_socket_is_for_root_alone(desk):
    assert os.stat(desk.path).st_mode & 0o777 == 0o600


def test_status_is_the_state_file_fresh(desk):
    answer = ask("h1", "status", desk.path)
    assert set(answer) == DOCUMENTED | {"ok"}


def test_a_verb_that_cannot_be_is_refused_at_once(desk):
    answer = ask("h1", "checkpoint", desk.path)
    assert (answer["ok"], answer["code"]) == (False, "not_replicating")
    assert answer["error"].startswith("h1 is connecting, not replicating, so there can be no checkpoint. ")


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"nonsense", "bad_request"), (b"[]", "bad_request"), (b'{"verb": 5}', "bad_request"), (b'{"verb": "x"}', "unknown_verb"),
     (b" " * MAX_LINE_BYTES, "bad_request"), (b'{"verb": "takeover", "forced": true}', "no_reason"),
     (b'{"verb": "maintenance"}', "no_reason"), (b'{"verb": "maintenance", "reason": " "}', "no_reason"),
     (b'{"verb": "maintenance", "reason": 1}', "bad_request"), (b'{"verb": "takeover", "forced": 1}', "bad_request"),
     (b'{"verb": "maintenance", "reason": "a\\nb"}', "bad_request"),
     (b'{"verb": "capture", "seconds": 0}', "bad_request"), (b'{"verb": "capture", "seconds": 601}', "bad_request"),
     (b'{"verb": "capture", "seconds": true}', "bad_request"), (b'{"verb": "capture", "seconds": "1"}', "bad_request"),
     (b'{"verb": "maintenance", "reason": "' + b"x" * 201 + b'"}', "bad_request"),
     (b'{"verb": "maintenance", "reason": "disks"}', "no_arbiter")],
)  # fmt: skip
def test_requests_that_are_none(desk, line, code):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(desk.path)
        client.sendall(line + b"\n")
        answer = json.loads(client.makefile().readline())
    assert (answer["ok"], answer["code"]) == (False, code)


def test_several_requests_on_one_connection(desk):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(desk.path)
        client.sendall(b'{"verb": "status"}\n{"verb": "takeover"}\n')
        file = client.makefile()
        assert [json.loads(file.readline())["ok"] for _ in range(2)] == [True, False]


def test_whoever_waits_is_answered_when_the_replicator_ends(desk):
    answers = {}
    threads = [
        threading.Thread(target=lambda verb=verb: answers.__setitem__(verb, ask("h1", verb, desk.path)))
        for verb in ("stop", "checkpoint")
    ]
    desk._monitor.enter("replicating", "Both run.")
    for thread in threads:
        thread.start()
    while not (desk.inbox.stop_requests and desk.inbox.requests):
        desk.inbox.wait(1.0)
    desk._monitor.enter("stopped", "An operator asked to stop.")
    desk.close()
    desk.server.close(5.0)
    for thread in threads:
        thread.join(5)
    assert (answers["stop"]["ok"], answers["stop"]["phase"]) == (True, "stopped")
    assert answers["checkpoint"]["code"] == "ended"
    assert answers["checkpoint"]["error"] == "The replicator of h1 has ended: An operator asked to stop."


def test_nobody_there(tmp_path):
    with pytest.raises(RefusedError, match="No replicator of h1 answers at") as caught:
        ask("h1", "status", str(tmp_path / "nothing"))
    assert caught.value.code == "not_running"


# ------------------------------------------------------------------------------------------- command line


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "colo_helper.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_the_version():
    assert run("--version").stdout.startswith("colo-helper ")


def test_run_without_a_configuration():
    done = run("run", "no-such-vm")
    assert (done.returncode, done.stderr) == (
        2,
        "/etc/colo/vms/no-such-vm.json cannot be read: No such file or directory.\n",
    )
    assert run("run", "../x").returncode == 2


def test_ctl_without_a_replicator():
    done = run("ctl", "no-such-vm", "status")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == "not_running"


def test_status_shows_what_an_ended_replicator_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "STATE_ROOT", tmp_path)
    (tmp_path / "no-such-vm").mkdir()
    left = Monitor(
        tmp_path / "no-such-vm", State("no-such-vm", "primary", "connecting", "", "xb"), Notifier("")
    )
    left.checkpoint(RECORD, CHANNELS)
    left.enter("unprotected", "The secondary was lost.")
    assert commands.dispatch(["status"]) == 0
    assert capsys.readouterr().out == (
        "no-such-vm: primary, unprotected (the replicator does not run), epoch 1, last pause 12 ms: The secondary was lost.\n"
    )
    assert commands.dispatch(["status", "no-such-vm", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["phase"], state["running"]) == ("unprotected", False)
    assert commands.dispatch(["status", "another"]) == 1
    assert "Nothing is known about a VM named another" in capsys.readouterr().err
