"""What follows from what the hosts say of their VMs, as pure functions: results of colo_vm_info in, sentences or text out."""

from __future__ import annotations

import re
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

#: What of a replicator's configuration stands in colo_vms.
_SETTINGS = (
    "interval_ms",
    "min_interval_ms",
    "latency_ms",
    "copy_downtime_ms",
    "output",
    "peer_timeout_ms",
    "heartbeat_misses",
    "bridge",
)

#: Phases of a copy that was the VM until a switch-over.
_STANDING_BY = frozenset({"standby", "handed_over"})
#: Phases of a secondary whose domain is a copy: off the network, or standing still.
_COPY = frozenset({"receiving", "resyncing", "replicating", "peer_lost", "torn"}) | _STANDING_BY

#: What ssh says of a host from which nothing comes, and of one that answers at least at its address.
_SILENT = (
    "timed out",
    "not responding",
    "no route to host",
    "network is unreachable",
    "could not resolve",
    "host is down",
)
_ANSWERS = (
    "banner exchange",
    "connection refused",
    "permission denied (",
    "host key verification failed",
)
#: What Ansible puts before it.
_ANSIBLES = re.compile(r"^.*\b(via|over) ssh: ", re.IGNORECASE)
#: This machine itself refuses: nobody is behind a forwarded port of it, and nothing was heard of the host.
_FORWARDED = re.compile(r"connect to host (127\.[0-9.]+|::1|localhost) port \d+: connection refused")


def failover_problems(
    looks: Mapping[str, Mapping[str, Any]],
    vm: str,
    hosts: Mapping[str, str],
    override: bool = False,
    reason: str = "",
) -> list[str]:
    """Why the copy must not take over now.

    ``looks`` has the results of colo_vm_info of the ``primary`` and the ``secondary`` that ``hosts``, the VM's entry in
    colo_vms, names. A secondary that does not answer is not told of. Two running copies are the worst that can happen, so
    everything that may be one counts as one; only that its host was not looked at may be answered for (``override``).
    """
    known = {hosts[side]: _entries(look) for side, look in looks.items()}
    primary, secondary = ((known[hosts[side]] or {}).get(vm) for side in ("primary", "secondary"))
    if alarm := _two_copies(vm, known):
        return [alarm]
    if secondary and (secondary["protection"] == "active" or _handed_over_unheard(primary, secondary)):
        return []
    if primary and _is_copy(primary) and _is_there(primary):
        return [_other_way_round(vm, hosts, primary["phase"])]
    if secondary is None:
        return []
    if primary is None:
        return _not_silent(vm, looks["primary"], hosts["primary"], override, reason)
    return _may_still_run(vm, primary, hosts)


def _handed_over_unheard(primary: Mapping[str, Any] | None, secondary: Mapping[str, Any]) -> bool:
    """Whether the primary has handed the VM over, and its replicator has ended, and the secondary has not heard of that."""
    if (
        primary is None
        or primary["alive"]
        or secondary["phase"] != "peer_lost"
        or not primary["domains_known"]
    ):
        return False
    still = not primary["domain"] or "p" in primary["domain"]["state"]
    return primary["phase"] in _STANDING_BY and _is_its_domain(primary) and still


def _other_way_round(vm: str, hosts: Mapping[str, str], phase: str) -> str:
    return (
        f"The copy of {vm} is on {hosts['primary']} ({phase}), which colo_vms has as its primary: make {hosts['primary']} the "
        f"secondary of {vm} in colo_vms, and {hosts['secondary']} its primary, and run this again."
    )


def _not_silent(vm: str, look: Mapping[str, Any], host: str, override: bool, reason: str) -> list[str]:
    """Why it is not known that a host which could not be looked at is as silent as a dead one."""
    said = _ANSIBLES.sub("", " ".join(str(look.get("msg", "nothing was asked")).split())).rstrip(".")
    words = said.lower()
    silent = any(sign in words for sign in _SILENT) and not any(sign in words for sign in _ANSWERS)
    if look.get("unreachable") and (silent or _FORWARDED.search(words)):
        return []
    if override and reason.strip():
        return []
    return [
        f"{vm} is not failed over, because {host} lets nobody in, and is not silent as a dead host is: {said}. Its VM may run. "
        f"Let this controller in, or make sure that {host} is off and answer for it with -e colo_override=true "
        "-e colo_reason='...'."
    ]


def _may_still_run(vm: str, primary: Mapping[str, Any], hosts: Mapping[str, str]) -> list[str]:
    if not primary["may_run_vm"]:
        return []
    evidence = []
    if not primary["domains_known"]:
        evidence.append("Xen there does not tell its domains")
    elif primary["domain"]:
        evidence.append(f"domain {vm} exists there (state {primary['domain']['state']})")
    if primary["alive"]:
        evidence.append(f"its replicator runs (phase {primary['phase'] or 'unknown'})")
    return [
        f"{vm} is not failed over, because it may still run on its primary {hosts['primary']}, which answers: "
        f"{' and '.join(evidence)}. Two running copies would be worse than none. If the VM on {hosts['primary']} is broken, "
        f"end it there first: {_how_to_end(vm, primary, hosts['secondary'])}. Then run this again."
    ]


def _how_to_end(name: str, primary: Mapping[str, Any], secondary: str) -> str:
    """How the VM ends on its primary so that its copy stays: a replicator that is stopped before has the copy destroyed."""
    gone = not primary["domain"] and primary["domains_known"]
    steps = [] if gone else [f"'xl destroy {name}'"]
    if primary["alive"]:
        steps.append(f"'systemctl stop colo-replicator@{name}'")
    if len(steps) < 2:
        return "".join(steps)
    noticed = "when playbooks/status.yml shows 'awaiting_guest' for it"
    return f"{steps[0]} before anything else (its copy on {secondary} is kept); {noticed}, {steps[1]}"


def exported(
    reports: Mapping[str, Any], vms: Mapping[str, Any], settled: Mapping[str, Any]
) -> dict[str, Any]:
    """``vms`` as the hosts have them now: roles and settings of each VM that is protected, the others as they were.

    ``reports`` as for the table; ``settled`` are ``vms`` with their classes and defaults. ``notes`` says what is different, and
    what cannot be told.
    """
    known = {host: _entries(report) for host, report in reports.items()}
    found = {str(name): dict(vm) for name, vm in vms.items()}
    notes = [
        f"{host} does not answer: what it has is as colo_vms said." for host in reports if known[host] is None
    ]
    for host, entries in sorted(known.items()):
        for name, entry in sorted((entries or {}).items()):
            if entry["alive"] and entry["config"] and (entry["state"] or {}).get("role") == "primary":
                was, meant = found.get(name, {}), settled.get(name, {})
                now = _settings(entry["config"], host, with_arbiter=name not in vms)
                different = {key: value for key, value in now.items() if meant.get(key) != value}
                found[name] = {**was, **{key: now[key] for key in now if key in was or key in different}}
                notes += [f"{name}: {_difference(key, meant, now)}" for key in different]
    return {"vms": found, "notes": notes}


def _settings(config: Mapping[str, Any], host: str, *, with_arbiter: bool) -> dict[str, Any]:
    """What a primary's configuration says of what stands in colo_vms."""
    settings = {key: config[key] for key in _SETTINGS if key in config}
    if with_arbiter and "arbiter" in config:
        settings["arbiter"] = {key: value for key, value in config["arbiter"].items() if key != "host"}
    return {"primary": host, "secondary": config["peer"]["name"], **settings}


def _difference(key: str, meant: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"{key} is {now[key]!r}" + (f", where colo_vms means {meant[key]!r}." if key in meant else ".")


def purge_problems(report: Mapping[str, Any], host: str) -> list[str]:
    """Why a host must keep what it has: VMs that are protected there, out of its result of colo_vm_info."""
    return [sentence for entry in report["vms"] if (sentence := _purge_problem(entry, host))]


def _purge_problem(entry: Mapping[str, Any], host: str) -> str:
    name = entry["name"]
    if entry["alive"] or entry["config"]:
        return (
            f"{name} is still protected on {host} ({entry['phase'] or 'configured'}): end that first with "
            f"playbooks/unprotect.yml -e colo_vm={name}."
        )
    if not entry["domain"]:
        return ""
    if entry["protection"] == "stopped":
        if not _is_copy(entry):
            return ""
        return (
            f"A copy of {name} is left on {host} ({entry['phase']}), and nobody keeps it: when {name} runs on another host, "
            f"remove it with 'xl destroy {name}', then run this again."
        )
    if entry["protection"] == "active":
        return (
            f"{name} runs on {host} since it took over, and its protection has ended: shut it down with 'xl shutdown {name}', "
            f"or move it with 'xl migrate {name} HOST', then run this again."
        )
    return (
        f"A copy of {name} stands still on {host} since a switch-over, and nobody keeps it: when {name} runs on another host, "
        f"remove it with 'xl destroy {name}', then run this again."
    )


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
        if not _both_replicate(sides) or _two_copies(name, known):
            reason = _reason(name, vms.get(name), hosts, sides, known)
            found.append(f"{name} is not protected: {reason}" if reason else f"{name} is not protected.")
    return found


def _entries(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not report or report.get("unreachable") or "vms" not in report:
        return None
    return {entry["name"]: entry for entry in report["vms"]}


def _is_there(entry: Mapping[str, Any]) -> bool:
    return bool(entry["domain"]) or not entry["domains_known"]


def _can_run(entry: Mapping[str, Any]) -> bool:
    """Whether it may be the VM that people use: a domain without its device model is not."""
    return _is_there(entry) and not (entry["domain"] or {}).get("headless")


def _role(entry: Mapping[str, Any]) -> str:
    """What its replicator has been since the host was started; empty when that is not known."""
    return "" if entry["stale"] else str((entry["state"] or {}).get("role", ""))


def _is_copy(entry: Mapping[str, Any]) -> bool:
    return _role(entry) == "secondary" and entry["phase"] in _COPY and _is_its_domain(entry)


def _is_its_domain(entry: Mapping[str, Any]) -> bool:
    """Whether the domain there is the one that its replicator speaks of; somebody may have made another of that name.

    A replicator of the release before this one that is ``receiving`` a copy still speaks of the one before.
    """
    domain = entry["domain"] or {}
    if not domain or entry["phase"] == "receiving":
        return True
    return (entry["state"] or {}).get("domid") in (None, domain.get("domid"))


def _is_vm(entry: Mapping[str, Any]) -> bool:
    """Whether the host says itself that the VM is there, and not a copy of it."""
    return _can_run(entry) and (entry["protection"] == "active" or _role(entry) == "primary")


def _two_copies(name: str, known: Mapping[str, dict[str, Any] | None]) -> str:
    """That the VM may run on two hosts, by what any two of them say; empty when it does not."""
    entries = {host: found[name] for host, found in sorted(known.items()) if found and name in found}
    vms = sorted(
        (host for host in entries if _is_vm(entries[host])),
        key=lambda host: entries[host]["protection"] != "active",
    )
    others = [host for host in entries if _can_run(entries[host]) and not _is_copy(entries[host])]
    for host in vms:
        for other in others:
            if other != host:
                how = "took over" if entries[host]["protection"] == "active" else "is its primary"
                return (
                    f"TWO COPIES may be running: {host} {how}, and {other} may still run {name}. Decide at once which one is "
                    f"right and remove the other with 'xl destroy {name}' on its host."
                )
    return ""


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
    """Primary and secondary as their replicators say, else as the inventory does."""
    if vm:
        primary, secondary = vm["primary"], vm["secondary"]
        there = [(known.get(host) or {}).get(name) for host in (primary, secondary)]
        roles = [_role(entry) if entry and entry["alive"] else "" for entry in there]
        swapped = roles[1] == "primary" != roles[0]
        return (secondary, primary) if swapped else (primary, secondary)
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
    dead = not entry["alive"] and phase not in ("stopped", "failed", "not protected")
    return f"{host} {phase}{' (dead)' if dead else ''}"


def _reason(
    name: str,
    vm: Mapping[str, Any] | None,
    hosts: tuple[str, str],
    sides: Sequence[Mapping[str, Any] | None],
    known: Mapping[str, Any],
) -> str:
    if alarm := _two_copies(name, known):
        return alarm
    sentences = [] if vm else [f"{name} is not in the inventory's colo_vms."]
    sentences += [f"colo_vms has {vm['primary']} as its primary."] if vm and vm["primary"] != hosts[0] else []
    reasons = {(side["state"] or {}).get("maintenance") for side in sides if side and not side["stale"]}
    sentences += [f"In maintenance: {reason}." for reason in sorted(filter(None, reasons))]
    sentences += [f"{host} does not answer." for host in hosts if host != "-" and known.get(host) is None]
    if sides[0] and _both_replicate(sides):
        return " ".join([*sentences, sides[0]["sentence"]])
    sentences += [side["sentence"] for side in sides if side]
    return " ".join(sentences)


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_failover_problems": failover_problems,
            "colo_status_table": status_table,
            "colo_unprotected": unprotected,
            "colo_exported": exported,
            "colo_purge_problems": purge_problems,
        }
