"""Which host gets the copy of which VM: limits that always hold, copies that stay, and why something is as it is."""

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.ansible.module_host import REPOSITORY, Runner, load, utility

placement, fleet = utility("placement"), utility("fleet")
FILTERS = load(REPOSITORY / "filter_plugins" / "colo_fleet.py").FilterModule().filters()
Host, Vm, place = placement.Host, placement.Vm, placement.place


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Any], list[Any]]:
    """A few hosts in up to three failure domains, and VMs some of whose copies are somewhere already."""
    hosts = [
        Host(f"x{at}", f"rack-{draw(st.integers(1, 3))}", 16, draw(st.sampled_from([None, 2])))
        for at in range(draw(st.integers(2, 5)))
    ]
    names = [host.name for host in hosts]
    vms = [
        Vm(f"v{at}", draw(st.sampled_from(names)), draw(st.sampled_from(["", "gone", *names])), size, 1)
        for at, size in enumerate(draw(st.lists(st.integers(1, 5), max_size=7)))
    ]
    return hosts, vms


def allowed(hosts: list[Any], vms: list[Any], placed: dict[str, str]) -> bool:
    """The limits, said once more in the plainest way. A host may be overfull by what runs there, but not by a copy."""
    by_name = {host.name: host for host in hosts}
    memory = Counter[str]()
    links = Counter[str]()
    for vm in vms:
        memory[vm.primary] += vm.memory_mib
        if vm.name in placed:
            there = by_name[placed[vm.name]]
            memory[there.name] += vm.memory_mib
            links[there.name] += vm.link_mbit
            if there.failure_domain == by_name[vm.primary].failure_domain:
                return False
    return all(
        memory[name] <= by_name[name].memory_mib and links[name] <= (by_name[name].link_mbit or links[name])
        for name in set(placed.values())
    )


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_no_limit_is_broken_and_as_many_as_possible_have_a_copy(fleet: tuple[list[Any], list[Any]]) -> None:
    hosts, vms = fleet
    placed = place(hosts, vms)
    assert allowed(hosts, vms, placed)
    assert place(list(reversed(hosts)), list(reversed(vms))) == placed, "the order says nothing"
    if len(vms) <= 4:
        names = [None, *(host.name for host in hosts)]
        most = max(
            sum(choice is not None for choice in choices)
            for choices in itertools.product(names, repeat=len(vms))
            if allowed(hosts, vms, {vm.name: to for vm, to in zip(vms, choices, strict=True) if to})
        )
        assert len(placed) == most


@settings(max_examples=40, deadline=None)
@given(fleets())
def test_what_was_planned_stays_as_it_is(fleet: tuple[list[Any], list[Any]]) -> None:
    hosts, vms = fleet
    placed = place(hosts, vms)
    again = place(hosts, [replace(vm, secondary=placed.get(vm.name, "")) for vm in vms])
    assert again == placed


RACKS = [Host(f"x{at:02}", f"rack-{at % 4}", 64_000) for at in range(12)]


def test_a_death_is_spread_over_many() -> None:
    vms = [Vm(f"v{at}", "x00", "", 1000) for at in range(9)]
    assert Counter(place(RACKS, vms).values()) == {
        host.name: 1 for host in RACKS if host.failure_domain != "rack-0"
    }


def test_only_copies_of_a_host_that_is_gone_move() -> None:
    vms = [Vm(f"v{at:02}", f"x{at % 12:02}", "", 1000 + 10 * at) for at in range(48)]
    placed = place(RACKS, vms)
    gone = "x05"
    left = [host for host in RACKS if host.name != gone]
    rest = [replace(vm, secondary=placed[vm.name]) for vm in vms if vm.primary != gone]
    now = place(left, rest)
    assert len(now) == len(rest)
    assert {vm.name for vm in rest if now[vm.name] != vm.secondary} == {
        vm.name for vm in rest if vm.secondary == gone
    }


def test_others_make_room_for_a_large_one() -> None:
    hosts = [Host("x1", "a", 100), Host("x2", "b", 80), Host("x3", "b", 30)]
    vms = [Vm("large", "x1", "", 80), Vm("small", "x1", "x2", 20)]
    assert place(hosts, vms) == {"large": "x2", "small": "x3"}


def test_copies_move_for_an_even_spread_only_when_that_is_wanted_and_no_more_of_them() -> None:
    hosts = [Host("x1", "a", 100), *(Host(f"x{at}", "b", 100) for at in (2, 3, 4))]
    vms = [Vm(f"v{at}", "x1", "x2", 10) for at in range(6)]
    assert set(place(hosts, vms).values()) == {"x2"}
    moved = [sum(host != "x2" for host in place(hosts, vms, moves).values()) for moves in (2, 6)]
    assert moved == [2, 4]


def test_a_full_cell_asks_the_rest_of_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "cells", lambda hosts: [list(hosts)[:2], list(hosts)[2:]])
    hosts = [Host("x1", "a", 50), Host("x2", "b", 5), Host("x3", "c", 50)]
    assert place(hosts, [Vm("v", "x1", "", 10)]) == {"v": "x3"}


def test_a_cell_has_its_share_of_every_failure_domain() -> None:
    hosts = [Host(f"x{at:03}", f"room-{at // 60}", 1) for at in range(120)]
    parts = placement.cells(hosts)
    assert sorted(host.name for part in parts for host in part) == [host.name for host in hosts]
    for part in parts:
        rooms = Counter(host.failure_domain for host in part)
        assert abs(rooms["room-0"] - rooms["room-1"]) <= 1
        assert len(part) == 24


HOSTS = [
    {"name": "x1", "failure_domain": "rack-1", "memory_mib": 1000, "link_mbit": None},
    {"name": "x2", "failure_domain": "rack-1", "memory_mib": 1000, "link_mbit": None},
    {"name": "x3", "failure_domain": "rack-2", "memory_mib": 1000, "link_mbit": 250},
]


@pytest.mark.parametrize(
    ("vm", "said"),
    [
        ({}, "v: its copy comes to x3 (rack-2), as it had none; 900 of 1000 MiB stay free there."),
        (
            {"secondary": "x9"},
            "v: its copy moves from x9 to x3 (rack-2), as x9 is no host of colo_hosts; 900 of 1000 MiB stay free there.",
        ),
        (
            {"secondary": "x2"},
            "v: its copy moves from x2 to x3 (rack-2), as x2 is in rack-1 like its primary x1; 900 of 1000 MiB stay "
            "free there.",
        ),
    ],
)
def test_every_change_has_its_reason(vm: dict[str, Any], said: str) -> None:
    found = fleet.plan(HOSTS, {"v": {"primary": "x1", "memory_mib": 100, "interval_ms": 500, **vm}})
    assert found["sentences"] == [said]
    assert found["vms"] == {"v": {"primary": "x1", "memory_mib": 100, "interval_ms": 500, "secondary": "x3"}}
    assert found["problems"] == []


def test_a_vm_without_a_size_has_that_of_its_class() -> None:
    vms = {"v": {"primary": "x1", "class": "small"}}
    found = fleet.plan(HOSTS, vms, settled={"v": {**vms["v"], "memory_mib": 100}})
    assert found["vms"] == {"v": {**vms["v"], "secondary": "x3"}}
    assert "900 of 1000 MiB stay free there." in found["sentences"][0]


@pytest.mark.parametrize(
    ("vms", "problem"),
    [
        (
            {
                "v": {"primary": "x1", "memory_mib": 900, "secondary": "x3"},
                "w": {"primary": "x3", "memory_mib": 200},
            },
            "v has no host for its copy: it needs 900 MiB and 100 Mbit/s, and of 1 hosts outside rack-1 x3 comes nearest, with "
            "800 MiB and 250 Mbit/s left. Add a host or memory, or protect fewer VMs.",
        ),
        (
            {"v": {"primary": "x1", "memory_mib": 10, "checkpoint_mbit": 300}},
            "v has no host for its copy: it needs 10 MiB and 300 Mbit/s, and of 1 hosts outside rack-1 x3 comes nearest, with "
            "1000 MiB and 250 Mbit/s left. Add a host or memory, or protect fewer VMs.",
        ),
        (
            {"v": {"primary": "x3", "memory_mib": 1001}},
            "x3 runs VMs of 1001 MiB, which is more than its colo_memory_mib of 1000.",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_what_comes_nearest(vms: dict[str, Any], problem: str) -> None:
    found = fleet.plan(HOSTS, vms)
    assert problem in found["problems"]
    assert "secondary" not in found["vms"]["v"]


def test_a_fleet_in_one_failure_domain_is_told_so() -> None:
    found = fleet.plan(HOSTS[:2], {"v": {"primary": "x1", "memory_mib": 10}})
    assert found["problems"] == [
        "v has no host for its copy: all hosts are in rack-1. Give the others their own colo_failure_domain."
    ]
    assert found["quality"]["worst_death"] is None


def test_quality_stands_beside_its_bounds() -> None:
    vms = {name: {"primary": "x1", "memory_mib": 100} for name in ("v", "w")}
    assert fleet.plan(HOSTS, vms)["quality"] == {
        "hosts": 3,
        "vms": 2,
        "copies": 2,
        "moved": 0,
        "fullest_host": "x3",
        "fullest": 0.2,
        "fullest_bound": 0.2,
        "worst_death": {"host": "x1", "to": "x3", "mib": 200, "even_mib": 200},
    }


def test_the_module_returns_the_plan(run: Runner) -> None:
    result = run("colo_placement", hosts=HOSTS, vms={"v": {"primary": "x1", "memory_mib": 100}}, check=True)
    assert (result["changed"], result["vms"]["v"]["secondary"]) == (False, "x3")


def test_the_module_names_the_library_that_is_missing(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load(REPOSITORY / "library" / "colo_placement.py"), "MISSING", "ImportError: ortools")
    result = run("colo_placement", hosts=HOSTS, vms={})
    assert result["failed"]
    assert "ortools" in result["msg"]


def test_what_the_inventory_must_say() -> None:
    variables: dict[str, Any] = {
        "x1": {"colo_failure_domain": "a", "colo_memory_mib": 100},
        "x2": {"colo_memory_mib": "much", "colo_link_mbit": 0},
    }
    vms = {"v": {"primary": "x1"}, "w": {"primary": "x1", "memory_mib": 1, "checkpoint_mbit": True}}
    assert FILTERS["colo_fleet_problems"](vms, ["x1", "x2"], variables) == [
        "No colo_failure_domain, the rack, room or power feed whose loss takes the host along: x2.",
        "colo_memory_mib is not a whole number above 0: x2.",
        "colo_link_mbit is not a whole number above 0: x2.",
        "colo_vms: memory_mib of a VM, or of its class, has to be a whole number above 0: v.",
        "colo_vms: checkpoint_mbit of a VM, or of its class, has to be a whole number above 0: w.",
    ]
    many = [f"x{at}" for at in range(8)]
    found = FILTERS["colo_fleet_problems"]({}, many, {name: {"colo_failure_domain": "a"} for name in many})
    assert found == [
        "No colo_memory_mib, how much memory VMs and copies may use there: x0, x1, x2, x3, x4 and 3 more."
    ]


def test_the_playbook_writes_the_plan_once(tmp_path: Path) -> None:
    """The example fleet: a file that is inventory, and nothing to change in a second run."""
    written, new = tmp_path / "colo_vms.yml", tmp_path / "new.yml"
    example = REPOSITORY / "inventory" / "fleet" / "group_vars" / "all" / "colo_vms.yml"
    planned = yaml.safe_load(example.read_text())["colo_vms"]
    without = {name: {**vm, "secondary": ""} for name, vm in planned.items()}
    new.write_text(yaml.safe_dump({"colo_vms": without}))
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        "inventory/fleet",
        "playbooks/plan.yml",
    ]

    def play(*more: object) -> str:
        done = subprocess.run(
            [*command, "-e", f"colo_plan_to={written}", *more],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "db1: its copy comes to" in play("-e", f"@{new}", "--check", "--diff")
    assert not written.exists()
    play("-e", f"@{new}")
    vms = yaml.safe_load(written.read_text())["colo_vms"]
    assert vms == planned, "the example is what its plan says"
    second = play("-e", f"@{written}")
    assert "changed=0" in second
    assert "0 copies move" in second
