"""What the inventory says, and what of it an operator means, as pure functions: plain data in, sentences out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
#: Numbers of a VM in colo_vms: name, default, least and most.
_NUMBERS = (
    ("interval_ms", 1000, 10, 3_600_000),
    ("min_interval_ms", 100, 10, 3_600_000),
    ("latency_ms", 500, 1, 600_000),
    ("copy_downtime_ms", 300, 1, 600_000),
    ("peer_timeout_ms", 5000, 500, 600_000),
    ("heartbeat_misses", 5, 2, 100),
)
#: When a VM's packets may leave; the first is the default.
_OUTPUTS = ("compare", "hold", "free")
#: All that may stand at a VM; the last two are for a plan.
_KEYS = (
    "primary",
    "secondary",
    "output",
    "bridge",
    "arbiter",
    *(key for key, *_ in _NUMBERS),
    "memory_mib",
    "checkpoint_mbit",
)


def inventory_problems(
    vms: object, hosts: Sequence[str], variables: Mapping[str, Any], optional: Sequence[str] = ()
) -> list[str]:
    """Everything in colo_vms and colo_hosts that cannot work, one sentence each; needs no facts and no host.

    ``optional`` are sides that a VM may be without, or have on a host that is gone, for a plan.
    """
    problems = []
    if not isinstance(vms, Mapping):
        return ["colo_vms is not a mapping of VM names to their settings: see inventory/example."]
    used = []
    for name, vm in vms.items():
        if not isinstance(name, str):
            problems.append(
                f"colo_vms: {name!r} is no text to YAML, and the name of a VM has to be: quote it."
            )
        elif not NAME.fullmatch(name):
            problems.append(
                f"colo_vms: {name!r} is no name for a VM: letters, digits, '_', '.', '-', at most 63."
            )
        if not isinstance(vm, Mapping):
            problems.append(f"colo_vms: {name} is not a mapping of settings: see inventory/example.")
            continue
        problems += [
            f"colo_vms: {name} has {key!r}, which is none of {', '.join(_KEYS)}."
            for key in vm
            if key not in _KEYS
        ]
        sides = {side: vm.get(side) for side in ("primary", "secondary")}
        problems += [
            f"colo_vms: {name} has no {side}."
            for side, host in sides.items()
            if not host and side not in optional
        ]
        problems += [
            f"colo_vms: the {side} of {name} is {host}, which is not in the group colo_hosts ({', '.join(hosts)})."
            for side, host in sides.items()
            if host and host not in hosts and side not in optional
        ]
        if sides["primary"] and sides["primary"] == sides["secondary"]:
            problems.append(f"colo_vms: primary and secondary of {name} are both {sides['primary']}.")
        problems += [
            f"colo_vms: {key} of {name} is {value!r}, not a whole number from {low} to {high}."
            for key, default, low, high in _NUMBERS
            for value in (vm.get(key, default),)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high
        ]
        if vm.get("output", _OUTPUTS[0]) not in _OUTPUTS:
            problems.append(
                f"colo_vms: output of {name} is {vm['output']!r}, which is none of {', '.join(_OUTPUTS)}."
            )
        used += [host for host in sides.values() if host in hosts]
    problems += [
        f"{host} has no colo_channel_address: the address at which its peer's channels reach its sshd."
        for host in sorted(set(used))
        if not variables[host].get("colo_channel_address")
    ]
    return problems


def selection_problems(
    vms: Mapping[str, Any], vm: str, confirm: str | None = None, usage: str = ""
) -> list[str]:
    """Why ``-e colo_vm=VM`` (and, where it is a string, ``-e colo_confirm=VM``) cannot be meant."""
    known = ", ".join(sorted(vms)) or "none yet"
    if not vm:
        return [f"Say which VM: -e colo_vm=NAME. The inventory's colo_vms has: {known}."]
    if vm not in vms:
        return [f"colo_vms has no VM {vm}; it has: {known}."]
    if confirm is not None and confirm != vm:
        return [
            f"This cannot be undone: confirm it with the VM's name, {usage} -e colo_vm={vm} -e colo_confirm={vm}."
        ]
    return []


def host_selection_problems(hosts: Sequence[str], host: str, confirm: str, usage: str) -> list[str]:
    """Why ``-e colo_host=HOST -e colo_confirm=HOST`` cannot be meant."""
    known = ", ".join(sorted(hosts)) or "none yet"
    if not host:
        return [f"Say which host: -e colo_host=NAME. The group colo_hosts has: {known}."]
    if host not in hosts:
        return [f"colo_hosts has no host {host}; it has: {known}."]
    if confirm != host:
        return [f"Confirm it with the host's name, {usage} -e colo_host={host} -e colo_confirm={host}."]
    return []


def pairs(vms: Mapping[str, Any], host: str, only: str = "") -> list[dict[str, str]]:
    """The VMs that ``host`` takes part in and the other host of each, whichever way round: after a failover roles change.

    ``only`` leaves one VM.
    """
    return [
        {"vm": name, "peer": vm["secondary"] if vm["primary"] == host else vm["primary"]}
        for name, vm in sorted(vms.items())
        if host in (vm["primary"], vm["secondary"]) and only in ("", name)
    ]


def batches(hosts: Sequence[str], vms: Mapping[str, Any], sizes: object = 0) -> list[list[str]]:
    """All of ``hosts`` in batches, so that the two hosts of a VM are always in the same one.

    ``sizes`` counts groups of hosts that VMs link, which is pairs where each host has one peer: a number for every batch, or
    one for the first, the second and so on, of which the last goes on; 0 or none: all at once. Raises ValueError.
    """
    wanted = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
    if any(isinstance(size, bool) or not str(size).isdecimal() for size in wanted):
        raise ValueError(f"colo_batch is {sizes!r}, not a number of pairs or a list of numbers.")
    linked = {host: [host] for host in hosts}
    for vm in vms.values():
        one, other = (linked.get(vm.get(side)) for side in ("primary", "secondary"))
        if one is None or other is None or one is other:
            continue
        one += other
        linked |= dict.fromkeys(other, one)
    groups = [members for host, members in linked.items() if members[0] == host]
    found: list[list[str]] = []
    while groups:
        size = int(wanted[min(len(found), len(wanted) - 1)] if wanted else 0) or len(groups)
        found.append([host for members in groups[:size] for host in members])
        groups = groups[size:]
    return found


def channel_keys_of(results: Sequence[Mapping[str, Any]], vm: str) -> dict[str, list[str]]:
    """What a host says of itself for ``vm``, out of its results of colo_channel in a loop: all its keys, and its host keys.

    A key that is only predicted, in a dry run, is empty.
    """
    for result in results:
        if result["vm"] == vm:
            keys = [result["public_key"], *filter(None, [result["next_public_key"]])]
            return {"public_keys": keys, "host_keys": list(result["host_keys"])}
    return {"public_keys": [], "host_keys": []}


def bridges(vms: Mapping[str, Any], host: str) -> list[str]:
    """The bridges that ``host`` needs for its VMs."""
    return sorted(
        {vm.get("bridge", "xenbr0") for vm in vms.values() if host in (vm["primary"], vm["secondary"])}
    )


def maintenance_problems(
    vms: Mapping[str, Any], hosts: Sequence[str], vm: str, host: str, reason: str | None
) -> list[str]:
    """Why ``-e colo_vm=VM|all``, ``-e colo_host=HOST`` and ``-e colo_reason=TEXT`` cannot be meant; None: none is needed."""
    problems = []
    if not vm and not host:
        problems.append(
            "Say which VMs: -e colo_vm=NAME, -e colo_vm=all, or all of a host: -e colo_host=NAME."
        )
    if vm not in ("", "all"):
        problems += selection_problems(vms, vm)
    if host and host not in hosts:
        problems.append(f"colo_hosts has no host {host}; it has: {', '.join(sorted(hosts)) or 'none yet'}.")
    if reason is not None and not reason.strip():
        problems.append(
            "Say why, for the record: -e colo_reason='new disks'. To end it: -e colo_maintenance=false."
        )
    return problems


def maintenance_selection(vms: Mapping[str, Any], vm: str, host: str) -> list[str]:
    """VMs of the inventory: ``vm`` names one, or all of them; ``host`` leaves those that it takes part in."""
    return [
        name
        for name, sides in sorted(vms.items())
        if vm in ("", "all", name) and host in ("", sides["primary"], sides["secondary"])
    ]


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_inventory_problems": inventory_problems,
            "colo_selection_problems": selection_problems,
            "colo_host_selection_problems": host_selection_problems,
            "colo_pairs": pairs,
            "colo_batches": batches,
            "colo_channel_keys_of": channel_keys_of,
            "colo_bridges": bridges,
            "colo_maintenance_problems": maintenance_problems,
            "colo_maintenance_selection": maintenance_selection,
        }
