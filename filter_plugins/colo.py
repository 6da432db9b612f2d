"""Which VMs and hosts of the inventory an operator means, as pure functions: plain data in, plain data or sentences out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


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


def parts(vms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each host the part of ``vms`` that it takes part in: what is asked for each host of a fleet is asked of that."""
    found: dict[str, dict[str, Any]] = {}
    for name, vm in vms.items():
        for side in ("primary", "secondary"):
            if vm.get(side):
                found.setdefault(vm[side], {})[name] = vm
    return found


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
            "colo_selection_problems": selection_problems,
            "colo_host_selection_problems": host_selection_problems,
            "colo_pairs": pairs,
            "colo_parts": parts,
            "colo_batches": batches,
            "colo_channel_keys_of": channel_keys_of,
            "colo_maintenance_problems": maintenance_problems,
            "colo_maintenance_selection": maintenance_selection,
        }
