"""What the playbooks decide and show, as pure functions: plain data in, sentences or text out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
#: A guest may go to a host with a newer Xen where that was proved; the way back was not.
UPGRADE_PAIRS = frozenset({("4.17", "4.20")})
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


def inventory_problems(
    vms: object, hosts: Sequence[str], variables: Mapping[str, Any], optional: Sequence[str] = ()
) -> list[str]:
    """Everything in colo_vms and colo_hosts that cannot work, one sentence each; needs no facts and no host.

    ``optional`` are sides that a VM may be without, for a plan.
    """
    problems = []
    if not isinstance(vms, Mapping):
        return ["colo_vms is not a mapping of VM names to their settings: see inventory/example."]
    used = []
    for name, vm in vms.items():
        if not NAME.fullmatch(str(name)):
            problems.append(
                f"colo_vms: {name!r} is no name for a VM: letters, digits, '_', '.', '-', at most 63."
            )
        if not isinstance(vm, Mapping):
            problems.append(f"colo_vms: {name} is not a mapping of settings: see inventory/example.")
            continue
        sides = {side: vm.get(side) for side in ("primary", "secondary")}
        problems += [
            f"colo_vms: {name} has no {side}."
            for side, host in sides.items()
            if not host and side not in optional
        ]
        problems += [
            f"colo_vms: the {side} of {name} is {host}, which is not in the group colo_hosts ({', '.join(hosts)})."
            for side, host in sides.items()
            if host and host not in hosts
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


def pairs(vms: Mapping[str, Any], host: str, only: str = "") -> list[dict[str, str]]:
    """The VMs that ``host`` takes part in and the other host of each, whichever way round: after a failover roles change.

    ``only`` leaves one VM.
    """
    return [
        {"vm": name, "peer": vm["secondary"] if vm["primary"] == host else vm["primary"]}
        for name, vm in sorted(vms.items())
        if host in (vm["primary"], vm["secondary"]) and only in ("", name)
    ]


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


def pair_problems(vms: Mapping[str, Any], releases: Mapping[str, str]) -> list[str]:
    """VMs whose hosts run Xen releases between which copies are not proved; unknown releases are not judged."""
    problems = []
    for name, vm in vms.items():
        first, second = releases.get(vm["primary"]), releases.get(vm["secondary"])
        if first and second and first != second and (first, second) not in UPGRADE_PAIRS:
            problems.append(
                f"{name}: its primary {vm['primary']} runs Xen {first} and its secondary {vm['secondary']} Xen {second}. "
                "Both must run the same release, or the primary 4.17 and the secondary 4.20."
            )
    return problems


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


def discard_confirmation(vm: str, confirm: str, primary: Mapping[str, Any] | None) -> str:
    """What to confirm the removal of a secondary's copy with: the VM running on its primary is reason enough."""
    return vm if confirm == vm or (primary is not None and primary["domain"]) else ""


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


def maintenance_names(
    report: Mapping[str, Any] | None, selected: Sequence[str], role: str, failed: Sequence[str] = ()
) -> list[str]:
    """VMs whose replicator on one host has ``role`` and is to be told, out of its result of colo_vm_info.

    ``failed`` are those that the other side has not come to do, where this one must not then.
    """
    return [
        name
        for name, entry in sorted((_entries(report) or {}).items())
        if name in selected
        and name not in failed
        and entry["alive"]
        and (entry["config"] or {}).get("arbiter")
        and (entry["state"] or {}).get("role") == role
    ]


def maintenance_selection(vms: Mapping[str, Any], vm: str, host: str) -> list[str]:
    """VMs of the inventory: ``vm`` names one, or all of them; ``host`` leaves those that it takes part in."""
    return [
        name
        for name, sides in sorted(vms.items())
        if vm in ("", "all", name) and host in ("", sides["primary"], sides["secondary"])
    ]


def maintenance_failed(results: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """VMs that one of these looped results of colo_maintenance has failed for."""
    return sorted(
        {
            str(item["item"])
            for result in results
            for item in (result or {}).get("results", [])
            if item.get("failed") or item.get("unreachable")
        }
    )


def maintenance_failures(variables: Mapping[str, Mapping[str, Any]], selected: Sequence[str]) -> list[str]:
    """What could not be told: ``variables`` are each host's, with what playbooks/maintenance.yml registered."""
    problems = []
    told, failed, with_arbiter = set(), set(), set()
    for host, known in variables.items():
        entries = _entries(known.get("colo_look"))
        results = {role: known.get(f"colo_told_{role}") or {} for role in ("secondary", "primary")}
        if entries is None or any(result.get("unreachable") for result in results.values()):
            problems.append(f"{host} does not answer, so not all of its VMs were told.")
        with_arbiter |= {
            name for name, entry in (entries or {}).items() if (entry["config"] or {}).get("arbiter")
        }
        for role, result in results.items():
            for item in result.get("results", []):
                if item.get("failed") and not item.get("unreachable"):
                    problems.append(f"{item['item']} on {host}: {item['msg']}")
                    failed.add(item["item"])
                elif role == "primary" and not item.get("unreachable"):
                    told.add(item["item"])
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


def _entries(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not report or report.get("unreachable") or "vms" not in report:
        return None
    return {entry["name"]: entry for entry in report["vms"]}


def _row(
    name: str, vm: Mapping[str, Any] | None, known: Mapping[str, dict[str, Any] | None]
) -> tuple[str, ...]:
    holders = {host: entries[name] for host, entries in known.items() if entries and name in entries}
    primary, secondary = (vm["primary"], vm["secondary"]) if vm else _sides(holders)
    sides = [holders.get(host) for host in (primary, secondary)]
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
        _reason(name, vm, (primary, secondary), sides, known),
    )


def _link(channels: Mapping[str, Any]) -> str:
    """The peer's life and the median round trip to it, as of the last checkpoint; which channels are broken, if any."""
    round_trip = (channels.get("round_trip") or {}).get("p50_ms")
    words = [str(channels.get("life", "-")), *([] if round_trip is None else [f"{round_trip:.0f} ms"])]
    return " ".join([*words, *(f"no {name}" for name in sorted(channels.get("broken") or {}))])


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
    if (
        first
        and second
        and first["phase"] == second["phase"] == "replicating"
        and first["alive"]
        and second["alive"]
    ):
        return " ".join([*sentences, first["sentence"]])
    sentences += [side["sentence"] for side in sides if side]
    return " ".join(sentences) or f"{name} is not protected."


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_inventory_problems": inventory_problems,
            "colo_selection_problems": selection_problems,
            "colo_pairs": pairs,
            "colo_channel_keys_of": channel_keys_of,
            "colo_bridges": bridges,
            "colo_pair_problems": pair_problems,
            "colo_failover_problems": failover_problems,
            "colo_discard_confirmation": discard_confirmation,
            "colo_maintenance_problems": maintenance_problems,
            "colo_maintenance_names": maintenance_names,
            "colo_maintenance_selection": maintenance_selection,
            "colo_maintenance_failed": maintenance_failed,
            "colo_maintenance_failures": maintenance_failures,
            "colo_status_table": status_table,
        }
