"""What follows from what the hosts say of their VMs, as pure functions: results of colo_vm_info in, sentences or text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

COLUMNS = (
    "VM",
    "MODE",
    "PRIMARY",
    "SECONDARY",
    "EPOCHS",
    "PAUSE_MS",
    "|A|",
    "|B|",
    "|D|",
    "BYTES",
    "LINK",
    "REASON",
)

#: What a VM in colo_vms has when it does not say: the defaults of the role colo_vm.
_DEFAULTS: dict[str, object] = {
    "interval_ms": 1000,
    "min_interval_ms": 100,
    "latency_ms": 500,
    "copy_downtime_ms": 300,
    "output": "compare",
    "peer_timeout_ms": 5000,
    "heartbeat_misses": 5,
    "bridge": "xenbr0",
}


def failover_problems(
    secondary: Mapping[str, Any], primary: Mapping[str, Any] | None, hosts: Mapping[str, str]
) -> list[str]:
    """Why the copy must not take over now. ``primary`` is None when its host does not answer.

    Both are entries of colo_vm_info; ``hosts`` names the two. Two running copies are the worst that can happen, so
    everything that may be one counts as one.
    """
    name = secondary["name"]
    if primary is None or not primary["may_run_vm"]:
        return []
    evidence = []
    if not primary["domains_known"]:
        evidence.append("Xen there does not tell its domains")
    elif primary["domain"]:
        evidence.append(f"domain {name} exists there (state {primary['domain']['state']})")
    if primary["alive"]:
        evidence.append(f"its replicator runs (phase {primary['phase'] or 'unknown'})")
    what = " and ".join(evidence)
    if secondary["protection"] == "active":
        return [
            f"TWO COPIES of {name} may be running: {hosts['secondary']} took over, and {hosts['primary']} answers: {what}. "
            f"Decide at once which one is right and remove the other with 'xl destroy {name}' on its host."
        ]
    return [
        f"{name} is not failed over, because it may still run on its primary {hosts['primary']}, which answers: {what}. "
        f"Two running copies would be worse than none. If the VM on {hosts['primary']} is broken, end it first: "
        f"'systemctl stop colo-replicator@{name}' and 'xl destroy {name}' there, then run this again."
    ]


def exported(reports: Mapping[str, Any], vms: Mapping[str, Any]) -> dict[str, Any]:
    """``vms`` as the hosts have them now: roles and settings of each VM that is protected, the others as they were.

    ``reports`` as for the table. ``notes`` says what is different, and what cannot be told.
    """
    known = {host: _entries(report) for host, report in reports.items()}
    found = {str(name): dict(vm) for name, vm in vms.items()}
    notes = [
        f"{host} does not answer: what it has is as colo_vms said." for host in reports if known[host] is None
    ]
    for host, entries in sorted(known.items()):
        for name, entry in sorted((entries or {}).items()):
            if entry["alive"] and entry["config"] and (entry["state"] or {}).get("role") == "primary":
                was, now = found.get(name, {}), _settings(entry["config"], host, with_arbiter=name not in vms)
                found[name] = {**was, **{key: now[key] for key in now if key in was or _chosen(key, now)}}
                notes += [f"{name}: {_difference(key, was, now)}" for key in now if _differs(key, was, now)]
    return {"vms": found, "notes": notes}


def _settings(config: Mapping[str, Any], host: str, *, with_arbiter: bool) -> dict[str, Any]:
    """What a primary's configuration says of what stands in colo_vms."""
    settings = {key: config[key] for key in _DEFAULTS if key in config}
    if with_arbiter and "arbiter" in config:
        settings["arbiter"] = {key: value for key, value in config["arbiter"].items() if key != "host"}
    return {"primary": host, "secondary": config["peer"]["name"], **settings}


def _chosen(key: str, now: Mapping[str, Any]) -> bool:
    return bool(_DEFAULTS.get(key) != now[key])


def _differs(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return bool(was.get(key, _DEFAULTS.get(key)) != now[key])


def _difference(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"{key} is {now[key]!r}" + (f", where colo_vms has {was[key]!r}." if key in was else ".")


def purge_problems(report: Mapping[str, Any], host: str) -> list[str]:
    """Why a host must keep what it has: VMs that are protected there, out of its result of colo_vm_info."""
    return [
        f"{entry['name']} is still protected on {host} ({entry['phase'] or 'configured'}): end that first with "
        f"playbooks/unprotect.yml -e colo_vm={entry['name']}."
        for entry in report["vms"]
        if entry["alive"] or entry["config"] or entry["protection"] != "stopped"
    ]


def discard_confirmation(vm: str, confirm: str, primary: Mapping[str, Any] | None) -> str:
    """What to confirm the removal of a secondary's copy with: the VM running on its primary is reason enough."""
    return vm if confirm == vm or (primary is not None and primary["domain"]) else ""


def maintenance_names(report: Mapping[str, Any] | None, selected: Sequence[str], role: str) -> list[str]:
    """VMs whose replicator on one host has ``role`` and is to be told, out of its result of colo_vm_info."""
    return [
        name
        for name, entry in sorted((_entries(report) or {}).items())
        if name in selected
        and entry["alive"]
        and (entry["config"] or {}).get("arbiter")
        and (entry["state"] or {}).get("role") == role
    ]


def maintenance_failed(results: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """VMs that one of these looped results of colo_maintenance has failed for."""
    return sorted({str(item["item"]) for item in _items(results) if _failed(item)})


def maintenance_told(results: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """VMs that one of these looped results of colo_maintenance has not failed for."""
    return sorted(
        {str(item["item"]) for item in _items(results) if not _failed(item) and not item.get("skipped")}
    )


def _items(results: Sequence[Mapping[str, Any] | None]) -> list[Mapping[str, Any]]:
    return [item for result in results for item in (result or {}).get("results", [])]


def _failed(item: Mapping[str, Any]) -> bool:
    return bool(item.get("failed") or item.get("unreachable"))


def maintenance_failures(variables: Mapping[str, Mapping[str, Any]], selected: Sequence[str]) -> list[str]:
    """What could not be told: ``variables`` are each host's, with what playbooks/maintenance.yml registered."""
    problems = []
    told, failed, with_arbiter = set(), set(), set()
    for host, known in variables.items():
        entries = _entries(known.get("colo_look"))
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
        failed |= set(maintenance_failed(results))
        told |= set(maintenance_told([known.get("colo_told_primary")]))
    problems += [
        f"{name} has no primary that runs and could be told: see playbooks/status.yml."
        for name in selected
        if name in with_arbiter - told - failed
    ]
    return problems


def status_table(reports: Mapping[str, Any], vms: Mapping[str, Any]) -> str:
    """One line for each VM of the inventory and for each that a host knows besides.

    ``reports`` maps a host to the result of colo_vm_info; a host without one, or with ``unreachable``, did not answer.
    """
    known = {host: _entries(report) for host, report in reports.items()}
    names = sorted({*vms, *(name for entries in known.values() if entries for name in entries)})
    rows = [COLUMNS, *(_row(name, vms.get(name), known) for name in names)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines)


def unprotected(reports: Mapping[str, Any], vms: Mapping[str, Any]) -> list[str]:
    """One sentence for each VM, of the inventory or that a host knows besides, that does not run on two hosts now.

    ``reports`` as for the table.
    """
    known = {host: _entries(report) for host, report in reports.items()}
    names = sorted({*vms, *(name for entries in known.values() if entries for name in entries)})
    found = []
    for name in names:
        hosts = _hosts(name, vms.get(name), known)
        sides = [(known.get(host) or {}).get(name) for host in hosts]
        if not _both_replicate(sides):
            reason = _reason(name, vms.get(name), hosts, sides, known)
            found.append(f"{name} is not protected: {reason}" if reason else f"{name} is not protected.")
    return found


def _entries(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not report or report.get("unreachable") or "vms" not in report:
        return None
    return {entry["name"]: entry for entry in report["vms"]}


def _row(
    name: str, vm: Mapping[str, Any] | None, known: Mapping[str, dict[str, Any] | None]
) -> tuple[str, ...]:
    primary, secondary = _hosts(name, vm, known)
    sides = [(known.get(host) or {}).get(name) for host in (primary, secondary)]
    states = [side["state"] or {} for side in sides if side and not side["stale"]]
    lead = next((state for state in states if state.get("last")), states[0] if states else {})
    last = lead.get("last") or {}
    numbers = [last.get(key) for key in ("a_pages", "b_pages", "d_pages", "bytes")]
    pause = last.get("pause_ms")
    return (
        name,
        str(lead.get("mode") or "-"),
        _side(primary, sides[0], known),
        _side(secondary, sides[1], known),
        str(lead.get("epoch", "-")),
        "-" if pause is None else f"{pause:.0f}",
        *("-" if number is None else str(number) for number in numbers),
        _link(lead.get("channels") or {}),
        _reason(name, vm, (primary, secondary), sides, known) or f"{name} is not protected.",
    )


def _link(channels: Mapping[str, Any]) -> str:
    """The peer's life and the median round trip to it, as of the last checkpoint; which channels are broken, if any."""
    round_trip = (channels.get("round_trip") or {}).get("p50_ms")
    words = [str(channels.get("life", "-")), *([] if round_trip is None else [f"{round_trip:.0f} ms"])]
    return " ".join([*words, *(f"no {name}" for name in sorted(channels.get("broken") or {}))])


def _hosts(
    name: str, vm: Mapping[str, Any] | None, known: Mapping[str, dict[str, Any] | None]
) -> tuple[str, str]:
    """Primary and secondary, as the inventory says."""
    if vm:
        return vm["primary"], vm["secondary"]
    return _sides({host: entries[name] for host, entries in known.items() if entries and name in entries})


def _both_replicate(sides: Sequence[Mapping[str, Any] | None]) -> bool:
    return all(side is not None and side["phase"] == "replicating" and side["alive"] for side in sides)


def _sides(holders: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Primary and secondary as the hosts themselves say, of a VM that the inventory does not have."""
    roles = {
        (entry["config"] or entry["state"] or {}).get("role", ""): host for host, entry in holders.items()
    }
    return roles.get("primary", "-"), roles.get("secondary", "-")


def _side(host: str, entry: Mapping[str, Any] | None, known: Mapping[str, Any]) -> str:
    if host == "-":
        return "-"
    if entry is None:
        return f"{host} {'unreachable' if known.get(host) is None else 'not protected'}"
    phase = entry["phase"] or ("no state" if entry["alive"] else "not protected")
    dead = not entry["alive"] and phase not in ("stopped", "failed", "unprotected", "active", "not protected")
    return f"{host} {phase}{' (dead)' if dead else ''}"


def _reason(
    name: str,
    vm: Mapping[str, Any] | None,
    hosts: tuple[str, str],
    sides: Sequence[Mapping[str, Any] | None],
    known: Mapping[str, Any],
) -> str:
    first, second = sides
    if first and second and second["protection"] == "active" and first["may_run_vm"]:
        return f"TWO COPIES may be running: {hosts[1]} took over, and {hosts[0]} may still run {name}."
    sentences = [] if vm else [f"{name} is not in the inventory's colo_vms."]
    reasons = {(side["state"] or {}).get("maintenance") for side in sides if side and not side["stale"]}
    sentences += [f"In maintenance: {reason}." for reason in sorted(filter(None, reasons))]
    sentences += [f"{host} does not answer." for host in hosts if host != "-" and known.get(host) is None]
    if first and _both_replicate(sides):
        return " ".join([*sentences, first["sentence"]])
    sentences += [side["sentence"] for side in sides if side]
    return " ".join(sentences)


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_failover_problems": failover_problems,
            "colo_discard_confirmation": discard_confirmation,
            "colo_maintenance_names": maintenance_names,
            "colo_maintenance_failed": maintenance_failed,
            "colo_maintenance_told": maintenance_told,
            "colo_maintenance_failures": maintenance_failures,
            "colo_status_table": status_table,
            "colo_unprotected": unprotected,
            "colo_exported": exported,
            "colo_purge_problems": purge_problems,
        }
