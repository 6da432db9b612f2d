"""What a fleet's inventory says of hosts and VMs for a plan, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

DOMAIN, MEMORY, LINK = "colo_failure_domain", "colo_memory_mib", "colo_link_mbit"


def fleet_problems(vms: Mapping[str, Any], hosts: Sequence[str], variables: Mapping[str, Any]) -> list[str]:
    """What a plan cannot do without, one sentence for each kind, with the first names that it is about."""
    without = {
        key: [host for host in hosts if variables[host].get(key) in (None, "")] for key in (DOMAIN, MEMORY)
    }
    wrong = {
        key: [host for host in hosts if not _is_count(variables[host].get(key, 1))] for key in (MEMORY, LINK)
    }
    meant = {
        DOMAIN: "the rack, room or power feed whose loss takes the host along",
        MEMORY: "how much memory VMs and copies may use there",
    }
    sizes = {
        key: [name for name, vm in vms.items() if not _is_count(vm.get(key, default))]
        for key, default in (("memory_mib", None), ("checkpoint_mbit", 1))
    }
    return [
        *(f"No {key}, {meant[key]}: {_some(names)}." for key, names in without.items() if names),
        *(
            f"{key} is not a whole number above 0: {_some(names)}."
            for key, names in wrong.items()
            if names and names != without.get(key)
        ),
        *(
            f"colo_vms: {key} of a VM, or of its class, has to be a whole number above 0: {_some(names)}."
            for key, names in sizes.items()
            if names
        ),
    ]


def fleet_hosts(hosts: Sequence[str], variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The hosts as the module colo_placement takes them."""
    return [
        {
            "name": host,
            "failure_domain": str(variables[host][DOMAIN]),
            "memory_mib": variables[host][MEMORY],
            **({"link_mbit": variables[host][LINK]} if variables[host].get(LINK) else {}),
        }
        for host in hosts
    ]


def fleet_summary(quality: Mapping[str, Any]) -> list[str]:
    """How good a plan is, in two sentences."""
    lines = [
        f"{quality['copies']} of {quality['vms']} VMs have a copy on {quality['hosts']} hosts, {quality['moved']} copies move. "
        f"The fullest host is {quality['fullest_host']} with {quality['fullest']:.1%} of its memory; no placement has less "
        f"than {quality['fullest_bound']:.1%}."
    ]
    worst = quality["worst_death"]
    if worst:
        lines.append(
            f"The death that leaves most to one host is {worst['host']}'s: {worst['mib']} MiB to {worst['to']}, where an even "
            f"spread would leave {worst['even_mib']} MiB."
        )
    return lines


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_fleet_problems": fleet_problems,
            "colo_fleet_hosts": fleet_hosts,
            "colo_fleet_summary": fleet_summary,
        }
