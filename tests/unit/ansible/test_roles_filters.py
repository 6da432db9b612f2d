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
        "domains_known": True,
    }
    return {"vms": [{**entry, "state": state, **fields}]}


TAKEN_OVER = report("active", "secondary", protection="active")
BOOTED = report("", "primary", alive=False, stale=True, domain=None, protection="stopped")
#: Somebody has started it since the host's boot.
BY_HAND = report("", "secondary", alive=False, stale=True, protection="stopped")


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
    ("reports", "elsewhere"),
    [
        ({"xa": report("replicating", "primary"), "xb": report("replicating", "secondary")}, False),
        ({"xa": report("replicating", "secondary"), "xb": report("replicating", "primary")}, True),
        ({"xa": NOTHING, "xb": NOTHING}, False),
        ({"xa": NOTHING, "xb": TAKEN_OVER}, True),
        ({"xa": BOOTED, "xb": BY_HAND}, True),
        ({"xa": BOOTED, "xb": report("unprotected", "primary")}, True),
        ({"xa": report("unprotected", "primary"), "xb": report("waiting", "secondary", domain=None)}, False),
    ],
)
def test_a_vm_is_not_protected_from_where_it_does_not_run(reports: dict[str, Any], elsewhere: bool) -> None:
    sentence = (
        "h1 runs on xb, and colo_vms has xa as its primary: playbooks/reprotect.yml protects it from where it runs; or swap "
        "its hosts in colo_vms, then run this again. Nothing was changed."
    )
    assert FILTERS["colo_protect_problems"]("h1", reports, "xa") == [sentence] * elsewhere


def test_what_may_run_on_both_hosts_is_not_protected() -> None:
    found = FILTERS["colo_protect_problems"](
        "h1", {"xa": BY_HAND, "xb": report("connecting", "primary")}, "xa"
    )
    assert found == [
        "TWO COPIES of h1 may be running (xa: no phase, a domain, xb: connecting, a domain). Decide at once which one is right "
        "and remove the other with 'xl destroy h1' on its host."
    ]


def test_a_copy_may_go_when_confirmed_or_when_the_vm_runs_elsewhere() -> None:
    confirmation = FILTERS["colo_discard_confirmation"]
    lonely = report("peer_lost", "secondary", state={"generation": "g1"})

    def runs(phase: str = "unprotected", **fields: Any) -> dict[str, Any]:
        return report(
            phase, "primary", state={"generation": "g1", "domid": 3, **fields.pop("state", {})}, **fields
        )

    assert confirmation("h1", {"xa": NOTHING, "xb": lonely}, "xb") == ""
    assert confirmation("h1", {"xa": SILENT, "xb": lonely}, "xb", "h2") == ""
    assert confirmation("h1", {"xa": NOTHING, "xb": lonely}, "xb", "h1") == "h1"
    assert confirmation("h1", {"xa": runs(), "xb": lonely}, "xb") == "h1"
    assert confirmation("h1", {"xa": lonely, "xb": runs("stopped", alive=False)}, "xa") == "h1"
    for not_it in (
        runs("handed_over"),  # a copy, too
        runs(domain={**DOMAIN, "headless": True}),
        runs(domain={**DOMAIN, "state": "---sc-"}),
        runs(domain={**DOMAIN, "state": "--p---"}),
        runs(domain={**DOMAIN, "domid": 4}),
        runs("awaiting_guest", state={"generation": "", "domid": None}),
        runs(state={"generation": "g2"}),  # its host was started anew
        BY_HAND,
    ):
        assert confirmation("h1", {"xa": not_it, "xb": lonely}, "xb") == ""
    nothing_known = report("peer_lost", "secondary")
    assert confirmation("h1", {"xa": runs(state={"generation": ""}), "xb": nothing_known}, "xb") == ""


def test_what_colo_vms_does_not_know_of_is_not_restarted_with_its_host() -> None:
    found = FILTERS["colo_unknown_problems"]
    copy = {**report("peer_lost", "secondary")["vms"][0], "config": {"role": "secondary"}}
    ended = {**report("stopped", "primary", alive=False)["vms"][0], "config": None}
    assert found({"vms": [copy, {**ended, "name": "h2"}]}, "xb", ["h1"]) == []
    assert found({"vms": [copy]}, "xb", []) == [
        "h1 is protected on xb (peer_lost), and colo_vms says nothing of that, so nobody would look after it: correct "
        "colo_vms, or end it there: ansible xb -m colo_vm -a 'name=h1 state=unprotected'."
    ]


def test_which_replicator_is_the_primary() -> None:
    primary_now = FILTERS["colo_primary_now"]
    pair = {"xa": report("replicating", "secondary"), "xb": report("replicating", "primary")}
    assert primary_now("h1", pair) == "xb"
    assert primary_now("h1", {"xa": SILENT, "xb": report("unprotected", "primary")}) == "xb"
    assert primary_now("h1", {"xa": NOTHING, "xb": SILENT}) == ""


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
        ({"xa": BOOTED, "xb": BY_HAND}, "xb", "xa"),
        ({"xa": report("standby", "primary"), "xb": BY_HAND}, "xb", "xa"),
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
        ({"xa": TAKEN_OVER, "xb": BY_HAND},
         "TWO COPIES of h1 may be running (xa: active, a domain, xb: no phase, a domain). Decide at once which one is right "
         "and remove the other with 'xl destroy h1' on its host."),
        ({"xa": BOOTED, "xb": report("", "secondary", stale=True)},
         "h1 runs on no host for sure (xa: no phase, no domain, xb: no phase, a domain); see playbooks/status.yml and "
         "docs/operations/failover.md."),
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
        (BY_HAND, "2026-01-02T00:00:00Z", "h1 was started on xb by somebody, not by a replicator: a timer leaves it alone."),
    ],
)  # fmt: skip
def test_when_a_timer_leaves_a_vm_alone(xb: dict[str, Any], now: str, sentence: str) -> None:
    found = FILTERS["colo_reprotect_plan"]("h1", {"xa": BOOTED, "xb": xb}, 300, now)
    assert found["problems"] == []
    assert found["wanted"] is (not sentence)
    assert found["sentence"] == (sentence or "h1 runs on xb, and xa gets its copy.")


def test_which_vms_of_a_host_that_lost_everything_get_a_copy_again() -> None:
    pair = {"primary": "xa", "secondary": "xb"}
    vms = dict.fromkeys(("h1", "h2", "h3", "h4", "h5"), pair) | {"h6": {"primary": "xc", "secondary": "xb"}}
    config = {"config": {"vm": "of any content"}}
    xb = [
        {**named("h1", "active", "secondary", protection="active"), **config},
        {**named("h2", "peer_lost", "secondary"), **config},
        named("h3", "stopped", "primary", alive=False),
        {**named("h4", "unprotected", "primary", state={"maintenance": "new disks"}), **config},
    ]
    found = FILTERS["colo_recover_plan"](vms, "xa", {"xa": NOTHING, "xb": {"vms": xb}})
    assert found["vms"] == ["h1"]
    assert len(found["problems"]) == 1
    assert found["problems"][0].startswith(
        "h2 runs on no host for sure (xa: nothing is known there, xb: peer_lost"
    )
    assert found["sentences"] == [
        "h1 runs on xb, and xa gets its copy.",
        found["problems"][0],
        "h3 is left alone: xb does not protect it.",
        "h4 is in maintenance: new disks.",
        "h5 is left alone: xb does not protect it.",
    ]
    found = FILTERS["colo_recover_plan"](vms, "xb", {"xb": NOTHING, "xa": NOTHING, "xc": SILENT})
    assert found["vms"] == []
    assert found["problems"] == [
        "xc does not answer: bring it back; playbooks/status.yml shows which hosts answer."
    ]


ALIVE = ("replicating", "primary"), ("replicating", "secondary")


def named(vm: str, phase: str, role: str, **fields: Any) -> dict[str, Any]:
    """The entry of another VM."""
    return {**report(phase, role, config={}, **fields)["vms"][0], "name": vm}


def test_hosts_are_in_groups_by_what_they_have_now() -> None:
    other = {"vms": [named("web-1.de", "replicating", "secondary"), *report("replicating", "primary")["vms"]]}
    found = FILTERS["colo_live_groups"](
        {
            "xa": BOOTED,
            "xb": TAKEN_OVER,
            "xc": other,
            "xd": SILENT,
            "xe": NOTHING,
            "xf": report("standby", "secondary"),
            "xg": report("", "secondary", alive=False, stale=True),
            "xh": report("", "primary", alive=False, domain=None, domains_known=False),
        }
    )
    assert found == {
        "xa": [],
        "xb": ["colo_running", "colo_running_h1"],
        "xc": ["colo_copies", "colo_copies_web_1_de", "colo_running", "colo_running_h1"],
        "xd": ["colo_silent"],
        "xe": [],
        "xf": ["colo_copies", "colo_copies_h1"],
        "xg": ["colo_running", "colo_running_h1"],
        "xh": ["colo_silent"],
    }


def test_a_host_is_restarted_when_its_vms_run_on_elsewhere() -> None:
    vms = {
        "h1": {"primary": "xa", "secondary": "xb"},
        "h2": {"primary": "xb", "secondary": "xa"},
        "h3": {"primary": "xa", "secondary": "xc"},
        "h4": {"primary": "xb", "secondary": "xc"},
        "h5": {"primary": "xb", "secondary": "xa"},
    }
    reports = {
        "xa": {"vms": [named("h1", *ALIVE[0]), named("h2", *ALIVE[1]), named("h3", *ALIVE[1])]},
        "xb": {"vms": [named("h1", *ALIVE[1]), named("h2", *ALIVE[0])]},
        "xc": {"vms": [named("h3", *ALIVE[0])]},  # the roles were swapped since the inventory was written
    }
    plan = FILTERS["colo_restart_plan"](vms, "xa", reports)
    assert plan == {"hand_over": ["h1"], "peers": {"xb": ["h1", "h2"], "xc": ["h3"]}, "problems": []}


@pytest.mark.parametrize(
    ("xa", "xb", "problem"),
    [
        (
            {"vms": [named("h1", "unprotected", "primary")]},
            {"vms": [named("h1", "waiting", "secondary", domain=None)]},
            "h1 does not run on two hosts (xa: unprotected, a domain, xb: waiting, no domain), and the next step would",
        ),
        (
            {"vms": [named("h1", "", "primary", alive=False)]},
            NOTHING,
            "h1 runs on xa, and nobody protects it: run playbooks/protect.yml, or shut it down first.",
        ),
        ({"vms": [named("h1", *ALIVE[0])]}, SILENT, "xb does not answer: bring it back"),
    ],
)
def test_a_host_with_the_only_copy_of_a_vm_is_not_restarted(
    xa: dict[str, Any], xb: dict[str, Any], problem: str
) -> None:
    vms = {"h1": {"primary": "xa", "secondary": "xb"}}
    plan = FILTERS["colo_restart_plan"](vms, "xa", {"xa": xa, "xb": xb})
    assert len(plan["problems"]) == 1
    assert plan["problems"][0].startswith(problem)


def pair_of(vm: str, primary: str, secondary: str, **fields: Any) -> dict[str, dict[str, Any]]:
    """What both hosts of a VM say of it."""
    return {
        primary: {**named(vm, *ALIVE[0], **fields), "config": {"peer": {"name": secondary}}},
        secondary: {**named(vm, *ALIVE[1]), "config": {"peer": {"name": primary}}},
    }


def fleet_of(*pairs: dict[str, dict[str, Any]], silent: str = "") -> dict[str, Any]:
    """What the hosts xa to xd say of VMs."""
    return {
        host: SILENT if host == silent else {"vms": [pair[host] for pair in pairs if host in pair]}
        for host in ("xa", "xb", "xc", "xd")
    }


@pytest.mark.parametrize(
    ("now", "wanted", "steps"),
    [
        (("xa", "xb"), ("xa", "xb"), []),
        (("xb", "xa"), ("xa", "xb"), [("switch", "xa", "xb", "")]),
        (("xa", "xc"), ("xa", "xb"), [("move", "xa", "xb", "xc")]),
        (("xb", "xa"), ("xa", "xc"), [("switch", "xa", "xb", ""), ("move", "xa", "xc", "xb")]),
        (("xb", "xc"), ("xa", "xb"), [("move", "xb", "xa", "xc"), ("switch", "xa", "xb", "")]),
        (
            ("xc", "xd"),
            ("xa", "xb"),
            [("move", "xc", "xa", "xd"), ("switch", "xa", "xc", ""), ("move", "xa", "xb", "xc")],
        ),
    ],
)
def test_how_a_vm_comes_to_its_hosts(now: Any, wanted: Any, steps: Any) -> None:
    vms = {"h1": {"primary": wanted[0], "secondary": wanted[1]}}
    found = FILTERS["colo_rebalance_plan"](vms, fleet_of(pair_of("h1", *now)))
    assert found["problems"] == []
    assert [
        tuple(step[key] for key in ("do", "primary", "secondary", "old")) for step in found["steps"]
    ] == steps
    assert len(found["sentences"]) == len(steps)
    at = now
    for step in found["steps"]:
        involved = {step["primary"], step["secondary"], step["old"]} - {""}
        assert set(step["hosts"]) == involved
        assert len(step["hosts"]) == len(involved)
        assert set(at) <= involved, "whoever has the VM or its copy takes part"
        at = (step["primary"], step["secondary"])
    assert at == wanted


def test_what_is_left_alone_when_vms_are_brought_to_their_hosts() -> None:
    vms = {vm: {"primary": "xa", "secondary": "xb"} for vm in ("h1", "h2")}
    resting = pair_of("h2", "xb", "xa", state={"maintenance": "new disks"})
    found = FILTERS["colo_rebalance_plan"](vms, fleet_of(resting))
    assert (found["steps"], found["problems"]) == ([], [])
    assert found["sentences"] == [
        "h1 is left alone: no host protects it.",
        "h2 is left alone: it is in maintenance (new disks).",
    ]
    silent = FILTERS["colo_rebalance_plan"](vms, fleet_of(silent="xd"))
    assert silent["sentences"][0] == "h1 is left alone: no host that answers protects it."


def test_a_vm_whose_copy_was_on_a_host_that_is_gone_gets_another() -> None:
    vms = {"h1": {"primary": "xa", "secondary": "xb"}}
    alone = {"xa": {**named("h1", "unprotected", "primary"), "config": {"peer": {"name": "xz"}}}}
    found = FILTERS["colo_rebalance_plan"](vms, fleet_of(alone))
    assert found["problems"] == []
    assert found["steps"] == [
        {"do": "move", "vm": "h1", "primary": "xa", "secondary": "xb", "old": "", "hosts": ["xa", "xb"]}
    ]
    assert found["sentences"] == ["h1 gets its copy on xb: xz, which had it, is not in the inventory."]


@pytest.mark.parametrize(
    ("reports", "problem"),
    [
        (fleet_of(pair_of("h1", "xa", "xc"), silent="xb"), "xb does not answer: bring it back"),
        (
            fleet_of(pair_of("h1", "xa", "xc"), silent="xc"),
            "h1 does not run on two hosts (xa: replicating, a domain), and a step would make it worse",
        ),
        (
            fleet_of({"xb": {**TAKEN_OVER["vms"][0], "config": {"peer": {"name": "xa"}}}}),
            "h1 does not run on two hosts (xb: active, a domain), and a step would make it worse",
        ),
        (
            fleet_of(pair_of("h1", "xa", "xb"), pair_of("h1", "xc", "xd")),
            "h1 does not run on two hosts (xa: replicating, a domain, xb: replicating, a domain, xc: replicating, a domain, xd",
        ),
    ],
)
def test_nothing_is_moved_when_a_vm_does_not_run_on_two_hosts(reports: Any, problem: str) -> None:
    found = FILTERS["colo_rebalance_plan"]({"h1": {"primary": "xa", "secondary": "xb"}}, reports)
    assert found["steps"] == []
    assert len(found["problems"]) == 1
    assert found["problems"][0].startswith(problem)


def test_a_vm_in_maintenance_is_left_alone_whatever_its_other_host_does() -> None:
    resting = pair_of("h1", "xa", "xc", state={"maintenance": "its other host is down"})
    found = FILTERS["colo_rebalance_plan"](
        {"h1": {"primary": "xa", "secondary": "xb"}}, fleet_of(resting, silent="xc")
    )
    assert found == {
        "steps": [],
        "problems": [],
        "sentences": ["h1 is left alone: it is in maintenance (its other host is down)."],
    }


def test_a_step_is_taken_only_when_it_is_still_the_one_to_take() -> None:
    vms = {"h1": {"primary": "xa", "secondary": "xb"}}
    problems = FILTERS["colo_step_problems"]

    def looks(*pairs: dict[str, dict[str, Any]], hosts: tuple[str, ...]) -> dict[str, Any]:
        return {host: report for host, report in fleet_of(*pairs).items() if host in hosts}

    before = pair_of("h1", "xa", "xc")
    (step,) = FILTERS["colo_rebalance_plan"](vms, fleet_of(before))["steps"]
    involved = ("xa", "xb", "xc")
    assert problems(step, looks(before, hosts=involved)) == []
    assert problems(step, looks(pair_of("h1", "xc", "xa"), hosts=involved)) == [
        "h1 is not as it was when this began: h1 goes on on xa, and its copy on xc. The copy of h1 goes from xc to xb; "
        "meanwhile h1 runs on xa without one. Run playbooks/rebalance.yml again."
    ]
    assert problems(step, looks(pair_of("h1", "xa", "xb"), hosts=involved)) == [
        "h1 is not as it was when this began: It is where it was to go. Run playbooks/rebalance.yml again."
    ]
    gone = {"xa": {**named("h1", "unprotected", "primary"), "config": {"peer": {"name": "xz"}}}}
    (step,) = FILTERS["colo_rebalance_plan"](vms, fleet_of(gone))["steps"]
    assert problems(step, looks(gone, hosts=("xa", "xb"))) == []
