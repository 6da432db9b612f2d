"""Who has which role of a VM now, and who shall have it next, as pure functions on what the replicators say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

#: Phases of a copy that was the VM until a switch-over.
_STANDING_BY = frozenset({"standby", "handed_over"})
#: Letters of a domain's state that does not run: shut down, crashed, dying, paused.
_STILL = frozenset("scdp")


def switch_plan(vm: str, reports: Mapping[str, Any]) -> dict[str, Any]:
    """Who hands ``vm`` over to whom: ``source`` and ``target``, and ``problems``, one sentence each.

    ``reports`` maps both hosts to their results of colo_vm_info. Roles are those that the replicators have, whatever the
    inventory says. A switch-over that was begun is gone on with.
    """
    states = {host: _state(entry) for host, entry in _of_vm(vm, reports).items()}
    problems = _silent(reports)
    sources = [
        host
        for host, state in states.items()
        if (state.get("role"), state.get("phase")) in (("primary", "replicating"), ("secondary", "standby"))
    ]
    if not problems and len(sources) != 1:
        phases = ", ".join(f"{host}: {state.get('phase', 'no state')}" for host, state in states.items())
        problems.append(
            f"{vm} has no primary that replicates ({phases}); only a protected VM can be switched over. See "
            "playbooks/status.yml."
        )
    source = sources[0] if sources else ""
    return {
        "source": source,
        "target": next((host for host in reports if host != source), ""),
        "problems": problems,
    }


def protect_problems(vm: str, reports: Mapping[str, Any], primary: str) -> list[str]:
    """Why ``vm`` cannot be protected from ``primary`` on: it runs on the other host of ``reports``, or on both.

    To make the copy the primary would destroy it, and a VM that goes on elsewhere must not be started here.
    """
    entries = _of_vm(vm, reports)
    running = [host for host, entry in entries.items() if entry and _runs(entry)]
    if len(running) > 1:
        return [_two_copies(vm, entries)]
    if primary in running or not running:
        return []
    return [
        f"{vm} runs on {running[0]}, and colo_vms has {primary} as its primary: playbooks/reprotect.yml protects it from where "
        "it runs; or swap its hosts in colo_vms, then run this again. Nothing was changed."
    ]


def primary_now(vm: str, reports: Mapping[str, Any]) -> str:
    """The host whose replicator is the primary of ``vm``, whatever the inventory says; empty when there is none for sure."""
    return _primary_of({host: entry for host, entry in _of_vm(vm, reports).items() if entry})


def discard_confirmation(vm: str, reports: Mapping[str, Any], host: str, confirm: str = "") -> str:
    """What to confirm the removal of a copy on ``host`` with: that ``vm``, of which it is a copy, runs on another of them."""
    entries = _of_vm(vm, reports)
    copy = entries.get(host)
    elsewhere = any(
        entry and copy and _is_copied(entry, copy) for other, entry in entries.items() if other != host
    )
    return vm if confirm == vm or elsewhere else ""


def reprotect_plan(vm: str, reports: Mapping[str, Any], quiet_s: float = 0, now: str = "") -> dict[str, Any]:
    """From which host (``source``) to which (``target``) ``vm`` is protected again; whether (``wanted``), in a ``sentence``.

    ``reports`` maps both hosts to their results of colo_vm_info. The source is where the VM runs, whatever the inventory says;
    ``problems``, one sentence each, when that is not for sure. A VM that has run there for less than ``quiet_s`` seconds
    before ``now`` (ISO 8601, UTC) is left alone: hosts that come and go would have it copied again and again.
    """
    entries = _of_vm(vm, reports)
    sources = [host for host, entry in entries.items() if entry and _runs(entry)]
    problems = _silent(reports)
    if not problems and not sources:
        found = ", ".join(f"{host}: {_seen(entry)}" for host, entry in entries.items())
        problems.append(
            f"{vm} runs on no host for sure ({found}); see playbooks/status.yml and docs/operations/failover.md."
        )
    elif not problems and len(sources) > 1:
        problems.append(_two_copies(vm, entries))
    source = sources[0] if sources else ""
    target = next((host for host in reports if host != source), "")
    reason = "" if problems else _reason_to_leave_alone(vm, source, entries[source], quiet_s, now)
    return {
        "source": source,
        "target": target,
        "problems": problems,
        "wanted": not problems and not reason,
        "sentence": reason or f"{vm} runs on {source}, and {target} gets its copy.",
    }


def recover_plan(vms: Mapping[str, Any], host: str, reports: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which VMs of the inventory that ``host`` takes part in get a copy again: ``vms``; ``problems``: why others cannot.

    ``reports`` maps it and the other hosts of its VMs to their results of colo_vm_info. ``sentences`` has one for each VM. One
    that its other host does not protect, because nobody began it or somebody ended it, is left alone.
    """
    found: dict[str, list[str]] = {"vms": [], "problems": [], "sentences": []}
    for vm, sides in sorted(vms.items()):
        if host not in (sides["primary"], sides["secondary"]):
            continue
        peer = sides["secondary"] if sides["primary"] == host else sides["primary"]
        both = {one: reports.get(one, {}) for one in (host, peer)}
        plan = reprotect_plan(vm, both)
        if _answered(both[peer]) and not (_of_vm(vm, both)[peer] or {}).get("config"):
            found["sentences"].append(f"{vm} is left alone: {peer} does not protect it.")
            continue
        found["vms"] += [vm] if plan["wanted"] else []
        found["problems"] += plan["problems"]
        found["sentences"] += plan["problems"] or [plan["sentence"]]
    return found


def upgrade_plan(vm: str, reports: Mapping[str, Any]) -> dict[str, Any]:
    """Whose replicators are started anew: ``secondary`` first, then ``primary``; ``problems``, one sentence each.

    ``reports`` maps both hosts to their results of colo_vm_info. ``wanted`` is false for a VM that nobody protects.
    ``shielded``: whether a copy could take over by itself meanwhile, so that maintenance is needed, and an operator has not
    begun it.
    """
    entries = _of_vm(vm, reports)
    roles = {_state(entry).get("role"): host for host, entry in entries.items() if entry and entry["alive"]}
    healthy = len(roles) == 2 and all(entry and entry["phase"] == "replicating" for entry in entries.values())
    problems = _silent(reports)
    if not problems and roles and not healthy:
        found = ", ".join(f"{host}: {_seen(entry)}" for host, entry in entries.items())
        problems.append(
            f"{vm} does not run on two hosts ({found}), and the next step would make it worse: see playbooks/status.yml."
        )
    states = [_state(entry) for entry in entries.values()]
    arbiters = [entry for entry in entries.values() if entry and (entry["config"] or {}).get("arbiter")]
    return {
        "primary": roles.get("primary", ""),
        "secondary": roles.get("secondary", ""),
        "problems": problems,
        "wanted": healthy and not problems,
        "shielded": bool(arbiters) and not any(state.get("maintenance") for state in states),
    }


def rebalance_plan(vms: Mapping[str, Any], reports: Mapping[str, Any]) -> dict[str, list[Any]]:
    """How each of ``vms`` comes to run on its ``primary``, and its copy on its ``secondary``: ``steps``, in their order.

    ``reports`` maps all hosts of the inventory to their results of colo_vm_info. A step says what to ``do``: ``switch`` the
    roles, or ``move`` the copy, which leaves the host ``old`` (empty when that is not in the inventory any more); the
    ``primary`` and ``secondary`` of the ``vm`` after it; and all ``hosts`` that take part. ``problems``: why nothing may be
    moved now; ``sentences`` has one for each step, and one for each VM that is left alone.
    """
    found: dict[str, list[Any]] = {"steps": [], "problems": [], "sentences": []}
    seen = _protected_on(reports)
    who = "no host" if all(_answered(report) for report in reports.values()) else "no host that answers"
    for vm, sides in sorted(vms.items()):
        wanted = (sides["primary"], sides["secondary"])
        entries = seen.get(vm, {})
        resting = [text for entry in entries.values() if (text := _state(entry).get("maintenance"))]
        problems = _silent({host: reports.get(host) for host in wanted}) or _pair_problems(
            vm, entries, reports
        )
        if resting:
            found["sentences"].append(f"{vm} is left alone: it is in maintenance ({resting[0]}).")
        elif problems:
            found["problems"] += [one for one in problems if one not in found["problems"]]
        elif not entries:
            found["sentences"].append(f"{vm} is left alone: {who} protects it.")
        else:
            primary = _primary_of(entries)
            now = (primary, entries[primary]["config"]["peer"]["name"])
            for step in _rebalance_steps(vm, now, wanted):
                gone = "" if step["old"] in reports else step["old"]
                old = "" if gone else step["old"]
                hosts = [host for host in (step["primary"], step["secondary"], old) if host]
                found["steps"].append({**step, "old": old, "hosts": hosts})
                found["sentences"].append(_rebalance_sentence(step, gone))
    return found


def step_problems(step: Mapping[str, Any], reports: Mapping[str, Any]) -> list[str]:
    """Why a step of `rebalance_plan` is not the one to take any more, by a later look at its hosts."""
    now = rebalance_plan({step["vm"]: step}, reports)
    if now["problems"] or now["steps"] == [step]:
        return now["problems"]
    said = " ".join(now["sentences"]) or "It is where it was to go."
    return [f"{step['vm']} is not as it was when this began: {said} Run playbooks/rebalance.yml again."]


def _protected_on(reports: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Of each VM the hosts that are to protect it, with what they say of it."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for host, report in reports.items():
        for entry in report["vms"] if _answered(report) else ():
            if entry["config"]:
                found.setdefault(entry["name"], {})[host] = entry
    return found


def _primary_of(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The host whose replicator is the VM's primary; empty when there is none, or more than one."""
    primaries = [
        host for host, entry in entries.items() if entry["alive"] and _state(entry).get("role") == "primary"
    ]
    return primaries[0] if len(primaries) == 1 else ""


def _pair_problems(
    vm: str, entries: Mapping[str, Mapping[str, Any]], reports: Mapping[str, Any]
) -> list[str]:
    """Why a VM that is to be protected may not be touched. One whose copy was on a host that is gone may."""
    if not entries:
        return []
    if primary := _primary_of(entries):
        secondary = entries[primary]["config"]["peer"]["name"]
        if secondary not in reports:
            return []
        if all(entries.get(host, {}).get("phase") == "replicating" for host in (primary, secondary)):
            return []
    said = ", ".join(f"{host}: {_seen(entry)}" for host, entry in entries.items())
    return [
        f"{vm} does not run on two hosts ({said}), and a step would make it worse: see playbooks/status.yml."
    ]


def _rebalance_steps(vm: str, now: tuple[str, str], wanted: tuple[str, str]) -> Iterator[dict[str, str]]:
    """A VM can only go where its copy is."""
    primary, secondary = now
    if primary != wanted[0]:
        if secondary != wanted[0]:
            yield {"do": "move", "vm": vm, "primary": primary, "secondary": wanted[0], "old": secondary}
        yield {"do": "switch", "vm": vm, "primary": wanted[0], "secondary": primary, "old": ""}
        primary, secondary = wanted[0], primary
    if secondary != wanted[1]:
        yield {"do": "move", "vm": vm, "primary": primary, "secondary": wanted[1], "old": secondary}


def _rebalance_sentence(step: Mapping[str, str], gone: str) -> str:
    vm, primary, secondary = step["vm"], step["primary"], step["secondary"]
    if step["do"] == "switch":
        return f"{vm} goes on on {primary}, and its copy on {secondary}."
    if gone:
        return f"{vm} gets its copy on {secondary}: {gone}, which had it, is not in the inventory."
    return f"The copy of {vm} goes from {step['old']} to {secondary}; meanwhile {vm} runs on {primary} without one."


def restart_plan(vms: Mapping[str, Any], host: str, reports: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of the VMs of the inventory that ``host`` takes part in while it is restarted.

    ``reports`` maps it and their other hosts to their results of colo_vm_info. ``hand_over``: names of those that run on it
    now; ``peers``: the other hosts, each with the names of those that run there meanwhile; ``problems``, one sentence each,
    where a VM has no second copy to go on with.
    """
    hand_over: list[str] = []
    peers: dict[str, list[str]] = {}
    problems: list[str] = []
    for vm, sides in sorted(vms.items()):
        pair = (sides["primary"], sides["secondary"])
        if host not in pair:
            continue
        peer = pair[0] if host == pair[1] else pair[1]
        both = {one: reports.get(one, {}) for one in (host, peer)}
        plan = upgrade_plan(vm, both)
        problems += [problem for problem in plan["problems"] if problem not in problems]
        if plan["wanted"]:
            peers.setdefault(peer, []).append(vm)
            hand_over += [vm] if plan["primary"] == host else []
        elif not plan["problems"] and (_of_vm(vm, both)[host] or {}).get("domain"):
            problems.append(
                f"{vm} runs on {host}, and nobody protects it: run playbooks/protect.yml, or shut it down first."
            )
    return {"hand_over": hand_over, "peers": peers, "problems": problems}


def unknown_problems(report: Mapping[str, Any], host: str, known: Sequence[str]) -> list[str]:
    """One sentence for each VM that ``host`` protects, by its result of colo_vm_info, and that is not ``known``."""
    return [
        f"{entry['name']} is protected on {host} ({entry['phase'] or 'configured'}), and colo_vms says nothing of that, so "
        f"nobody would look after it: correct colo_vms, or end it there: ansible {host} -m colo_vm -a 'name={entry['name']} "
        "state=unprotected'."
        for entry in report["vms"]
        if entry["name"] not in known and (entry["config"] or entry["alive"])
    ]


def live_groups(reports: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each host the groups that it is in by what it has now, for an operator's own plays.

    ``reports`` maps hosts to their results of colo_vm_info. A host where the VM h1 runs is in ``colo_running`` and
    ``colo_running_h1``, one with a copy of it in ``colo_copies`` and ``colo_copies_h1``; one that does not answer, or cannot
    tell its domains, in ``colo_silent``. A domain that is not known to be a copy counts as the VM. What cannot be in the name
    of a group is an underscore there.
    """
    return {
        host: _live_groups(report["vms"]) if _answered(report) else ["colo_silent"]
        for host, report in reports.items()
    }


def _live_groups(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    found = set()
    for entry in entries:
        if entry["domain"]:
            kind = "colo_copies" if _is_copy(entry) else "colo_running"
            found |= {kind, f"{kind}_{re.sub(r'[^A-Za-z0-9_]', '_', entry['name'])}"}
        elif not entry["domains_known"]:
            found.add("colo_silent")
    return sorted(found)


def _is_copy(entry: Mapping[str, Any]) -> bool:
    """Whether its replicator has said since the host's boot that this domain is not the VM."""
    state, domain = _state(entry), entry["domain"] or {}
    if domain and entry["phase"] != "receiving" and state.get("domid") not in (None, domain.get("domid")):
        return False  # somebody has made another one of that name
    return entry["protection"] != "active" and (
        state.get("role") == "secondary" or entry["phase"] in _STANDING_BY
    )


def _reason_to_leave_alone(vm: str, host: str, entry: Mapping[str, Any], quiet_s: float, now: str) -> str:
    state = _state(entry)
    if state.get("role") == "primary" and entry["alive"] and entry["phase"] == "replicating":
        return f"{vm} is protected from {host} already."
    if state.get("maintenance"):
        return f"{vm} is in maintenance: {state['maintenance']}."
    if not quiet_s:
        return ""
    if not state:
        return f"{vm} was started on {host} by somebody, not by a replicator: a timer leaves it alone."
    quiet = (datetime.fromisoformat(now) - datetime.fromisoformat(state["since"])).total_seconds()
    if quiet >= quiet_s:
        return ""
    return f"{vm} is as it is on {host} for {quiet:.0f} s only: it is protected again after {quiet_s:.0f} s without a change."


def _is_copied(entry: Mapping[str, Any], copy: Mapping[str, Any]) -> bool:
    """Whether ``copy`` is one of a VM that runs, for sure: a guest that has ended, or booted anew, is another one."""
    state, generation = _state(entry), _state(entry).get("generation")
    return (
        _runs(entry)
        and state.get("domid") == entry["domain"].get("domid")
        and not _STILL & set(entry["domain"].get("state", "p"))
        and bool(generation)
        and generation == _state(copy).get("generation")
    )


def _runs(entry: Mapping[str, Any]) -> bool:
    """Whether the VM, and not a copy of it, is there: a domain that no replicator has had since the host's boot is none."""
    domain = entry["domain"]
    if not domain or domain.get("headless"):  # without its device model it can do nothing any more
        return False
    if not _state(entry):
        return not entry["alive"]
    primary = _state(entry).get("role") == "primary" and entry["phase"] not in _STANDING_BY
    return entry["protection"] == "active" or primary


def _seen(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return "nothing is known there"
    return f"{entry['phase'] or 'no phase'}, {'a domain' if entry['domain'] else 'no domain'}"


def _two_copies(vm: str, entries: Mapping[str, Mapping[str, Any] | None]) -> str:
    found = ", ".join(f"{host}: {_seen(entry)}" for host, entry in entries.items())
    return (
        f"TWO COPIES of {vm} may be running ({found}). Decide at once which one is right and remove the other with "
        f"'xl destroy {vm}' on its host."
    )


def _silent(reports: Mapping[str, Any]) -> list[str]:
    return [
        f"{host} does not answer: bring it back; playbooks/status.yml shows which hosts answer."
        for host, report in reports.items()
        if not _answered(report)
    ]


def _answered(report: Mapping[str, Any] | None) -> bool:
    return bool(report) and "vms" in report


def _of_vm(vm: str, reports: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    return {
        host: next((entry for entry in report["vms"] if entry["name"] == vm), None)
        if _answered(report)
        else None
        for host, report in reports.items()
    }


def _state(entry: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What its replicator has said since its host was started."""
    return (entry["state"] or {}) if entry and not entry["stale"] else {}


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_switch_plan": switch_plan,
            "colo_protect_problems": protect_problems,
            "colo_primary_now": primary_now,
            "colo_discard_confirmation": discard_confirmation,
            "colo_reprotect_plan": reprotect_plan,
            "colo_recover_plan": recover_plan,
            "colo_upgrade_plan": upgrade_plan,
            "colo_rebalance_plan": rebalance_plan,
            "colo_step_problems": step_problems,
            "colo_restart_plan": restart_plan,
            "colo_unknown_problems": unknown_problems,
            "colo_live_groups": live_groups,
        }
