"""A plan for fleets of growing size: time, memory, how full and how even, against bounds and against the emptiest host first.

The peer takes the VMs by size and puts each copy on the emptiest host outside its primary's failure domain: what a script of
twenty lines would do. Each fleet is planned in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ansible.module_utils

from bench.tables import machine, table

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[1] / "module_utils"))

from ansible.module_utils.colo.fleet import quality  # noqa: E402
from ansible.module_utils.colo.placement import Host, Usage, Vm, place  # noqa: E402

VMS_A_HOST = 10
RACK_HOSTS = 16
_HOST_MIB = 262_144
_VM_MIB = (2048, 4096, 4096, 8192, 16_384)


def fleet(hosts: int) -> tuple[list[Host], list[Vm]]:
    """Hosts in racks, and VMs of mixed sizes without copies; the same each time."""
    dice = random.Random(hosts)
    racks = max(3, hosts // RACK_HOSTS)
    return (
        [Host(f"x{at:04}", f"rack-{at % racks:02}", _HOST_MIB, 10_000) for at in range(hosts)],
        [
            Vm(f"v{at:05}", f"x{at % hosts:04}", "", dice.choice(_VM_MIB), 100)
            for at in range(hosts * VMS_A_HOST)
        ],
    )


def emptiest_first(hosts: Sequence[Host], vms: Sequence[Vm]) -> dict[str, str]:
    """The peer."""
    used = Usage.of(vms, {})
    domains = {host.name: host.failure_domain for host in hosts}
    placed = {}
    for vm in sorted(vms, key=lambda vm: -vm.memory_mib):
        fitting = (
            host
            for host in hosts
            if host.failure_domain != domains[vm.primary] and used.fits(host, vm.memory_mib, vm.link_mbit)
        )
        placed[vm.name] = min(fitting, key=lambda host: used.memory[host.name]).name
        used.add(vm, placed[vm.name])
    return placed


PLANNERS = {"ours": place, "emptiest first": emptiest_first}


def measured(hosts: int, planner: str) -> str:
    """One row, tab-separated: made in a process of its own."""
    members, vms = fleet(hosts)
    began = time.perf_counter()
    placed = PLANNERS[planner](members, vms)
    took = time.perf_counter() - began
    found = quality(members, vms, placed)
    worst = found["worst_death"]
    return "\t".join(
        (
            f"{hosts}",
            f"{len(vms)}",
            planner,
            f"{took:.1f}",
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
            f"{found['copies']}",
            f"{found['fullest']:.3f}",
            f"{found['fullest_bound']:.3f}",
            f"{worst['mib'] / worst['even_mib']:.2f}",
        )
    )


def main() -> None:
    """Plan each fleet with each planner, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--only", choices=PLANNERS, help="print the row of one planner for one fleet")
    arguments = parser.parse_args()
    if arguments.only:
        print(measured(arguments.hosts[0], arguments.only))
        return
    rows = []
    for hosts in arguments.hosts:
        for planner in PLANNERS:
            command = [sys.executable, "-m", "bench.plan", "--hosts", str(hosts), "--only", planner]
            rows.append(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\t")
            )
    head = ("hosts", "VMs", "", "s", "MiB", "copies", "fullest", "its bound", "worst death of even")
    print(f"Plans for fleets, {machine()}:\n")
    print(table(head, [[cell.strip() for cell in row] for row in rows]))


if __name__ == "__main__":
    main()
