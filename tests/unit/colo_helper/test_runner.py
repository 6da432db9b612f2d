"""The replicator as a program, but for Xen."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from dataclasses import dataclass

import pytest

from colo_helper.channel import listener
from colo_helper.control.client import ask
from colo_helper.control.protocol import RefusedError
from colo_helper.monitor.monitor import boot_id
from colo_helper.replication import runner, xl
from colo_helper.replication.host import HostError
from tests.unit.colo_helper.emulated_host import EmulatedHost, running_guest
from tests.unit.colo_helper.replication_pair import eventually
from tests.unit.colo_helper.test_decisions import PRIMARY, SECONDARY


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Everything the program needs under a temporary directory; returns what writes its configuration."""
    for name in ("CONFIG", "STATE_DIR", "RUN_DIR"):
        monkeypatch.setattr(runner, name, str(tmp_path / name.lower() / "{vm}"))
    host = EmulatedHost()
    monkeypatch.setattr(xl, "XenHost", lambda *_args, **_options: host)
    monkeypatch.setattr(listener, "AttachListener", functools.partial(listener.AttachListener, group=""))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    @dataclass
    class Program:
        host: EmulatedHost

        def configure(self, value):
            (tmp_path / "config").mkdir()
            (tmp_path / "config" / "h1").write_text(json.dumps(value))

        def leave(self, state):
            (tmp_path / "state_dir" / "h1").mkdir(parents=True)
            (tmp_path / "state_dir" / "h1" / "state.json").write_text(json.dumps(state))

        def state(self):
            return json.loads((tmp_path / "state_dir" / "h1" / "state.json").read_text())

        @property
        def control(self):
            return str(tmp_path / "run_dir" / "h1" / "control.sock")

    yield Program(host)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_primary_without_its_guest(program):
    program.configure(PRIMARY)
    assert runner.run("h1") == 1
    assert (program.state()["phase"], program.state()["reason"]) == (
        "failed",
        "There is no domain named h1 on this host.",
    )
    assert not os.path.exists(program.control)


@pytest.mark.parametrize(
    ("config", "phase"), [(SECONDARY, "peer_lost"), (SECONDARY, "active"), (PRIMARY, "replicating")]
)
def test_what_an_earlier_replicator_left_outlasts_one_that_cannot_start(
    program, monkeypatch, capsys, config, phase
):
    def fails(*_args, **_options):
        raise HostError("'xl domid h1' did not end within 60 s.")

    left = {"role": config["role"], "phase": phase, "domid": 7, "generation": "abc", "boot_id": boot_id()}
    program.leave(left)
    program.configure(config)
    monkeypatch.setattr(xl, "XenHost", fails)
    assert runner.run("h1") == 1
    assert program.state() == left
    assert "What an earlier replicator left is as it was." in capsys.readouterr().err


def test_a_primary_that_was_never_paired(program):
    program.host.add("h1", running_guest())
    program.configure(PRIMARY)
    assert runner.run("h1") == 1
    assert (
        "does not exist on this host: pair the hosts; h1 was not protected yet" in program.state()["reason"]
    )
    assert program.host.domains["h1"].running


def test_a_secondary_waits_until_the_service_manager_stops_it(program):
    program.configure(SECONDARY)
    seen = {}

    def waits():
        try:
            return ask("h1", "status", program.control)["reason"] == "Waiting for the primary."
        except RefusedError:  # the socket is not there yet
            return False

    def watch():
        try:
            eventually(waits, "waiting")
            seen.update(ask("h1", "takeover", program.control))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    assert runner.run("h1") == 0
    thread.join(5)
    assert (seen["ok"], seen["code"]) == (False, "no_copy")
    assert program.state()["phase"] == "stopped"
    assert program.state()["reason"] == "The service manager stopped the replicator (SIGTERM)."
