"""Replicators get to the release in use by a restart that takes nothing apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ansible.module_host import REPOSITORY, FakeHost, Runner, load, utility

UNIT = "colo-replicator@h1.service"
plan = load(REPOSITORY / "filter_plugins" / "colo_roles.py").FilterModule().filters()["colo_upgrade_plan"]


class Running:
    """A replicator as systemd and /proc show it; ended by a signal, it is there again with the release in use."""

    def __init__(self, host: FakeHost, prefix: Path, proc: Path) -> None:
        self.host, self.prefix, self.proc, self.pid = host, prefix, proc, 100
        self.comes_back = True
        for digest in ("old", "new"):
            (prefix / "releases" / digest).mkdir(parents=True)
            (prefix / "releases" / digest / "release.json").write_text("{}")
        (prefix / "current").symlink_to("releases/new")
        host.answers["systemctl"] = self.systemctl
        self.start("old")

    def start(self, release: str) -> None:
        self.pid += 1
        (self.proc / str(self.pid)).mkdir()
        library = self.prefix / "releases" / release / "site-packages" / "x.so"
        (self.proc / str(self.pid) / "maps").write_text(f"7f00-7f01 r-xp 0 0:0 0  {library}\n")
        self.host.units[UNIT] = ("active", "running", "success")

    def systemctl(self, words: list[str]) -> tuple[int, str, str]:
        if words[1] == "kill":
            assert words == ["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", UNIT]
            if self.comes_back:
                self.start("new")
            return 0, "", ""
        active, sub, result = self.host.units[UNIT]
        return 0, f"MainPID={self.pid}\nActiveState={active}\nSubState={sub}\nResult={result}\n", ""


@pytest.fixture
def running(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    proc = tmp_path / "procs"
    proc.mkdir()
    monkeypatch.setattr(utility("release"), "PROC", proc)
    monkeypatch.setattr(utility("replicator"), "_POLL_S", 0.01)
    (tmp_path / "states" / "h1").mkdir()
    in_phase(host)("replicating")
    return Running(host, tmp_path / "prefix", proc)


@pytest.fixture(name="in_phase")
def in_phase_fixture(host: FakeHost) -> Callable[[str], None]:
    return in_phase(host)


def in_phase(host: FakeHost) -> Callable[[str], None]:
    def write(phase: str) -> None:
        state = {"phase": phase, "reason": f"It is {phase}.", "boot_id": "boot-1"}
        (host.root / "states" / "h1" / "state.json").write_text(json.dumps(state))

    return write


def test_a_replicator_of_an_old_release_is_started_anew_once(run: Runner, running: Running) -> None:
    arguments = {"name": "h1", "prefix": str(running.prefix), "wait_replicating": True}
    foretold = run("colo_replicator", check=True, **arguments)
    assert (
        foretold["changed"],
        foretold["found"],
        foretold["outdated"],
        foretold["release"],
        running.pid,
    ) == (
        True,
        "old",
        True,
        "new",
        101,
    )
    done = run("colo_replicator", **arguments)
    assert (done["changed"], done["found"], done["release"], done["phase"]) == (
        True,
        "old",
        "new",
        "replicating",
    )
    again = run("colo_replicator", **arguments)
    assert (again["changed"], again["found"], again["outdated"], running.pid) == (False, "new", False, 102)


def test_where_no_replicator_runs_nothing_is_started(
    run: Runner, running: Running, in_phase: Callable[[str], None]
) -> None:
    running.pid = 0
    running.host.units[UNIT] = ("inactive", "dead", "success")
    in_phase("stopped")
    result = run("colo_replicator", name="h1", prefix=str(running.prefix))
    assert (result["changed"], result["release"]) == (False, "")


def test_a_copy_under_way_is_not_broken_off(
    run: Runner, running: Running, in_phase: Callable[[str], None]
) -> None:
    in_phase("copying")
    result = run("colo_replicator", name="h1", prefix=str(running.prefix))
    assert result["msg"] == (
        "h1 on xa is copying, and its replicator is not started anew now: wait until it replicates. It is copying."
    )
    assert running.pid == 101


def test_one_that_does_not_come_back_is_named(run: Runner, running: Running) -> None:
    running.comes_back = False
    result = run("colo_replicator", name="h1", prefix=str(running.prefix), wait_timeout_s=0)
    assert result["msg"].startswith(
        "The replicator of h1 on xa has not come so far in 0 s that it runs with release new: it is replicating."
    )


def test_a_pair_that_does_not_find_together_is_named(
    run: Runner, running: Running, in_phase: Callable[[str], None]
) -> None:
    in_phase("unprotected")
    result = run(
        "colo_replicator", name="h1", prefix=str(running.prefix), wait_replicating=True, wait_timeout_s=0
    )
    assert "that it replicates: it is unprotected. It is unprotected." in result["msg"]


def side(role: str, phase: str = "replicating", **fields: Any) -> dict[str, Any]:
    entry = {
        "name": "h1",
        "alive": True,
        "stale": False,
        "phase": phase,
        "config": {},
        "domain": {"domid": 1},
    }
    return {"vms": [{**entry, "state": {"role": role, **fields.pop("state", {})}, **fields}]}


def test_whose_replicators_are_started_anew() -> None:
    found = plan("h1", {"xa": side("secondary"), "xb": side("primary")})
    assert found == {"primary": "xb", "secondary": "xa", "problems": [], "wanted": True, "shielded": False}
    assert plan("h1", {"xa": {"vms": []}, "xb": {"vms": []}})["wanted"] is False, "nobody protects it"
    assert plan("h1", {"xa": {"vms": []}, "xb": {"vms": []}})["problems"] == []


def test_an_arbiter_is_shielded_unless_an_operator_has_done_so() -> None:
    arbiter = {"config": {"arbiter": {"endpoints": ["https://w:2379"]}}}
    reports = {"xa": side("primary", **arbiter), "xb": side("secondary", **arbiter)}
    assert plan("h1", reports)["shielded"] is True
    reports["xa"] = side("primary", **arbiter, state={"maintenance": "new disks"})
    assert plan("h1", reports)["shielded"] is False


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        (
            {"xa": side("primary"), "xb": {"unreachable": True}},
            "xb does not answer: bring it back; playbooks/status.yml shows which hosts answer.",
        ),
        (
            {"xa": side("primary", "unprotected"), "xb": side("secondary", "peer_lost")},
            "h1 does not run on two hosts (xa: unprotected, a domain, xb: peer_lost, a domain), and the next step would make "
            "it worse: see playbooks/status.yml.",
        ),
        (
            {"xa": side("primary"), "xb": {"vms": []}},
            "h1 does not run on two hosts (xa: replicating, a domain, xb: nothing is known there), and the next step would "
            "make it worse: see playbooks/status.yml.",
        ),
    ],
)
def test_a_vm_with_one_copy_is_not_touched(reports: dict[str, Any], said: str) -> None:
    found = plan("h1", reports)
    assert (found["problems"], found["wanted"]) == ([said], False)
