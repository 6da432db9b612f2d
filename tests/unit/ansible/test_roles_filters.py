"""Who has which role now, and who shall have it next."""

from typing import Any

import pytest

from tests.unit.ansible.module_host import REPOSITORY, load

FILTERS = load(REPOSITORY / "filter_plugins" / "colo_roles.py").FilterModule().filters()
DOMAIN = {"domid": 3, "state": "-b----"}
SILENT = {"unreachable": True}
NOTHING: dict[str, Any] = {"vms": []}


def report(phase: str, role: str, **fields: Any) -> dict[str, Any]:
    """What colo_vm_info says of h1 on a host; ``state`` adds to what its replicator says."""
    state = {"role": role, "phase": phase, "since": "2026-01-01T12:00:00.000Z", **fields.pop("state", {})}
    entry = {
        "name": "h1",
        "alive": True,
        "stale": False,
        "phase": phase,
        "protection": "running",
        "domain": DOMAIN,
    }
    return {"vms": [{**entry, "state": state, **fields}]}


TAKEN_OVER = report("active", "secondary", protection="active")
BOOTED = report("", "primary", alive=False, stale=True, domain=None, protection="stopped")


@pytest.mark.parametrize(
    ("reports", "plan"),
    [
        ({"xa": report("replicating", "primary"), "xb": report("replicating", "secondary")}, ("xa", "xb")),
        ({"xa": report("replicating", "secondary"), "xb": report("replicating", "primary")}, ("xb", "xa")),
        ({"xa": report("standby", "secondary"), "xb": report("unprotected", "primary")}, ("xa", "xb")),
    ],
)
def test_who_hands_over_to_whom(reports: dict[str, Any], plan: tuple[str, str]) -> None:
    found = FILTERS["colo_switch_plan"]("h1", reports)
    assert (found["source"], found["target"], found["problems"]) == (*plan, [])


@pytest.mark.parametrize(
    ("reports", "sentence"),
    [
        (
            {"xa": report("unprotected", "primary"), "xb": report("peer_lost", "secondary")},
            "xa: unprotected, xb: peer_lost",
        ),
        (
            {"xa": report("replicating", "primary"), "xb": {"unreachable": True}},
            "xb does not answer: bring it back; playbooks/status.yml shows which hosts answer.",
        ),
        ({"xa": {"vms": []}, "xb": {"vms": []}}, "xa: no state, xb: no state"),
    ],
)
def test_what_cannot_be_switched_over(reports: dict[str, Any], sentence: str) -> None:
    assert sentence in FILTERS["colo_switch_plan"]("h1", reports)["problems"][0]


@pytest.mark.parametrize(
    ("reports", "source", "target"),
    [
        ({"xa": BOOTED, "xb": TAKEN_OVER}, "xb", "xa"),
        ({"xa": NOTHING, "xb": TAKEN_OVER}, "xb", "xa"),
        ({"xa": report("standby", "primary"), "xb": TAKEN_OVER}, "xb", "xa"),
        (
            {"xa": report("unprotected", "primary"), "xb": report("waiting", "secondary", domain=None)},
            "xa",
            "xb",
        ),
        ({"xa": report("failed", "primary", alive=False), "xb": NOTHING}, "xa", "xb"),
    ],
)
def test_between_whom_a_vm_is_protected_again(reports: dict[str, Any], source: str, target: str) -> None:
    found = FILTERS["colo_reprotect_plan"]("h1", reports)
    assert found == {
        "source": source,
        "target": target,
        "problems": [],
        "wanted": True,
        "sentence": f"h1 runs on {source}, and {target} gets its copy.",
    }


@pytest.mark.parametrize(
    ("reports", "sentence"),
    [
        ({"xa": SILENT, "xb": TAKEN_OVER}, "xa does not answer: bring it back; playbooks/status.yml shows which hosts answer."),
        ({"xa": BOOTED, "xb": report("peer_lost", "secondary")},
         "h1 runs on no host for sure (xa: no phase, no domain, xb: peer_lost, a domain); see playbooks/status.yml and "
         "docs/operations/failover.md."),
        ({"xa": report("unprotected", "primary"), "xb": TAKEN_OVER},
         "TWO COPIES of h1 may be running (xa: unprotected, a domain, xb: active, a domain). Decide at once which one is right "
         "and remove the other with 'xl destroy h1' on its host."),
        ({"xa": NOTHING, "xb": NOTHING},
         "h1 runs on no host for sure (xa: nothing is known there, xb: nothing is known there); see playbooks/status.yml and "
         "docs/operations/failover.md."),
    ],
)  # fmt: skip
def test_a_vm_that_is_nowhere_for_sure(reports: dict[str, Any], sentence: str) -> None:
    found = FILTERS["colo_reprotect_plan"]("h1", reports)
    assert found["problems"] == [sentence]
    assert not found["wanted"]


@pytest.mark.parametrize(
    ("xb", "now", "sentence"),
    [
        (report("replicating", "primary"), "2026-01-02T00:00:00Z", "h1 is protected from xb already."),
        (report("unprotected", "primary", state={"maintenance": "disks"}), "2026-01-02T00:00:00Z",
         "h1 is in maintenance: disks."),
        (TAKEN_OVER, "2026-01-01T12:04:59Z",
         "h1 is as it is on xb for 299 s only: it is protected again after 300 s without a change."),
        (TAKEN_OVER, "2026-01-01T12:05:00Z", ""),
    ],
)  # fmt: skip
def test_when_a_timer_leaves_a_vm_alone(xb: dict[str, Any], now: str, sentence: str) -> None:
    found = FILTERS["colo_reprotect_plan"]("h1", {"xa": BOOTED, "xb": xb}, 300, now)
    assert found["problems"] == []
    assert found["wanted"] is (not sentence)
    assert found["sentence"] == (sentence or "h1 runs on xb, and xa gets its copy.")
