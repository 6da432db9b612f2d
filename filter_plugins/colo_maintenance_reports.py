"""Which replicators are told of maintenance, and which could not be, as pure functions on what its playbook registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def names(report: Mapping[str, Any] | None, selected: Sequence[str], role: str) -> list[str]:
    """VMs whose replicator on one host has ``role`` and is to be told, out of its result of colo_vm_info."""
    return [
        name
        for name, entry in sorted((_looked(report) or {}).items())
        if name in selected
        and entry["alive"]
        and (entry["config"] or {}).get("arbiter")
        and (entry["state"] or {}).get("role") == role
    ]


def failed(results: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """VMs that one of these looped results of colo_maintenance has failed for."""
    return sorted({str(item["item"]) for item in _items(results) if _failed(item)})


def told(results: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """VMs that one of these looped results of colo_maintenance has not failed for."""
    return sorted(
        {str(item["item"]) for item in _items(results) if not _failed(item) and not item.get("skipped")}
    )


def failures(variables: Mapping[str, Mapping[str, Any]], selected: Sequence[str]) -> list[str]:
    """What could not be told: ``variables`` are each host's, with what playbooks/maintenance.yml registered."""
    problems = []
    reached, refused, with_arbiter = set(), set(), set()
    for host, known in variables.items():
        entries = _looked(known.get("colo_look"))
        results = [known.get(f"colo_told_{whom}") for whom in ("secondary", "primary", "secondary_at_last")]
        if entries is None or any((result or {}).get("unreachable") for result in results):
            problems.append(f"{host} does not answer, so not all of its VMs were told.")
        with_arbiter |= {
            name for name, entry in (entries or {}).items() if (entry["config"] or {}).get("arbiter")
        }
        problems += [
            f"{item['item']} on {host}: {item['msg']}"
            for item in _items(results)
            if item.get("failed") and not item.get("unreachable")
        ]
        refused |= set(failed(results))
        reached |= set(told([known.get("colo_told_primary")]))
    problems += [
        f"{name} has no primary that runs and could be told: see playbooks/status.yml."
        for name in selected
        if name in with_arbiter - reached - refused
    ]
    return problems


def _items(results: Sequence[Mapping[str, Any] | None]) -> list[Mapping[str, Any]]:
    return [item for result in results for item in (result or {}).get("results", [])]


def _failed(item: Mapping[str, Any]) -> bool:
    return bool(item.get("failed") or item.get("unreachable"))


def _looked(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A host's VMs by name, out of its result of colo_vm_info; None when it did not answer."""
    if not report or "vms" not in report:
        return None
    return {entry["name"]: entry for entry in report["vms"]}


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_maintenance_names": names,
            "colo_maintenance_failed": failed,
            "colo_maintenance_told": told,
            "colo_maintenance_failures": failures,
        }
