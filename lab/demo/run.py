"""The demo: install, protect, verify, pull the plug, fail over; every step by the playbooks an operator uses."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import ssh
from lab.demo.timeline import Timeline, judge
from lab.demo.witness import Witness
from lab.errors import LabError
from lab.guests import Client
from lab.lab import Lab
from lab.playbooks import play, play_well
from lab.settings import HOSTS, Settings

_VM = "h1"
_WANTED_CHECKPOINTS = 20
_CHECKPOINTS_TIMEOUT_S = 240
_ANSWER_TIMEOUT_S = 60
_ALIVE = "is not failed over, because it may still run on its primary"
_LEFT_OUT = (
    "What this demo leaves out: an arbiter and fencing (an operator decides who may run here), and disks."
)


def run(settings: Settings, lab: Lab, debian: Sequence[int]) -> int:
    """Run the whole demo; 0 only if everything that it promises held."""
    out = settings.checkout / "build" / "demo"
    timeline = Timeline()
    try:
        _steps(settings, lab, debian, timeline, out)
    finally:
        timeline.write(out / "timeline.json")
    timeline.show()
    broken = judge(timeline, _WANTED_CHECKPOINTS)
    for sentence in broken:
        print(f"NOT SHOWN: {sentence}")
    print(_LEFT_OUT)
    print(f"The record is {out / 'timeline.json'}; the playbooks' output lies beside it.")
    return 1 if broken else 0


def _steps(settings: Settings, lab: Lab, debian: Sequence[int], timeline: Timeline, out: Path) -> None:
    primary, secondary = HOSTS

    def run(name: str, **extra: str) -> None:
        timeline.add("controller", "playbook", f"playbooks/{name}.yml starts")
        took = play_well(settings, name, extra=extra, log=out / f"{name}.log").took_s
        timeline.add("controller", "playbook", f"playbooks/{name}.yml is done ({took:.0f} s)")

    lab.up(debian)
    lab.reset(with_guest=True)
    timeline.add("lab", "ready", f"two fresh Xen hosts, {_VM} runs unprotected on {primary}")
    run("site")
    run("protect", colo_vm=_VM)
    _protect_again(settings, out, timeline)
    _await_checkpoints(settings, primary, _WANTED_CHECKPOINTS, timeline)
    _fail_over_too_soon(settings, out, timeline)
    run("status")
    run("verify", colo_vm=_VM)
    _note_verification(_read(settings, primary, "verify.json"), primary, timeline)

    client = Client(settings, _VM)
    token = f"demo-{int(time.time())}"
    before = client.write(token)
    client.close()
    timeline.counter_before = before.counter
    timeline.add("client", "wrote", f"{token}: counter {before.counter}, writes {before.writes}")
    # Two more: the one under way when the token was written may not hold it, the one after it does.
    made = _read(settings, primary, "state.json")["totals"]["checkpoints"]
    last = _await_checkpoints(settings, primary, made + 2, timeline)
    timeline.checkpoints = last["totals"]["checkpoints"]
    timeline.checkpoints_with_b = last["totals"]["b_nonempty"]

    witness = Witness(settings, _VM)
    try:
        if witness.wait_answer(time.monotonic(), _ANSWER_TIMEOUT_S) is None:
            raise LabError(f"{_VM} does not answer before the power-off")
        lab.host(primary).power_off()
        dead_s = time.monotonic()
        timeline.add(primary, "power-off", "SIGKILL: the host is gone, mid-sentence")
        run("failover", colo_vm=_VM, colo_confirm=_VM)
        sighting = witness.wait_answer(dead_s, _ANSWER_TIMEOUT_S)
        if sighting is not None:
            timeline.counter_goes_on = (
                witness.wait_count(sighting.answer.counter, _ANSWER_TIMEOUT_S) is not None
            )
    finally:
        witness.close()
    if sighting is not None:
        timeline.failover_s = round(sighting.asked_s - dead_s, 2)
        timeline.counter_after = sighting.answer.counter
        timeline.writes_lost = before.writes - sighting.answer.writes
        timeline.add(
            "client",
            "answer",
            f"{_VM} lives on {secondary}: counter {sighting.answer.counter}, writes {sighting.answer.writes}, "
            f"last {sighting.answer.last}",
        )
    _ask_whether_protected(settings, out, timeline)


def _protect_again(settings: Settings, out: Path, timeline: Timeline) -> None:
    """A playbook that has nothing to do says so."""
    again = play_well(settings, "protect", extra={"colo_vm": _VM}, log=out / "protect-again.log")
    timeline.changed_again = sum(again.changed.values())
    timeline.add(
        "controller", "protect", f"once more: {timeline.changed_again} tasks changed ({again.took_s:.0f} s)"
    )


def _fail_over_too_soon(settings: Settings, out: Path, timeline: Timeline) -> None:
    """Two copies at once is what nobody may ask for, even by name."""
    asked = play(
        settings, "failover", extra={"colo_vm": _VM, "colo_confirm": _VM}, log=out / "failover-refused.log"
    )
    timeline.refused_alive = asked.code != 0 and _ALIVE in asked.text
    said = "is refused" if timeline.refused_alive else f"ended with exit code {asked.code}"
    timeline.add("controller", "failover", f"while the primary lives {said}: {_ALIVE} ({asked.took_s:.0f} s)")


def _ask_whether_protected(settings: Settings, out: Path, timeline: Timeline) -> None:
    """Scripts get to know by the exit code that the VM has one copy only."""
    asked = play(settings, "status", log=out / "status-alone.log")
    timeline.said_unprotected = asked.code != 0 and f"{_VM} is not protected" in asked.text
    timeline.add(
        "controller", "status", f"exit code {asked.code} for a VM with one copy ({asked.took_s:.0f} s)"
    )


def _note_verification(verified: dict[str, Any], primary: str, timeline: Timeline) -> None:
    """Take what the verification found into the record."""
    timeline.pages_compared = verified["pages_compared"]
    timeline.pages_different = [frame["gfn"] for frame in verified["different"]]
    timeline.pages_unexplained = verified["unexplained"]
    timeline.state_unexplained = [
        f"{part} {found['record']} {found['instance']} {found['field'] or 'bytes'} at {found['offset']}"
        for part in ("cpu", "devices")
        for found in verified["state"][part]["unexplained"]
    ]
    owners = "; ".join(f"{frame['gfn']:#x} ({frame['reason']})" for frame in verified["different"])
    state = " and ".join(f"{verified['state'][part]['bytes']} bytes of {part}" for part in ("cpu", "devices"))
    timeline.add(
        primary,
        "verified",
        f"{verified['pages_compared']} pages, {state} state compared; different pages: {owners or 'none'}, "
        f"state without a reason: {', '.join(timeline.state_unexplained) or 'none'}",
    )


def _await_checkpoints(settings: Settings, host: str, wanted: int, timeline: Timeline) -> dict[str, Any]:
    """Follow the replicator's events until `wanted` checkpoints are made; its state then."""
    deadline = time.monotonic() + _CHECKPOINTS_TIMEOUT_S
    state: dict[str, Any] = _read(settings, host, "state.json")
    while state["totals"]["checkpoints"] < wanted:
        if state["phase"] != "replicating":
            raise LabError(f"{_VM} on {host} is {state['phase']}: {state['reason']}")
        if time.monotonic() > deadline:
            raise LabError(
                f"{state['totals']['checkpoints']} checkpoints in {_CHECKPOINTS_TIMEOUT_S} s, {wanted} are wanted"
            )
        ssh.run(settings, host, f"/opt/colo-helper/current/bin/colo-helper ctl {_VM} checkpoint")
        state = _read(settings, host, "state.json")
    last = state["last"]
    timeline.add(
        host,
        "checkpoints",
        f"{state['totals']['checkpoints']} made; last: A {last['a_pages']}, B {last['b_pages']}, D {last['d_pages']} pages, "
        f"{last['bytes']} bytes, pause {last['pause_ms']:.0f} ms",
    )
    return state


def _read(settings: Settings, host: str, name: str) -> Any:  # noqa: ANN401 # the replicator's JSON
    return json.loads(ssh.run(settings, host, f"cat /var/lib/colo/{_VM}/{name}"))
