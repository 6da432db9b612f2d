"""The protection of a VM as a state, and everything that it refuses."""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from colo_helper.replication.config import ArbiterConfig, parse_config
from tests.unit.ansible.module_host import FakeHost, Runner, utility

UNIT = "colo-replicator@h1.service"
PEER = {"name": "xb", "address": "192.168.77.2"}
RUNNING = ("active", "running", "success")


def write_state(
    host: FakeHost, phase: str, role: str = "primary", checkpoints: int = 3, **fields: Any
) -> None:
    directory = host.root / "states" / "h1"
    directory.mkdir(exist_ok=True)
    state = {
        "format": 1, "vm": "h1", "role": role, "phase": phase, "reason": f"It is {phase}.", "boot_id": "boot-1",
        "updated_monotonic_s": time.monotonic() + 3600, "totals": {"checkpoints": checkpoints}, "progress": None, **fields,
    }  # fmt: skip
    (directory / "state.json").write_text(json.dumps(state))


def write_config(host: FakeHost, role: str = "primary") -> dict[str, Any]:
    peer = {**PEER, "port": 22} if role == "primary" else {"name": "xb"}
    config = {
        "format": 1,
        "vm": "h1",
        "role": role,
        "peer": peer,
        "peer_timeout_ms": 5000,
        "bridge": "xenbr0",
    }
    if role == "primary":
        config["interval_ms"] = 1000
        config |= {"min_interval_ms": 100, "latency_ms": 500, "output": "compare"}
    (host.root / "vms" / "h1.json").write_text(json.dumps(config))
    return config


@pytest.fixture
def helper(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """colo_helper is installed; what its control socket answers to which verb."""
    (host.root / "opt" / "current" / "site-packages" / "colo_helper").mkdir(parents=True)
    answers: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(utility("gate"), "request", lambda _vm, verb, _timeout_s, **_why: answers[verb])
    return answers


@pytest.fixture
def starts(host: FakeHost) -> FakeHost:
    """systemctl start and stop have their effect."""

    def systemctl(words: list[str]) -> tuple[int, str, str]:
        if words[1] == "start":
            host.units[UNIT] = RUNNING
        elif words[1] == "stop" or "--now" in words:
            host.units[UNIT] = ("inactive", "dead", "success")
        return 0, "\n".join(
            f"{key}={value}" for key, value in
            zip(("ActiveState", "SubState", "Result"), host.units.get(UNIT, ("inactive", "dead", "success")), strict=True)
        ), ""  # fmt: skip

    host.answers["systemctl"] = systemctl
    return host


def test_a_second_network_stands_in_the_primarys_configuration_only() -> None:
    peer = {**PEER, "port": 22, "heartbeat_address": "192.168.78.2"}
    params = {"name": "h1", "peer": peer, "interval_ms": 1000, "peer_timeout_ms": 5000, "heartbeat_misses": 5}
    params |= {"bridge": "xenbr0", "copy_downtime_ms": 300, "output": "compare"}
    params |= {"min_interval_ms": 100, "latency_ms": 500}
    configuration = utility("vm").configuration
    assert configuration({**params, "role": "primary"})["peer"] == peer
    assert configuration({**params, "role": "secondary"})["peer"] == {"name": "xb"}


@pytest.mark.usefixtures("helper")
def test_primary_is_protected_and_the_second_run_changes_nothing(starts: FakeHost, run: Runner) -> None:
    starts.domains = {"Domain-0": (0, "r-----"), "h1": (1, "-b----")}
    write_state(starts, "replicating")
    first = run("colo_vm", name="h1", role="primary", peer=PEER)
    assert first["changed"] is True
    assert first["protection"] == "running"
    written = json.loads((starts.root / "vms" / "h1.json").read_text())
    assert written == {
        "format": 1, "vm": "h1", "role": "primary", "peer": {"name": "xb", "address": "192.168.77.2", "port": 22},
        "interval_ms": 1000, "copy_downtime_ms": 300, "peer_timeout_ms": 5000, "heartbeat_misses": 5, "bridge": "xenbr0",
        "min_interval_ms": 100, "latency_ms": 500, "output": "compare",
    }  # fmt: skip
    assert starts.ran("systemctl", "enable", "--quiet", UNIT)
    assert starts.ran("systemctl", "start", "--no-block", UNIT)
    second = run("colo_vm", name="h1", role="primary", peer=PEER)
    assert second["changed"] is False


@pytest.mark.parametrize("role", ["primary", "secondary"])
@pytest.mark.usefixtures("helper")
def test_both_sides_are_told_of_the_arbiter(starts: FakeHost, run: Runner, role: str) -> None:
    starts.domains = {"Domain-0": (0, "r-----"), **({"h1": (1, "-b----")} if role == "primary" else {})}
    write_state(starts, "replicating" if role == "primary" else "waiting", role=role)
    arbiter = {"endpoints": ["http://192.168.78.254:2379"], "host": "xa"}
    written = run("colo_vm", name="h1", role=role, peer=PEER, arbiter=arbiter)["config"]
    assert written["arbiter"] == {**arbiter, "lease_s": 10}
    assert parse_config(written, "h1").arbiter == ArbiterConfig(("http://192.168.78.254:2379",), "xa")


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("role", ["primary", "secondary"])
@pytest.mark.usefixtures("helper")
def test_without_a_certificate_for_the_arbiter_nothing_begins(
    starts: FakeHost, run: Runner, role: str, check: bool
) -> None:
    starts.domains = {"h1": (1, "-b----")} if role == "primary" else {}
    files = {name: str(starts.root / f"{name}.pem") for name in ("ca", "certificate", "key")}
    for name in ("ca", "certificate"):
        Path(files[name]).write_text("")
    arbiter = {"endpoints": ["https://192.0.2.13:2379"], "host": "xa", **files}
    assert run("colo_vm", name="h1", role=role, peer=PEER, arbiter=arbiter, check=check)["msg"] == (
        f"There is no {files['key']} on xa, and without it the host cannot ask the arbiter at https://192.0.2.13:2379: run "
        "playbooks/witness.yml; when that etcd is your own, put the file there."
    )
    assert not (starts.root / "vms" / "h1.json").exists()


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"format": 1, "device": []}, "How xb is switched off: field 'devices' is not a list of ways to switch the host off. "
         "Correct its colo_fencing in the inventory."),
        ({"format": 1, "devices": [{"command": ["/no/such/program"]}]},
         "xa cannot switch xb off: There is no program /no/such/program here."),
        ({"format": 1, "devices": [{"command": ["/bin/true"]}]}, None),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("helper")
def test_what_cannot_switch_the_other_host_off_is_refused(
    starts: FakeHost,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    check: bool,
    said: Any,
    sentence: str | None,
) -> None:
    monkeypatch.setattr(utility("gate"), "load", lambda name: importlib.import_module(f"colo_helper.{name}"))
    write_state(starts, "waiting", role="secondary")
    result = run("colo_vm", name="h1", role="secondary", peer=PEER, fencing=json.dumps(said), check=check)
    assert result.get("msg") == sentence


@pytest.mark.usefixtures("helper")
def test_secondary_gets_only_what_it_needs(starts: FakeHost, run: Runner) -> None:
    write_state(starts, "waiting", role="secondary")
    result = run("colo_vm", name="h1", role="secondary", peer={"name": "xa"})
    assert result["changed"] is True
    assert result["config"] == {
        "format": 1, "vm": "h1", "role": "secondary", "peer": {"name": "xa"}, "peer_timeout_ms": 5000, "heartbeat_misses": 5,
        "bridge": "xenbr0",
    }  # fmt: skip


@pytest.mark.usefixtures("helper")
def test_changed_interval_restarts_the_replicator(starts: FakeHost, run: Runner) -> None:
    starts.domains = {"h1": (1, "-b----")}
    starts.units[UNIT] = RUNNING
    write_config(starts)
    write_state(starts, "replicating")
    assert (
        run("colo_vm", name="h1", role="primary", peer=PEER, interval_ms=200, check=True)["restarts"] is True
    )
    result = run("colo_vm", name="h1", role="primary", peer=PEER, interval_ms=200)
    assert result["changed"] is result["restarts"] is True
    assert starts.ran("systemctl", "stop", UNIT)
    assert '-    "interval_ms": 1000' not in result["diff"]["after"]


def test_a_primary_hands_its_vm_over_and_the_second_run_changes_nothing(
    starts: FakeHost, run: Runner, helper: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts.domains = {"h1": (1, "-b----")}
    starts.units[UNIT] = RUNNING
    write_config(starts)
    write_state(starts, "replicating")
    assert run("colo_vm", name="h1", state="standby", check=True)["changed"] is True

    def request(_vm: str, verb: str, _timeout_s: float, **_why: Any) -> dict[str, Any]:
        starts.units[UNIT] = ("inactive", "dead", "success")
        write_state(starts, "standby", role="secondary")
        return helper.get(verb, {"ok": True})

    monkeypatch.setattr(utility("gate"), "request", request)
    first = run("colo_vm", name="h1", state="standby")
    assert (first["changed"], first["protection"], first["phase"]) == (True, "standby", "standby")
    assert run("colo_vm", name="h1", state="standby")["changed"] is False
    again = run("colo_vm", name="h1", role="secondary", peer={"name": "xb"})
    assert (again["changed"], again["protection"]) == (True, "running")
    assert starts.ran("systemctl", "start", "--no-block", UNIT)


@pytest.mark.parametrize(
    ("phase", "role"), [("replicating", "secondary"), ("unprotected", "primary"), ("copying", "primary")]
)
@pytest.mark.usefixtures("helper")
def test_only_a_primary_that_replicates_hands_over(
    starts: FakeHost, run: Runner, phase: str, role: str
) -> None:
    starts.domains = {"h1": (1, "-b----")}
    starts.units[UNIT] = RUNNING
    write_state(starts, phase, role=role)
    result = run("colo_vm", name="h1", state="standby")
    assert result["failed"] is True
    assert "only a primary that replicates can" in result["msg"]


@pytest.mark.usefixtures("helper")
@pytest.mark.parametrize(("role", "other"), [("primary", "secondary"), ("secondary", "primary")])
def test_nothing_stands_in_the_way_of_a_switch_over_that_replicates(
    starts: FakeHost, run: Runner, role: str, other: str
) -> None:
    starts.domains = {"h1": (1, "-b----")}
    starts.units[UNIT] = RUNNING
    write_config(starts, role)
    write_state(starts, "replicating", role)
    asked = run("colo_vm", name="h1", role=other, peer=PEER, check=True)
    assert asked["restarts"] is True
    assert run("colo_vm", name="h1", state="unprotected", check=True)["changed"] is True


@pytest.mark.usefixtures("helper")
def test_a_switch_over_that_was_not_confirmed_is_no_success(
    starts: FakeHost, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts.domains = {"h1": (1, "-b----")}
    starts.units[UNIT] = RUNNING
    write_state(starts, "replicating")

    def request(_vm: str, _verb: str, _timeout_s: float, **_why: Any) -> dict[str, Any]:
        starts.units[UNIT] = ("failed", "failed", "exit-code")
        write_state(starts, "handed_over", role="secondary")
        return {"ok": True}

    monkeypatch.setattr(utility("gate"), "request", request)
    result = run("colo_vm", name="h1", state="standby")
    assert result["failed"] is True
    assert "was not confirmed" in result["msg"]


def test_check_mode_predicts_on_a_host_without_colo_helper(host: FakeHost, run: Runner) -> None:
    host.domains = {"h1": (1, "-b----")}
    result = run("colo_vm", name="h1", role="primary", peer=PEER, check=True)
    assert result["changed"] is True
    assert result["protection"] == "running"
    assert not list((host.root / "vms").iterdir())
    assert not any("start" in call for call in host.calls)


def test_without_colo_helper_the_sentence_names_the_playbook(host: FakeHost, run: Runner) -> None:
    host.domains = {"h1": (1, "-b----")}
    result = run("colo_vm", name="h1", role="primary", peer=PEER)
    assert result["failed"] is True
    assert result["msg"] == "colo_helper is not installed on xa: run playbooks/site.yml first."


@pytest.mark.parametrize(
    ("role", "phase", "domains", "alive", "sentence"),
    [
        ("primary", None, {}, False,
         "There is no domain h1 on xa, its primary. If it runs on its other host, run playbooks/reprotect.yml; if it runs "
         "nowhere, start it here with 'xl create /etc/xen/h1.cfg', then protect it."),
        ("primary", None, None, False,
         "Xen on xa does not tell its domains ('xl list' fails or hangs): mend that first."),
        ("primary", "peer_lost", {"h1": (4, "-b----")}, True,
         "xa holds a secondary copy of h1 that has lost its primary: let it take over with playbooks/failover.yml first."),
        ("primary", "standby", {"h1": (4, "--p---")}, False,
         "The domain h1 on xa is a copy from before a switch-over (standby), not the VM: if that runs on the other host, run "
         "playbooks/reprotect.yml; if it runs nowhere, playbooks/failover.yml lets this copy go on."),
        ("secondary", "active", {"h1": (4, "-b----")}, True,
         "h1 goes on alone on xa since its takeover: make xa its primary in colo_vms, then protect it."),
        ("secondary", "peer_lost", {"h1": (4, "-b----")}, True,
         "The copy of h1 on xa has lost its primary and may be the only one left: run playbooks/failover.yml to go on with it, "
         "or playbooks/unprotect.yml to give it up."),
        ("secondary", None, {"h1": (4, "-b----")}, False,
         "There is a domain h1 on xa, its secondary, that no replicator keeps: it could become a second running copy. "
         "When it is not the VM that people use, remove it there with 'xl destroy h1'."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.usefixtures("helper")
def test_protection_is_refused(
    host: FakeHost,
    run: Runner,
    role: str,
    phase: str | None,
    domains: Any,
    alive: bool,
    sentence: str,
    check: bool,
) -> None:
    host.domains = domains
    if phase:
        write_config(host, "secondary")
        write_state(host, phase, role="secondary")
    if alive:
        host.units[UNIT] = RUNNING
    result = run("colo_vm", name="h1", role=role, peer=PEER, check=check)
    assert result["failed"] is True
    assert result["msg"] == sentence
    assert not any(word in call for call in host.calls for word in ("start", "stop"))


@pytest.mark.usefixtures("helper")
def test_a_state_from_before_the_last_boot_stands_in_nobodys_way(starts: FakeHost, run: Runner) -> None:
    write_state(starts, "peer_lost", role="secondary", boot_id="boot-0")
    result = run("colo_vm", name="h1", role="secondary", peer=PEER, wait=False)
    assert result["changed"] is True


@pytest.mark.usefixtures("helper")
def test_giving_up_quotes_the_replicator(starts: FakeHost, run: Runner) -> None:
    starts.domains = {"h1": (1, "-b----")}
    write_state(starts, "failed", reason="The peer xb refused the key.")
    result = run("colo_vm", name="h1", role="primary", peer=PEER)
    assert result["failed"] is True
    assert result["msg"] == (
        "The replicator of h1 on xa ended as failed: The peer xb refused the key. "
        "Look at: journalctl -u colo-replicator@h1.service"
    )


@pytest.mark.usefixtures("helper")
def test_timeout_tells_the_progress_and_the_reason(starts: FakeHost, run: Runner) -> None:
    starts.domains = {"h1": (1, "-b----")}
    progress = {"step": "copy", "bytes": 50 << 20, "elapsed_s": 12.3}
    write_state(starts, "copying", checkpoints=0, progress=progress)
    result = run("colo_vm", name="h1", role="primary", peer=PEER, wait_timeout_s=0)
    assert result["failed"] is True
    assert result["msg"] == (
        "h1 on xa is not protected after 0 s: its phase is copying, step copy, 50.0 MiB in 12 s. "
        "The replicator says: It is copying. It goes on; run this again to wait longer."
    )


@pytest.mark.usefixtures("helper")
def test_a_state_from_before_the_start_does_not_count(starts: FakeHost, run: Runner) -> None:
    starts.domains = {"h1": (1, "-b----")}
    write_state(starts, "replicating", updated_monotonic_s=0.5)
    result = run("colo_vm", name="h1", role="primary", peer=PEER, wait_timeout_s=0)
    assert result["failed"] is True
    assert "its phase is not known yet" in result["msg"]


def test_unprotecting_stops_and_removes_the_configuration(
    starts: FakeHost, run: Runner, helper: dict[str, Any]
) -> None:
    starts.domains = {"h1": (1, "-b----")}
    starts.units[UNIT] = RUNNING
    write_config(starts)
    write_state(starts, "replicating")
    helper["stop"] = {"ok": True}
    predicted = run("colo_vm", name="h1", state="unprotected", check=True)
    result = run("colo_vm", name="h1", state="unprotected")
    assert predicted["changed"] is result["changed"] is True
    assert predicted["diff"]["after"] == result["diff"]["after"]
    assert not (starts.root / "vms" / "h1.json").exists()
    assert run("colo_vm", name="h1", state="unprotected")["changed"] is False


def test_a_lonely_copy_is_not_removed_unasked(starts: FakeHost, run: Runner, helper: dict[str, Any]) -> None:
    starts.domains = {"h1": (4, "-b----")}
    starts.units[UNIT] = RUNNING
    write_config(starts, "secondary")
    write_state(starts, "peer_lost", role="secondary")
    helper["stop"] = {"ok": True}
    refused = run("colo_vm", name="h1", state="unprotected")
    assert refused["msg"] == (
        "The copy of h1 on xa has lost its primary and may be the only one left: run playbooks/failover.yml to go on with it, "
        "or confirm with its name (h1) that it shall be destroyed."
    )
    assert run("colo_vm", name="h1", state="unprotected", confirm="h1")["changed"] is True


@pytest.mark.usefixtures("helper")
@pytest.mark.parametrize("phase", ["standby", "handed_over"])
def test_nor_is_one_from_before_a_switch_over(starts: FakeHost, run: Runner, phase: str) -> None:
    lost_its_primary(starts, phase)
    refused = run("colo_vm", name="h1", state="unprotected")
    assert refused["msg"].startswith(
        "The copy of h1 on xa is from before a switch-over and may be the only one left: "
    )
    assert not starts.ran("systemctl", "disable", "--quiet", "--now", UNIT)
    (starts.root / "vms" / "h1.json").unlink()
    starts.units[UNIT] = ("inactive", "dead", "success")
    assert run("colo_vm", name="h1", state="unprotected")["changed"] is False, "it is not protected any more"


@pytest.mark.usefixtures("helper")
def test_a_copy_that_nobody_keeps_has_a_way_on(starts: FakeHost, run: Runner) -> None:
    """Its replicator died in the middle of a session; the next one goes on with the copy."""
    lost_its_primary(starts, "replicating")
    starts.units[UNIT] = ("failed", "failed", "signal")
    for check in (True, False):
        refused = run("colo_vm", name="h1", state="unprotected", check=check)
        assert refused["msg"] == (
            "The copy of h1 on xa is left by a replicator that died (replicating) and may be the only one left: 'systemctl "
            "start colo-replicator@h1.service' there, then run playbooks/failover.yml to go on with it, or confirm with its "
            "name (h1) that it shall be destroyed."
        )
    assert (starts.root / "vms" / "h1.json").exists()
    done = run("colo_vm", name="h1", state="unprotected", confirm="h1")
    assert done["changed"] is True
    assert not (starts.root / "vms" / "h1.json").exists()


def test_a_replicator_that_gives_no_answer_leaves_its_copy_its_configuration(
    starts: FakeHost, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_its_primary(starts, "replicating")

    def request(_vm: str, verb: str, _timeout_s: float, **_how: Any) -> dict[str, Any]:
        starts.units[UNIT] = ("inactive", "dead", "success")  # it is stopped by systemd
        raise utility("base").Failure(f"No answer to {verb!r}.", code="no_answer")

    monkeypatch.setattr(utility("gate"), "request", request)
    refused = run("colo_vm", name="h1", state="unprotected")
    assert refused["msg"].startswith(
        "A copy of h1 is left on xa (replicating), and its replicator has not given it up"
    )
    assert (starts.root / "vms" / "h1.json").exists()


@pytest.mark.usefixtures("helper")
@pytest.mark.parametrize(("phase", "domid"), [("waiting", None), ("stopped", 4), ("standby", 3)])
def test_a_domain_that_is_no_copy_is_left_where_it_is(
    starts: FakeHost, run: Runner, phase: str, domid: int | None
) -> None:
    """A stranger's, or the VM that came by itself: the replicator's own copy is gone."""
    lost_its_primary(starts, phase)
    starts.units[UNIT] = ("inactive", "dead", "success")
    write_state(starts, phase, "secondary", domid=domid)
    assert run("colo_vm", name="h1", state="unprotected")["changed"] is True
    assert not (starts.root / "vms" / "h1.json").exists()


def test_a_confirmation_is_told_to_the_replicator(
    starts: FakeHost, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_its_primary(starts)
    asked: list[dict[str, Any]] = []

    def request(_vm: str, verb: str, _timeout_s: float, **how: Any) -> dict[str, Any]:
        asked.append({"verb": verb, **how})
        return {"ok": True}

    monkeypatch.setattr(utility("gate"), "request", request)
    run("colo_vm", name="h1", state="unprotected", confirm="h1")
    assert asked == [{"verb": "stop", "reason": "It was confirmed with the VM's name.", "forced": True}]


@pytest.mark.usefixtures("helper")
def test_a_vm_that_took_over_keeps_running_when_its_protection_ends(starts: FakeHost, run: Runner) -> None:
    starts.domains = {"h1": (4, "-b----")}
    starts.units[UNIT] = RUNNING
    write_config(starts, "secondary")
    write_state(starts, "active", role="secondary")
    result = run("colo_vm", name="h1", state="unprotected")
    assert result["changed"] is True
    assert result["protection"] == "active"
    assert run("colo_vm", name="h1", state="unprotected")["changed"] is False


def lost_its_primary(host: FakeHost, phase: str = "peer_lost") -> None:
    host.domains = {"h1": (4, "-b----")}
    host.units[UNIT] = RUNNING
    write_config(host, "secondary")
    write_state(host, phase, role="secondary")


def test_takeover_and_the_second_run(host: FakeHost, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    lost_its_primary(host)

    def request(_vm: str, verb: str, _timeout_s: float, **_why: Any) -> dict[str, Any]:
        assert verb == "takeover"
        write_state(host, "active", role="secondary")
        return {"ok": True}

    monkeypatch.setattr(utility("gate"), "request", request)
    predicted = run("colo_vm", name="h1", state="active", confirm="h1", check=True)
    result = run("colo_vm", name="h1", state="active", confirm="h1")
    assert predicted["changed"] is result["changed"] is True
    assert predicted["protection"] == result["protection"] == "active"
    assert result["phase"] == "active"
    assert run("colo_vm", name="h1", state="active", confirm="h1")["changed"] is False


def test_takeover_of_a_copy_that_outlived_its_replicator(
    starts: FakeHost, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_its_primary(starts)
    del starts.units[UNIT]

    def request(_vm: str, _verb: str, _timeout_s: float, **_why: Any) -> dict[str, Any]:
        assert starts.ran("systemctl", "start", UNIT)
        write_state(starts, "active", role="secondary")
        return {"ok": True}

    monkeypatch.setattr(utility("gate"), "request", request)
    assert run("colo_vm", name="h1", state="active", confirm="h1")["protection"] == "active"


def test_a_vm_that_was_handed_over_and_stands_still_gets_its_replicator_again(
    starts: FakeHost, run: Runner
) -> None:
    lost_its_primary(starts, "active")
    starts.domains = {"h1": (4, "--p---")}
    starts.units[UNIT] = ("failed", "failed", "start-limit-hit")
    (entry,) = run("colo_vm_info", names=["h1"])["vms"]
    assert entry["sentence"] == (
        "It is active. It is paused, and no replicator lets it run: playbooks/failover.yml starts one."
    )
    result = run("colo_vm", name="h1", state="active", confirm="h1")
    assert (result["changed"], result["protection"]) == (True, "active")
    assert starts.ran("systemctl", "start", UNIT)
    assert run("colo_vm", name="h1", state="active", confirm="h1")["changed"] is False


def test_takeover_without_confirmation(host: FakeHost, run: Runner) -> None:
    lost_its_primary(host)
    result = run("colo_vm", name="h1", state="active", confirm="h2")
    assert result["msg"] == "A takeover of h1 must be confirmed with its name: confirm: h1"


def test_takeover_while_the_primary_lives_is_refused(
    host: FakeHost, run: Runner, helper: dict[str, Any]
) -> None:
    lost_its_primary(host, "replicating")
    sentence = "The primary of h1 is alive: its channels are up. Hand it over with playbooks/switchover.yml."
    helper["takeover"] = {"ok": False, "code": "primary_alive", "error": sentence}
    result = run("colo_vm", name="h1", state="active", confirm="h1")
    assert result["msg"] == f"xa does not take over h1: {sentence}"
    assert result["code"] == "primary_alive"
    predicted = run("colo_vm", name="h1", state="active", confirm="h1", check=True)
    assert predicted["msg"] == (
        "xa would not take over h1 now: its phase is replicating, and only a copy that has lost its primary may. "
        "It is replicating."
    )


@pytest.mark.usefixtures("host")
@pytest.mark.usefixtures("helper")
def test_takeover_without_a_copy(run: Runner) -> None:
    result = run("colo_vm", name="h1", state="active", confirm="h1")
    assert result["msg"] == (
        "xa has no running replicator of h1, so there is no copy that could take over: h1 on xa is not protected."
    )


def test_takeover_on_the_primary(host: FakeHost, run: Runner) -> None:
    host.units[UNIT] = RUNNING
    write_config(host)
    write_state(host, "replicating")
    result = run("colo_vm", name="h1", state="active", confirm="h1")
    assert result["msg"] == "xa is not the secondary of h1: run this on the host that holds the copy."


@pytest.mark.usefixtures("host")
def test_a_name_that_could_leave_its_directory(run: Runner) -> None:
    result = run("colo_vm", name="../h1", state="unprotected")
    assert result["msg"] == (
        "'../h1' is no name for a protected VM: letters, digits, '_', '.' and '-', at most 63, no '..', "
        "and a letter or a digit first."
    )


def test_info_says_that_a_domain_has_no_device_model_any_more(host: FakeHost, run: Runner) -> None:
    host.domains, host.headless = {"h1": (1, "-b----")}, {1}
    write_config(host)
    write_state(host, "unprotected", domid=1)
    (entry,) = run("colo_vm_info")["vms"]
    assert entry["domain"]["headless"] is True
    assert entry["sentence"].endswith(
        "The device model of its domain has ended, so it can do nothing any more."
    )


def test_info_reports_a_dead_replicator(host: FakeHost, run: Runner) -> None:
    host.domains = {"h1": (1, "-b----")}
    host.units[UNIT] = ("failed", "failed", "signal")
    write_config(host)
    write_state(host, "replicating")
    (host.root / "states" / "h1" / "verify.json").write_text('{"unexplained": []}')
    result = run("colo_vm_info")
    entry = result["vms"][0]
    assert entry["name"] == "h1"
    assert entry["alive"] is False
    assert entry["protection"] == "stopped"
    assert entry["domain"] == {"domid": 1, "memory_mib": 100, "state": "-b----", "headless": False}
    assert entry["verification"] == {"unexplained": []}
    assert entry["may_run_vm"] is True
    assert entry["sentence"] == (
        "The replicator of h1 on xa died (signal) while replicating. It last said: It is replicating. "
        "Look at: journalctl -u colo-replicator@h1.service"
    )


def test_info_of_an_unknown_vm_and_of_a_host_without_xen(host: FakeHost, run: Runner) -> None:
    host.domains = None
    entry = run("colo_vm_info", names=["h2"])["vms"][0]
    assert entry["sentence"] == "h2 on xa is not protected."
    assert entry["domains_known"] is False
    assert entry["may_run_vm"] is True


def test_info_of_half_a_state_file(host: FakeHost, run: Runner) -> None:
    write_config(host)
    (host.root / "states" / "h1").mkdir()
    (host.root / "states" / "h1" / "state.json").write_text('{"phase": "repl')
    entry = run("colo_vm_info")["vms"][0]
    assert entry["state"] is None
    assert entry["sentence"] == "The replicator of h1 on xa does not run."


@pytest.fixture
def replicating(host: FakeHost) -> FakeHost:
    host.units[UNIT] = RUNNING
    write_config(host)
    write_state(host, "replicating")
    return host


def compared(*unexplained: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": 4112, "records": 17, "different": list(unexplained), "unexplained": list(unexplained)}


EQUAL_STATE = {"cpu": compared(), "devices": compared()}


@pytest.mark.usefixtures("replicating")
def test_verify_counts_the_pages(run: Runner, helper: dict[str, Any]) -> None:
    explained = [{"gfn": 1044476, "owner": "xenstore", "reason": "its ring"}]
    helper["verify"] = {
        "ok": True,
        "epoch": 43,
        "pages_compared": 25612,
        "different": explained,
        "unexplained": [],
        "state": EQUAL_STATE,
    }
    result = run("colo_vm_verify", name="h1")
    assert result["changed"] is False
    assert (result["verified"], result["pages_compared"], result["different"]) == (True, 25612, explained)
    assert result["state"] == EQUAL_STATE


@pytest.mark.usefixtures("replicating")
def test_verify_fails_for_unexplained_pages(run: Runner, helper: dict[str, Any]) -> None:
    helper["verify"] = {
        "ok": True,
        "epoch": 43,
        "pages_compared": 25612,
        "different": [],
        "unexplained": [4660, 4661],
        "state": EQUAL_STATE,
    }
    result = run("colo_vm_verify", name="h1")
    assert result["failed"] is True
    assert result["msg"] == (
        "2 of 25612 pages (first: frame 0x1234) of h1 differ between xa and xb without an explanation: xb does not hold a copy "
        "of it. Keep /var/lib/colo/h1/verify.json of xa for a report, then protect h1 anew."
    )


@pytest.mark.usefixtures("replicating")
def test_verify_fails_for_unexplained_state(run: Runner, helper: dict[str, Any]) -> None:
    rax = {"record": "CPU", "instance": 1, "field": "rax", "offset": 512, "length": 8, "reason": "none"}
    section = {"record": "e1000", "instance": 0, "field": "", "offset": 7, "length": 2, "reason": "none"}
    helper["verify"] = {
        "ok": True,
        "epoch": 43,
        "pages_compared": 25612,
        "different": [],
        "unexplained": [],
        "state": {"cpu": compared(rax), "devices": compared(section, section)},
    }
    result = run("colo_vm_verify", name="h1")
    assert result["failed"] is True
    assert result["state"]["cpu"]["unexplained"] == [rax]
    assert result["msg"].startswith(
        "1 field of the CPU state (first: CPU 1, rax at 512) and 2 fields of the device state (first: e1000 0, bytes at 7) of "
        "h1 differ between xa and xb without an explanation: xb does not hold a copy of it. "
    )


@pytest.mark.usefixtures("replicating")
def test_verify_takes_memory_alone_for_no_proof(run: Runner, helper: dict[str, Any]) -> None:
    helper["verify"] = {"ok": True, "epoch": 43, "pages_compared": 9, "different": [], "unexplained": []}
    result = run("colo_vm_verify", name="h1")
    assert result["failed"] is True
    assert "compared memory only" in result["msg"]


@pytest.mark.usefixtures("replicating")
def test_verify_refused(run: Runner, helper: dict[str, Any]) -> None:
    helper["verify"] = {"ok": False, "code": "not_replicating", "error": "h1 is copying, not replicating."}
    result = run("colo_vm_verify", name="h1")
    assert result["msg"] == "h1 on xa was not verified: h1 is copying, not replicating."


@pytest.mark.usefixtures("replicating")
def test_verify_compares_nothing_in_check_mode(run: Runner) -> None:
    assert run("colo_vm_verify", name="h1", check=True)["verified"] is False


@pytest.mark.usefixtures("host")
@pytest.mark.usefixtures("helper")
def test_verify_without_replicator(run: Runner) -> None:
    assert run("colo_vm_verify", name="h1")["msg"] == "h1 cannot be verified: h1 on xa is not protected."


def test_without_the_helper_that_is_what_is_said(host: FakeHost, run: Runner) -> None:
    sentence = "colo_helper is not installed on xa: run playbooks/site.yml first."
    assert run("colo_vm_verify", name="h1")["msg"] == sentence
    assert run("colo_vm", name="h1", state="active", confirm="h1")["msg"] == sentence


def test_gate_talks_to_the_client_of_the_release_in_use(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client of this checkout against no socket: its sentence comes through."""
    release = host.root / "opt" / "releases" / "d"
    release.mkdir(parents=True)
    (release / "site-packages").symlink_to(Path(__file__).resolve().parents[3])
    (host.root / "opt" / "current").symlink_to("releases/d")
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(utility("base").Failure) as failure:
        utility("gate").request("no-such-vm", "status", 1.0)
    assert failure.value.sentence.startswith(
        "No replicator of no-such-vm answers at /run/colo/no-such-vm/control.sock:"
    )
    assert failure.value.fields == {"code": "not_running"}
