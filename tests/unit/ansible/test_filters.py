"""What the playbooks decide and show."""

import re
from typing import Any

import pytest
import yaml

from tests.unit.ansible.module_host import REPOSITORY, load

FILTERS = {
    name: function
    for plugin in ("colo", "colo_inventory", "colo_maintenance_reports", "colo_preflight", "colo_reports")
    for name, function in load(REPOSITORY / "filter_plugins" / f"{plugin}.py")
    .FilterModule()
    .filters()
    .items()
}
H1 = {"primary": "xa", "secondary": "xb", "interval_ms": 1000, "peer_timeout_ms": 5000, "bridge": "xenbr0"}
ADDRESSES = {"xa": {"colo_channel_address": "192.168.77.1"}, "xb": {"colo_channel_address": "192.168.77.2"}}
LAST = {"a_pages": 120, "b_pages": 300, "d_pages": 350, "bytes": 812345, "pause_ms": 400.4}
CHANNELS = {"life": "alive", "round_trip": {"p50_ms": 21.4}, "broken": {}}


def side(phase: str, **fields: Any) -> dict[str, Any]:
    """An entry of colo_vm_info."""
    return {
        "name": "h1", "config": {"role": "primary"}, "alive": True, "stale": False, "phase": phase, "protection": "running",
        "state": {"mode": "colo", "epoch": 42, "last": LAST, "channels": CHANNELS}, "domain": {"domid": 3, "state": "-b----"},
        "domains_known": True, "may_run_vm": True, "sentence": f"It is {phase}.", **fields,
    }  # fmt: skip


LINKS = {
    "1": {"primary": "a", "secondary": "d"},
    "2": {"primary": "d", "secondary": "c"},
    "3": {"primary": "e"},
}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (0, [["a", "d", "c", "b", "e"]]),
        ([], [["a", "d", "c", "b", "e"]]),
        (1, [["a", "d", "c"], ["b"], ["e"]]),
        ("2", [["a", "d", "c", "b"], ["e"]]),
        ([1, 10], [["a", "d", "c"], ["b", "e"]]),
        ([1, 0], [["a", "d", "c"], ["b", "e"]]),
    ],
)
def test_hosts_that_share_a_vm_are_in_one_batch(sizes: object, expected: list[list[str]]) -> None:
    assert FILTERS["colo_batches"]("abcde", LINKS, sizes) == expected


@pytest.mark.parametrize("sizes", [-1, "many", [1, "x"], True, 1.5, {"a": 1}])
def test_a_batch_is_a_number_of_pairs(sizes: object) -> None:
    with pytest.raises(ValueError, match=r"colo_batch is .*, not a number of pairs"):
        FILTERS["colo_batches"]("ab", {}, sizes)


def test_the_example_inventory_has_no_problem() -> None:
    assert FILTERS["colo_inventory_problems"]({"h1": H1}, ["xa", "xb"], ADDRESSES) == []


@pytest.mark.parametrize(
    ("vm", "sentence"),
    [
        ({**H1, "secondary": "xa"}, "colo_vms: primary and secondary of h1 are both xa."),
        (
            {**H1, "secondary": "xc"},
            "colo_vms: the secondary of h1 is xc, which is not in the group colo_hosts (xa, xb).",
        ),
        ({"primary": "xa"}, "colo_vms: h1 has no secondary."),
        (
            {**H1, "output": "sometimes"},
            "colo_vms: output of h1 is 'sometimes', which is none of compare, hold, free.",
        ),
        (
            {**H1, "interval_ms": "fast"},
            "colo_vms: interval_ms of h1 is 'fast', not a whole number from 10 to 3600000.",
        ),
        (
            {**H1, "peer_timeout_ms": 5},
            "colo_vms: peer_timeout_ms of h1 is 5, not a whole number from 500 to 600000.",
        ),
        ("xa", "colo_vms: h1 is not a mapping of settings: see inventory/example."),
        (
            {**H1, "intervall_ms": 500},
            "colo_vms: h1 has 'intervall_ms', which is none of primary, secondary, class, interval_ms, min_interval_ms, "
            "latency_ms, copy_downtime_ms, output, peer_timeout_ms, heartbeat_misses, bridge, arbiter, memory_mib, "
            "checkpoint_mbit.",
        ),
    ],
)
def test_inventory_problems(vm: Any, sentence: str) -> None:
    assert FILTERS["colo_inventory_problems"]({"h1": vm}, ["xa", "xb"], ADDRESSES) == [sentence]


def test_inventory_without_addresses_or_of_another_shape() -> None:
    problems = FILTERS["colo_inventory_problems"]
    assert problems({"h1": H1}, ["xa", "xb"], {"xa": {}, "xb": ADDRESSES["xb"]}) == [
        "xa has no colo_channel_address: the address at which its peer's channels reach its sshd."
    ]
    assert problems([], ["xa"], {}) == [
        "colo_vms is not a mapping of VM names to their settings: see inventory/example."
    ]
    assert problems({"a/b": H1}, ["xa", "xb"], ADDRESSES) == [
        "colo_vms: 'a/b' is no name for a VM: letters, digits, '_', '.', '-', at most 63."
    ]
    assert problems({101: H1}, ["xa", "xb"], ADDRESSES) == [
        "colo_vms: 101 is no text to YAML, and the name of a VM has to be: quote it."
    ]


def test_what_may_stand_at_a_vm_is_what_is_read_of_it() -> None:
    known = load(REPOSITORY / "filter_plugins" / "colo_inventory.py")
    text = (REPOSITORY / "playbooks" / "vars" / "vm.yml").read_text()
    assert set(re.findall(r"colo_vm_settings\.(\w+)", text)) == set(known._DEFAULTS)
    assert set(load(REPOSITORY / "filter_plugins" / "colo_reports.py")._SETTINGS) == set(known._DEFAULTS)
    vm = {**dict.fromkeys(known._OF_VM, 1000), **H1, "output": "hold", "heartbeat_misses": 5, "class": "gold"}
    problems = FILTERS["colo_inventory_problems"]
    assert problems({"h1": vm}, ["xa", "xb"], ADDRESSES, (), {"gold": {}}) == []


def test_a_vm_says_what_its_class_does_not_and_the_class_what_the_vm_does_not() -> None:
    classes = {"gold": {"interval_ms": 200, "output": "hold", "arbiter": {"lease_s": 4}}}
    vms = {"h1": {**H1, "class": "gold", "interval_ms": 300}, "h2": dict(H1)}
    found = FILTERS["colo_settled"](vms, classes)
    assert found["h1"] == {
        **found["h2"], "interval_ms": 300, "output": "hold", "arbiter": {"lease_s": 4},
    }  # fmt: skip
    assert (found["h2"]["interval_ms"], found["h2"]["output"]) == (1000, "compare")
    assert FILTERS["colo_settled"]([]) == FILTERS["colo_settled"]({"h1": []}) == {}
    for of_vm, of_class in (("gold", []), (["gold"], {}), (1, {})):
        assert (
            FILTERS["colo_settled"]({"h1": {"class": of_vm}}, {"gold": of_class})["h1"]["interval_ms"] == 1000
        )


def test_an_arbiter_adds_to_that_of_its_class_unless_it_is_another_or_none() -> None:
    gold = {"arbiter": {"endpoints": ["https://e:2379"], "lease_s": 5}}
    for given, meant in (
        ({"lease_s": 20}, {"endpoints": ["https://e:2379"], "lease_s": 20}),
        ({"endpoints": ["https://f:2379"]}, {"endpoints": ["https://f:2379"]}),
        ({}, {}),
    ):
        vm = {**H1, "class": "gold", "arbiter": given}
        assert FILTERS["colo_settled"]({"h1": vm}, {"gold": gold})["h1"]["arbiter"] == meant


@pytest.mark.parametrize(
    ("of_class", "problem"),
    [
        ({"primary": "xa"}, "gold has 'primary', which is none of interval_ms,"),
        ({"interval_ms": 1}, "interval_ms of gold is 1, not a whole number from 10 to 3600000."),
        ({"output": "no"}, "output of gold is 'no', which is none of compare, hold, free."),
        ([], "gold is not a mapping of settings: see inventory/fleet."),
    ],
)
def test_what_a_class_cannot_say(of_class: object, problem: str) -> None:
    problems = FILTERS["colo_inventory_problems"]
    (found,) = problems({"h1": H1}, ["xa", "xb"], ADDRESSES, (), {"gold": of_class})
    assert found.startswith(f"colo_classes: {problem}")


def test_a_class_that_is_not_there() -> None:
    problems = FILTERS["colo_inventory_problems"]
    vms = {"h1": {**H1, "class": "glod"}}
    assert problems(vms, ["xa", "xb"], ADDRESSES, (), {"gold": {}, "best": {}}) == [
        "colo_vms: the class of h1 is 'glod', which colo_classes does not have; it has: best, gold."
    ]
    (wrong,) = problems({"h1": {**H1, "class": ["gold"]}}, ["xa", "xb"], ADDRESSES, (), {"gold": {}})
    assert wrong.startswith("colo_vms: the class of h1 is ['gold'], which")
    assert problems({"h1": H1}, ["xa", "xb"], ADDRESSES, (), {1: {}}) == [
        "colo_classes: 1 is no text to YAML, and the name of a class has to be: quote it."
    ]
    assert problems(vms, ["xa", "xb"], ADDRESSES, (), ["gold"]) == [
        "colo_classes is not a mapping of names to settings of VMs: see inventory/fleet."
    ]


def test_a_plan_finds_another_host_for_the_copy_of_one_that_is_gone() -> None:
    problems = FILTERS["colo_inventory_problems"]
    assert problems({"h1": H1}, ["xa"], ADDRESSES, ["secondary"]) == []
    assert problems({"h1": H1}, ["xb"], ADDRESSES, ["secondary"]) == [
        "colo_vms: the primary of h1 is xa, which is not in the group colo_hosts (xb)."
    ]


def test_a_host_of_no_vm_needs_no_address() -> None:
    assert FILTERS["colo_inventory_problems"]({"h1": H1}, ["xa", "xb", "xc"], {**ADDRESSES, "xc": {}}) == []
    specs = yaml.safe_load(
        (REPOSITORY / "roles" / "colo_channel" / "meta" / "argument_specs.yml").read_text()
    )
    assert "required" not in specs["argument_specs"]["main"]["options"]["colo_channel_address"]


def test_selection() -> None:
    problems = FILTERS["colo_selection_problems"]
    assert problems({"h1": H1}, "h1") == []
    assert problems({"h1": H1}, "h1", "h1", "playbooks/failover.yml") == []
    assert problems({"h1": H1, "h2": H1}, "") == [
        "Say which VM: -e colo_vm=NAME. The inventory's colo_vms has: h1, h2."
    ]
    assert problems({}, "h1") == ["colo_vms has no VM h1; it has: none yet."]
    assert problems({"h1": H1}, "h1", "", "playbooks/failover.yml") == [
        "This cannot be undone: confirm it with the VM's name, playbooks/failover.yml -e colo_vm=h1 -e colo_confirm=h1."
    ]


def test_pairs_and_bridges_whichever_way_round() -> None:
    vms = {
        "h1": H1,
        "h2": {"primary": "xc", "secondary": "xa", "bridge": "br1"},
        "h3": {"primary": "xb", "secondary": "xc"},
    }
    assert FILTERS["colo_pairs"](vms, "xa") == [{"vm": "h1", "peer": "xb"}, {"vm": "h2", "peer": "xc"}]
    parts = FILTERS["colo_parts"](vms)
    assert {host: sorted(part) for host, part in parts.items()} == {
        "xa": ["h1", "h2"],
        "xb": ["h1", "h3"],
        "xc": ["h2", "h3"],
    }
    assert all(FILTERS["colo_pairs"](vms, host) == FILTERS["colo_pairs"](parts[host], host) for host in parts)
    assert FILTERS["colo_pairs"](vms, "xa", "h2") == [{"vm": "h2", "peer": "xc"}]
    assert FILTERS["colo_pairs"](vms, "xd") == FILTERS["colo_pairs"]({}, "xa") == []
    assert FILTERS["colo_bridges"](vms, "xa") == ["br1", "xenbr0"]
    vms["h1"] = {"primary": "xa", "secondary": "xb", "class": "inner"}
    assert FILTERS["colo_bridges"](vms, "xa", {"inner": {"bridge": "br2"}}) == ["br1", "br2"]


def test_keys_of_a_vm_in_a_hosts_results() -> None:
    results = [
        {"vm": "h1", "public_key": "k1", "next_public_key": "", "host_keys": ["h"]},
        {"vm": "h2", "public_key": "k2", "next_public_key": "k3", "host_keys": ["h"]},
        {"vm": "h3", "public_key": "", "next_public_key": "", "host_keys": ["h"]},
    ]
    keys_of = FILTERS["colo_channel_keys_of"]
    assert keys_of(results, "h1") == {"public_keys": ["k1"], "host_keys": ["h"]}
    assert keys_of(results, "h2") == {"public_keys": ["k2", "k3"], "host_keys": ["h"]}
    assert keys_of(results, "h3") == {"public_keys": [""], "host_keys": ["h"]}, "predicted in a dry run"
    assert keys_of(results, "h4") == {"public_keys": [], "host_keys": []}


def test_pairs_of_releases() -> None:
    problems = FILTERS["colo_pair_problems"]
    assert problems({"h1": H1}, {"xa": "4.17", "xb": "4.17"}) == []
    assert problems({"h1": H1}, {"xa": "4.17", "xb": "4.20"}) == []
    assert problems({"h1": H1}, {"xa": "4.17"}) == []
    assert problems({"h1": H1}, {"xa": "4.20", "xb": "4.17"}) == [
        "h1: its primary xa runs Xen 4.20 and its secondary xb Xen 4.17. Both must run the same release, or the primary 4.17 "
        "and the secondary 4.20."
    ]


def gone(**fields: Any) -> dict[str, Any]:
    return side("", alive=False, domain=None, may_run_vm=False, **fields)


def failover(secondary: dict[str, Any], primary: dict[str, Any], *word: Any) -> list[str]:
    """What is in the way of a failover of h1 to xb, by entries or by results without any."""
    looks = {
        side: look if "unreachable" in look or not look else {"vms": [look]}
        for side, look in (("primary", primary), ("secondary", secondary))
    }
    problems: list[str] = FILTERS["colo_failover_problems"](looks, "h1", H1, *word)
    return problems


def unreachable(words: str) -> dict[str, Any]:
    """A result of a host that ssh does not get to."""
    return {"unreachable": True, "msg": f"Task failed: Failed to connect to the host via ssh: {words}"}


SILENT = unreachable("ssh: connect to host 192.0.2.11 port 22: Connection timed out")


def test_failover_is_allowed_when_the_primary_is_silent_or_empty() -> None:
    assert failover(side("peer_lost"), SILENT) == []
    assert failover(side("peer_lost"), gone()) == []
    assert failover(side("active", protection="active"), gone()) == []


def test_a_second_failover_has_nothing_against_a_copy_that_stands_aside() -> None:
    active = side("active", protection="active", state={"role": "secondary"})
    for phase, domain in (("standby", {"domid": 1}), ("waiting", None), ("receiving", {"domid": 1})):
        assert failover(active, side(phase, state={"role": "secondary"}, domain=domain)) == []


def test_a_copy_that_has_not_heard_that_it_was_handed_the_vm_may_take_over() -> None:
    there = side("peer_lost", state={"role": "secondary"})
    for phase in ("handed_over", "standby"):
        still = {"domid": 3, "state": "--p---"}
        state = {"role": "secondary", "domid": 3}
        here = side(phase, alive=False, protection="standby", state=state, domain=still)
        assert failover(there, here) == []
        for domain in ({"domid": 3, "state": "-b----"}, {"domid": 4, "state": "--p---"}):
            assert failover(there, {**here, "domain": domain}) != [], (
                "somebody lets it run, or has made another"
            )
        assert failover(there, {**here, "domain": None, "protection": "stopped"}) == [], (
            "it was destroyed there"
        )
        waits = side(
            phase, protection="running", state={"role": "secondary"}
        )  # its replicator lives, and may hear of it
        assert failover(there, waits) != []


@pytest.mark.parametrize(
    "words",
    [
        "ssh: connect to host 192.0.2.11 port 22: Connection timed out",
        "ssh: connect to host 192.0.2.11 port 22: Operation timed out",
        "ssh: connect to host 192.0.2.11 port 22: No route to host",
        "ssh: connect to host 192.0.2.11 port 22: Network is unreachable",
        "ssh: Could not resolve hostname xa: Name or service not known",
        "Timeout, server 192.0.2.11 not responding.",
        "channel 0: open failed: connect failed: No route to host\r\nstdio forwarding failed\r\n"
        "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by UNKNOWN port 65535",
        "ssh: connect to host 127.0.0.1 port 40022: Connection refused",
    ],
)
def test_a_silent_primary_counts_as_dead(words: str) -> None:
    assert failover(side("peer_lost"), unreachable(words)) == []


@pytest.mark.parametrize(
    "words",
    [
        "root@192.0.2.11: Permission denied (publickey,password).",
        "No ED25519 host key is known for 192.0.2.11 and you have requested strict checking. Host key verification failed.",
        "ssh: connect to host 192.0.2.11 port 22: Connection refused",
        "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by 192.0.2.11 port 22",
        "Connection timed out during banner exchange\r\nConnection to 192.0.2.11 port 22 timed out",
        "channel 0: open failed: administratively prohibited: open failed",
        "Bad owner or permissions on /root/.ssh/config",
    ],
)
def test_a_primary_that_lets_nobody_in_does_not_count_as_dead(words: str) -> None:
    said = " ".join(words.split()).rstrip(".")
    refused = [
        f"h1 is not failed over, because xa lets nobody in, and is not silent as a dead host is: {said}. Its VM may run. Let "
        "this controller in, or make sure that xa is off and answer for it with -e colo_override=true -e colo_reason='...'."
    ]
    assert failover(side("peer_lost"), unreachable(words)) == refused
    assert failover(side("peer_lost"), unreachable(words), True, " ") == refused
    assert failover(side("peer_lost"), unreachable(words), False, "It is off.") == refused
    assert failover(side("peer_lost"), unreachable(words), True, "It is off.") == []


def test_a_primary_that_was_not_looked_at_does_not_count_as_dead() -> None:
    assert "nothing was asked" in failover(side("peer_lost"), {})[0]


@pytest.mark.parametrize("phase", ["peer_lost", "standby", "replicating"])
@pytest.mark.parametrize("secondary", [SILENT, gone(), side("unprotected", state={"role": "primary"})])
def test_a_copy_on_the_host_that_colo_vms_has_as_the_primary(phase: str, secondary: dict[str, Any]) -> None:
    assert failover(secondary, side(phase, state={"role": "secondary"})) == [
        f"The copy of h1 is on xa ({phase}), which colo_vms has as its primary: make xa the secondary of h1 in colo_vms, and "
        "xb its primary, and run this again."
    ]


def test_a_silent_secondary_is_left_to_the_playbook() -> None:
    assert failover(SILENT, SILENT) == failover(SILENT, side("unprotected")) == []


@pytest.mark.parametrize(
    ("primary", "evidence", "steps"),
    [
        (
            side("replicating"),
            "domain h1 exists there (state -b----) and its replicator runs (phase replicating)",
            "'xl destroy h1' before anything else (its copy on xb is kept); when playbooks/status.yml shows 'awaiting_guest' "
            "for it, 'systemctl stop colo-replicator@h1'",
        ),
        (side("unprotected", alive=False), "domain h1 exists there (state -b----)", "'xl destroy h1'"),
        (
            side("connecting", domain=None),
            "its replicator runs (phase connecting)",
            "'systemctl stop colo-replicator@h1'",
        ),
        (
            side("", alive=False, domain=None, domains_known=False),
            "Xen there does not tell its domains",
            "'xl destroy h1'",
        ),
    ],
)
def test_failover_is_refused_while_the_vm_may_run_on_its_primary(
    primary: dict[str, Any], evidence: str, steps: str
) -> None:
    assert failover(side("peer_lost"), primary) == [
        f"h1 is not failed over, because it may still run on its primary xa, which answers: {evidence}. Two running copies "
        f"would be worse than none. If the VM on xa is broken, end it there first: {steps}. Then run this again."
    ]


def test_two_copies_are_shouted() -> None:
    assert failover(side("active", protection="active"), side("unprotected", alive=False)) == [
        "TWO COPIES may be running: xb took over, and xa may still run h1. Decide at once which one is right and remove the "
        "other with 'xl destroy h1' on its host."
    ]


@pytest.mark.parametrize(
    ("vm", "host", "reason", "word"),
    [
        ("", "", "disks", "-e colo_vm=all"),
        ("h9", "", "disks", "colo_vms has no VM h9"),
        ("", "xz", "disks", "colo_hosts has no host xz; it has: xa, xb."),
        ("h1", "", " ", "-e colo_reason="),
    ],
)
def test_maintenance_of_nothing_or_for_no_reason(vm: str, host: str, reason: str, word: str) -> None:
    problems = FILTERS["colo_maintenance_problems"]({"h1": H1}, ["xb", "xa"], vm, host, reason)
    assert len(problems) == 1
    assert word in problems[0]


def test_maintenance_ends_without_a_reason() -> None:
    for vm, host in (("all", ""), ("h1", ""), ("", "xa")):
        assert FILTERS["colo_maintenance_problems"]({"h1": H1}, ["xa"], vm, host, None) == []


ARBITED = {"role": "primary", "arbiter": {"endpoints": ["https://w1:2379"]}}


def test_who_is_told_of_maintenance() -> None:
    vms = {"h1": H1, "h2": {**H1, "secondary": "xc"}, "h3": H1}
    selected = FILTERS["colo_maintenance_selection"]
    assert selected(vms, "all", "") == ["h1", "h2", "h3"]
    assert selected(vms, "", "xb") == ["h1", "h3"]
    assert selected(vms, "h2", "") == ["h2"]
    state = {"role": "primary"}
    report = {
        "vms": [
            side("replicating", state=state, config=ARBITED),
            side("replicating", name="h2", state=state),  # no arbiter: nobody takes over by itself
            side("replicating", name="h3", state={"role": "secondary"}, config=ARBITED),
            side("stopped", name="h4", state=state, config=ARBITED, alive=False),
        ]
    }
    names = FILTERS["colo_maintenance_names"]
    every = ["h1", "h2", "h3", "h4"]
    assert names(report, every, "primary") == ["h1"]
    assert names(report, every, "secondary") == ["h3"]
    assert names(report, ["h2"], "primary") == []
    assert names({"unreachable": True}, every, "primary") == []


def test_who_was_not_told_of_maintenance() -> None:
    failed = {"results": [{"item": "h1", "failed": True, "msg": "No."}, {"item": "h2"}]}
    looks = {"vms": [side("replicating", name=name, config=ARBITED) for name in ("h1", "h2", "h3")]}
    variables = {
        "xa": {"colo_look": looks, "colo_told_primary": failed, "colo_told_secondary": {}},
        "xb": {"colo_look": {"unreachable": True}},
        "xc": {
            "colo_look": {"vms": [side("replicating", name="h4")]},
            "colo_told_primary": {"unreachable": True},
        },
    }
    assert FILTERS["colo_maintenance_failures"](variables, ["h1", "h2", "h3", "h4"]) == [
        "h1 on xa: No.",
        "xb does not answer, so not all of its VMs were told.",
        "xc does not answer, so not all of its VMs were told.",
        "h3 has no primary that runs and could be told: see playbooks/status.yml.",
    ]
    assert FILTERS["colo_maintenance_failed"]([failed, None, {}]) == ["h1"]
    skipped = {"results": [{"item": "h3", "skipped": True}, {"item": "h4", "unreachable": True}]}
    assert FILTERS["colo_maintenance_told"]([failed, None, {}, skipped]) == ["h2"]


@pytest.mark.parametrize("step", ["secondary", "secondary_at_last"])
def test_a_secondary_that_refuses_maintenance_is_named(step: str) -> None:
    """Its primary is not told that it begins then, and was told that it has ended."""
    failed = {"results": [{"item": "h1", "failed": True, "msg": "No."}]}
    look = {"vms": [side("replicating", config=ARBITED)]}
    variables = {"xa": {"colo_look": look}, "xb": {"colo_look": look, f"colo_told_{step}": failed}}
    assert FILTERS["colo_maintenance_failures"](variables, ["h1"]) == ["h1 on xb: No."]


def test_maintenance_stands_in_the_table() -> None:
    state = {**side("replicating")["state"], "maintenance": "new disks"}
    reports = {"xa": {"vms": [side("replicating", state=state)]}, "xb": {"vms": [side("replicating")]}}
    assert "In maintenance: new disks. It is replicating." in FILTERS["colo_status_table"](
        reports, {"h1": H1}
    )


def test_table_of_a_protected_vm_one_with_a_dead_host_and_one_that_is_not_protected() -> None:
    h2 = {**H1, "primary": "xc"}
    reports = {
        "xa": {"vms": [side("replicating", sentence="The interval has passed.")]},
        "xb": {"vms": [
            side("replicating", config={"role": "secondary"}),
            side("peer_lost", name="h2", sentence="The primary on xc was lost: silent for 5.1 s."),
        ]},
        "xc": {"unreachable": True},
    }  # fmt: skip
    table = FILTERS["colo_status_table"](reports, {"h1": H1, "h2": h2, "h3": H1})
    assert table == "\n".join(
        [
            "VM  MODE  PRIMARY           SECONDARY         EPOCHS  PAUSE_MS  |A|  |B|  |D|  BYTES   LINK         REASON",
            "h1  colo  xa replicating    xb replicating    42      400       120  300  350  812345  "
            "alive 21 ms  The interval has passed.",
            "h2  colo  xc unreachable    xb peer_lost      42      400       120  300  350  812345  "
            "alive 21 ms  xc does not answer. "
            "The primary on xc was lost: silent for 5.1 s.",
            "h3  -     xa not protected  xb not protected  -       -         -    -    -    -       "
            "-            h3 is not protected.",
        ]
    )


def test_the_primary_of_now_is_shown_first() -> None:
    copy, vm = ({**side("replicating")["state"], "role": role} for role in ("secondary", "primary"))
    reports = {
        "xa": {"vms": [side("replicating", state=copy)]},
        "xb": {"vms": [side("replicating", state=vm, sentence="The interval has passed.")]},
    }
    table = FILTERS["colo_status_table"](reports, {"h1": H1})
    assert "h1  colo  xb replicating  xa replicating" in table
    assert table.endswith("colo_vms has xa as its primary. The interval has passed.")
    assert FILTERS["colo_unprotected"](reports, {"h1": H1}) == []


def test_what_is_not_protected_is_named_with_its_reason() -> None:
    h2 = {**H1, "primary": "xc"}
    reports = {
        "xa": {"vms": [side("replicating")]},
        "xb": {"vms": [side("replicating"), side("peer_lost", name="h2", sentence="Its primary was lost.")]},
        "xc": {"unreachable": True},
    }
    assert FILTERS["colo_unprotected"](reports, {"h1": H1, "h2": h2, "h3": H1}) == [
        "h2 is not protected: xc does not answer. Its primary was lost.",
        "h3 is not protected.",
    ]
    assert FILTERS["colo_unprotected"](reports, {"h1": H1}) == [
        "h2 is not protected: h2 is not in the inventory's colo_vms. Its primary was lost."
    ]


@pytest.mark.parametrize(
    ("channels", "shown"),
    [
        (None, "-"),
        ({"life": "alive", "round_trip": {}, "broken": {}}, "alive"),
        (
            {
                "life": "suspected",
                "round_trip": {"p50_ms": 0.4},
                "broken": {"heartbeat": "Refused.", "back": "Reset."},
            },
            "suspected 0 ms no back no heartbeat",
        ),
    ],
)
def test_the_link_in_the_table(channels, shown):
    entry = side("replicating")
    entry["state"]["channels"] = channels
    table = FILTERS["colo_status_table"]({"xa": {"vms": [entry]}}, {"h1": H1})
    assert f"  812345  {shown}  " in table


def test_table_shows_dead_replicators_stale_states_strangers_and_two_copies() -> None:
    h2 = side("active", name="h2", alive=False, protection="active", config=None, sentence="It took over.")
    reports = {
        "xa": {"vms": [
            side("replicating", alive=False, sentence="The replicator died."),
            side("unprotected", name="h2", alive=False, sentence="The peer was lost."),
            side("", name="old", alive=False, stale=True, state={"role": "primary"}, config=None, sentence="Not since."),
        ]},
        "xb": {"vms": [h2]},
    }  # fmt: skip
    rows = FILTERS["colo_status_table"](reports, {"h1": H1, "h2": H1}).splitlines()
    assert "xa replicating (dead)  xb not protected" in rows[1]
    assert rows[1].endswith("The replicator died.")
    assert "xa unprotected (dead)  xb active (dead)" in rows[2]
    assert rows[2].endswith(
        "TWO COPIES may be running: xb took over, and xa may still run h2. Decide at once which one is right and remove the "
        "other with 'xl destroy h2' on its host."
    )
    assert FILTERS["colo_unprotected"](reports, {"h1": H1, "h2": H1})[0] == (
        "h1 is not protected: The replicator died."
    )
    assert rows[3].startswith("old  -     xa not protected")
    assert rows[3].endswith("old is not in the inventory's colo_vms. Not since.")


def said(phase: str, role: str, **fields: Any) -> dict[str, Any]:
    """An entry of colo_vm_info whose replicator has said its role."""
    return side(phase, state={"role": role}, **fields)


def booted(**fields: Any) -> dict[str, Any]:
    """What a host has of a VM after it was started anew, without a domain of its name."""
    return gone(stale=True, state={"role": "primary"}, **fields)


ACTIVE = said("active", "secondary", protection="active")


@pytest.mark.parametrize("vms", [{"h1": H1}, {"h1": {**H1, "primary": "xb", "secondary": "xa"}}, {}])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        (ACTIVE, said("unprotected", "primary"), "took over"),
        (ACTIVE, said("stopped", "primary", alive=False), "took over"),
        (ACTIVE, {**booted(), "domain": {"domid": 1, "state": "r-----"}}, "took over"),
        (ACTIVE, {**booted(), "domains_known": False, "may_run_vm": True}, "took over"),
        (said("unprotected", "primary"), said("waiting", "secondary"), "is its primary"),
        (said("replicating", "primary"), {**booted(), "domain": {"domid": 1, "state": "r-----"}}, "is its primary"),
    ],
)  # fmt: skip
def test_two_copies_are_seen_whatever_colo_vms_says(
    vms: dict[str, Any], swapped: bool, one: dict[str, Any], other: dict[str, Any], how: str
) -> None:
    host, stranger = ("xb", "xa") if swapped else ("xa", "xb")
    reports = {host: {"vms": [one]}, stranger: {"vms": [other]}}
    sentence = f"TWO COPIES may be running: {host} {how}, and {stranger} may still run h1."
    assert sentence in FILTERS["colo_status_table"](reports, vms)
    assert sentence in FILTERS["colo_unprotected"](reports, vms)[0]


def test_two_copies_are_seen_on_a_third_host() -> None:
    pair = {
        "xa": {"vms": [said("replicating", "primary")]},
        "xb": {"vms": [said("replicating", "secondary")]},
    }
    third = {"vms": [{**booted(), "domain": {"domid": 1, "state": "r-----"}}]}
    assert FILTERS["colo_unprotected"](pair, {"h1": H1}) == []
    assert (
        "xa is its primary, and xc may still run h1"
        in FILTERS["colo_unprotected"]({**pair, "xc": third}, {"h1": H1})[0]
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (said("replicating", "primary"), said("replicating", "secondary")),
        (said("copying", "primary"), said("receiving", "secondary")),
        (said("unprotected", "primary"), said("peer_lost", "secondary")),
        (said("unprotected", "primary"), said("peer_lost", "secondary", alive=False)),
        (said("unprotected", "primary"), said("torn", "secondary")),
        (said("unprotected", "primary"), said("standby", "secondary", alive=False, protection="standby")),
        (ACTIVE, said("standby", "secondary", alive=False, protection="standby")),
        (ACTIVE, said("handed_over", "secondary", alive=False, protection="standby")),
        (ACTIVE, said("waiting", "secondary", domain=None)),
        (ACTIVE, said("awaiting_guest", "primary", domain=None)),
        (ACTIVE, booted()),
        (
            said("copying", "primary"),
            side("receiving", state={"role": "secondary", "domid": 5}),  # an earlier copy's number
        ),
        (ACTIVE, said("asking", "primary", domain={"domid": 3, "headless": True})),
        (said("stopped", "primary", alive=False), gone(state={"role": "secondary"})),
    ],
)
def test_a_copy_is_not_taken_for_the_vm(one: dict[str, Any], other: dict[str, Any]) -> None:
    for reports in (
        {"xa": {"vms": [one]}, "xb": {"vms": [other]}},
        {"xb": {"vms": [one]}, "xa": {"vms": [other]}},
    ):
        assert "TWO COPIES" not in FILTERS["colo_status_table"](reports, {"h1": H1})


def primary(**config: Any) -> dict[str, Any]:
    """An entry of a VM's primary with its configuration."""
    settings = {
        "role": "primary",
        "peer": {"name": "xa", "address": "192.0.2.1", "port": 22},
        "interval_ms": 1000,
        **config,
    }
    return side("replicating", config=settings, state={"role": "primary"})


def exported(reports: dict[str, Any], vms: dict[str, Any], classes: dict[str, Any] | None = None) -> Any:
    """What playbooks/export.yml says."""
    return FILTERS["colo_exported"](reports, vms, FILTERS["colo_settled"](vms, classes))


def test_what_a_class_says_is_not_exported_again() -> None:
    reports = {"xb": {"vms": [primary(interval_ms=200, latency_ms=50)]}}
    vms = {"h1": {"primary": "xb", "secondary": "xa", "class": "gold"}}
    found = exported(reports, vms, {"gold": {"interval_ms": 200, "latency_ms": 60}})
    assert found == {
        "vms": {"h1": {**vms["h1"], "latency_ms": 50}},
        "notes": ["h1: latency_ms is 50, where colo_vms means 60."],
    }


def test_a_set_up_exports_itself_with_the_roles_of_now() -> None:
    vms = {"h1": {**H1, "memory_mib": 128}, "h2": {**H1, "primary": "xc"}, "h3": dict(H1)}
    new = primary(
        latency_ms=50, output="hold", arbiter={"endpoints": ["https://w:2379"], "lease_s": 4, "host": "xb"}
    )
    reports = {
        "xa": {"vms": [side("replicating", config={"role": "secondary"}, state={"role": "secondary"})]},
        "xb": {
            "vms": [
                primary(peer_timeout_ms=8000),
                {**new, "name": "h9"},
                {**primary(), "name": "h3", "alive": False},
            ]
        },
        "xc": {"unreachable": True},
    }
    found = exported(reports, vms)
    assert found["vms"] == {
        "h1": {**vms["h1"], "primary": "xb", "secondary": "xa", "peer_timeout_ms": 8000},
        "h2": vms["h2"],
        "h3": vms["h3"],
        "h9": {
            "primary": "xb",
            "secondary": "xa",
            "interval_ms": 1000,
            "latency_ms": 50,
            "output": "hold",
            "arbiter": {"endpoints": ["https://w:2379"], "lease_s": 4},
        },
    }
    assert found["notes"][:4] == [
        "xc does not answer: what it has is as colo_vms said.",
        "h1: primary is 'xb', where colo_vms means 'xa'.",
        "h1: secondary is 'xa', where colo_vms means 'xb'.",
        "h1: peer_timeout_ms is 8000, where colo_vms means 5000.",
    ]
    again = exported(reports, found["vms"])
    assert (again["vms"], again["notes"]) == (found["vms"], found["notes"][:1]), (
        "what is exported is what is there"
    )


def test_the_defaults_of_the_inventory_are_the_roles() -> None:
    defaults = yaml.safe_load((REPOSITORY / "roles" / "colo_vm" / "defaults" / "main.yml").read_text())
    known = load(REPOSITORY / "filter_plugins" / "colo_inventory.py")._DEFAULTS
    assert known == {key: defaults[f"colo_vm_{key}"] for key in known}
