"""A plan for the copies of a fleet, from the inventory's words to sentences: what goes where, why, and how good that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ansible.module_utils.colo.placement import Host, Usage, Vm, even_spread, place

#: What the checkpoints of a VM need of its secondary's link when colo_vms does not say.
CHECKPOINT_MBIT = 100


def plan(
    hosts: Sequence[Mapping[str, Any]],
    vms: Mapping[str, Mapping[str, Any]],
    moves: int = 0,
    settled: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return ``vms`` with a secondary for each, and what there is to say about it.

    ``hosts`` have name, failure_domain, memory_mib and link_mbit (None: not limited); ``vms`` are as in colo_vms, with
    primary, memory_mib, and checkpoint_mbit if need be; sizes are read in ``settled``, the same with their classes, where a VM
    is there. A copy that may stay where it is stays, but for ``moves`` of them.
    """
    known = [Host(**host) for host in hosts]
    wanted = [
        Vm(
            name,
            str(vm["primary"]),
            str(vm.get("secondary") or ""),
            size["memory_mib"],
            size.get("checkpoint_mbit", CHECKPOINT_MBIT),
        )
        for name, vm in vms.items()
        for size in (settled.get(name, vm),)
    ]
    placed = place(known, wanted, moves)
    before = Usage.of(wanted, {vm.name: vm.secondary for vm in wanted if vm.secondary})
    after = Usage.of(wanted, placed)
    by_name = {host.name: host for host in known}
    ordered = sorted(wanted, key=lambda vm: vm.name)
    return {
        "vms": {name: _with_secondary(vm, placed.get(name)) for name, vm in vms.items()},
        "sentences": [
            _why(vm, by_name, placed[vm.name], before, after)
            for vm in ordered
            if placed.get(vm.name, vm.secondary) != vm.secondary
        ],
        "problems": [
            *_overfull(known, after),
            *(_why_not(vm, by_name, after) for vm in ordered if vm.name not in placed),
        ],
        "quality": quality(known, wanted, placed),
    }


def _with_secondary(vm: Mapping[str, Any], secondary: str | None) -> dict[str, Any]:
    """Settings of a VM; a copy that has no place is not named, so that nobody takes it for a good one."""
    others = {key: value for key, value in vm.items() if key != "secondary"}
    return {**others, "secondary": secondary} if secondary else others


def _why(vm: Vm, hosts: Mapping[str, Host], now: str, before: Usage, after: Usage) -> str:
    """What happens to a copy, and why."""
    there = hosts[now]
    left = f"{after.room(there)} of {there.memory_mib} MiB stay free there"
    if not vm.secondary:
        return f"{vm.name}: its copy comes to {now} ({there.failure_domain}), as it had none; {left}."
    reason = _reason(vm, hosts, before)
    return (
        f"{vm.name}: its copy moves from {vm.secondary} to {now} ({there.failure_domain}), {reason}; {left}."
    )


def _reason(vm: Vm, hosts: Mapping[str, Host], before: Usage) -> str:
    old = hosts.get(vm.secondary)
    if old is None:
        return f"as {vm.secondary} is no host of colo_hosts"
    if old.failure_domain == hosts[vm.primary].failure_domain:
        return f"as {vm.secondary} is in {old.failure_domain} like its primary {vm.primary}"
    if not before.fits(old):
        return f"as {vm.secondary} had more than it may"
    return "to make room, or the spread more even"


def _why_not(vm: Vm, hosts: Mapping[str, Host], after: Usage) -> str:
    """Why a VM has no copy in the plan, by the host that comes nearest."""
    domain = hosts[vm.primary].failure_domain
    others = [host for host in hosts.values() if host.failure_domain != domain]
    need = f"{vm.memory_mib} MiB and {vm.link_mbit} Mbit/s"
    if not others:
        return f"{vm.name} has no host for its copy: all hosts are in {domain}. Give the others their own colo_failure_domain."
    best = max(others, key=lambda host: (after.fits(host, 0, vm.link_mbit), after.room(host), host.name))
    link = "" if best.link_mbit is None else f" and {best.link_mbit - after.link[best.name]} Mbit/s"
    return (
        f"{vm.name} has no host for its copy: it needs {need}, and of {len(others)} hosts outside {domain} {best.name} comes "
        f"nearest, with {after.room(best)} MiB{link} left. Add a host or memory, or protect fewer VMs."
    )


def _overfull(hosts: Iterable[Host], after: Usage) -> list[str]:
    """Hosts that have more than they may whatever is done with the copies."""
    return [
        f"{host.name} runs VMs of {after.run[host.name]} MiB, which is more than its colo_memory_mib of {host.memory_mib}."
        for host in hosts
        if after.run[host.name] > host.memory_mib
    ]


def quality(hosts: Sequence[Host], vms: Sequence[Vm], placed: Mapping[str, str]) -> dict[str, Any]:
    """How full and how even it is, beside what no placement can be better than."""
    after = Usage.of(vms, placed)
    capacity = sum(host.memory_mib for host in hosts)
    fullest = max(hosts, key=lambda host: (after.memory[host.name] / host.memory_mib, host.name))
    bound = max(
        sum(after.memory.values()) / capacity, *(after.run[host.name] / host.memory_mib for host in hosts)
    )
    return {
        "hosts": len(hosts),
        "vms": len(vms),
        "copies": len(placed),
        "moved": sum(bool(vm.secondary) and placed.get(vm.name, vm.secondary) != vm.secondary for vm in vms),
        "fullest_host": fullest.name,
        "fullest": round(after.memory[fullest.name] / fullest.memory_mib, 4),
        "fullest_bound": round(bound, 4),
        "worst_death": _worst_death(hosts, vms, after),
    }


def _worst_death(hosts: Sequence[Host], vms: Sequence[Vm], after: Usage) -> dict[str, Any] | None:
    """The death that leaves most to one single host, beside what an even spread over all that may have it would leave."""
    largest: Counter[str] = Counter()
    for vm in vms:
        largest[vm.primary] = max(largest[vm.primary], vm.memory_mib)
    in_domain = Counter(host.failure_domain for host in hosts)
    domain_of = {host.name: host.failure_domain for host in hosts}

    def even(host: str) -> int:
        return even_spread(after.run[host], largest[host], len(hosts) - in_domain[domain_of[host]])

    left = {pair: mib for pair, mib in after.of_death.items() if mib}
    if not left:
        return None
    host, to = max(left, key=lambda pair: (left[pair] / even(pair[0]), left[pair], pair))
    return {"host": host, "to": to, "mib": left[host, to], "even_mib": even(host)}
