"""Whether pairs of hosts can protect their VMs, as pure functions: what the hosts say in, a table and sentences out.

Each look at a pair is a column; it returns what stands in the table, and a sentence when that is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: A guest may go to a host with a newer Xen where that was proved; the way back was not.
UPGRADE_PAIRS = frozenset({("4.17", "4.20")})
#: What Xen and the device model need for a domain beside its memory, in MiB.
OVERHEAD_MIB = 16
#: Certificates, events and records are read together: so far apart may clocks be, in seconds, beside what asking took.
CLOCKS_S = 5.0

#: Where the playbook keeps what colo_preflight_info says.
LOOK = "colo_preflight"
#: What stands in the table, and what is in the way.
Seen = tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """A VM, its settings, and what both hosts said; None where one did not answer."""

    vm: str
    settings: Mapping[str, Any]
    primary: Mapping[str, Any] | None
    secondary: Mapping[str, Any] | None
    entries: tuple[Mapping[str, Any], Mapping[str, Any]]
    missing_disks: Sequence[str]

    @property
    def hosts(self) -> tuple[str, str]:
        """Names, primary first."""
        return self.settings["primary"], self.settings["secondary"]

    @property
    def protected(self) -> bool:
        """Whether both copies run already."""
        return all(entry.get("phase") == "replicating" and entry.get("alive") for entry in self.entries)

    @property
    def moved(self) -> bool:
        """Whether it is the VM, and not its copy, that the secondary has."""
        there = self.entries[1]
        role = "" if there.get("stale") else (there.get("state") or {}).get("role")
        active = there.get("protection") == "active" or bool(there.get("alive") and role == "primary")
        return active and not self.protected

    @property
    def guest(self) -> Mapping[str, Any] | None:
        """The VM as Xen describes it on its primary."""
        found: Mapping[str, Any] | None = (self.primary or {}).get("guests", {}).get(self.vm)
        return found


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


def reach_wanted(
    pairs: Sequence[Mapping[str, str]], variables: Mapping[str, Any], witnesses: Sequence[str]
) -> list[dict[str, Any]]:
    """What a host with these ``pairs`` (colo_pairs) has to reach, as colo_preflight_info takes it.

    Its peers' channels and heartbeats, and each witness.
    """
    peers = sorted({pair["peer"] for pair in pairs})
    wanted = []
    for peer in peers:
        port = variables[peer].get("colo_channel_port", 22)
        for key, what in (
            ("colo_channel_address", "channels"),
            ("colo_channel_heartbeat_address", "heartbeats"),
        ):
            if variables[peer].get(key):
                wanted.append({"name": f"{peer} {what}", "address": variables[peer][key], "port": port})
    wanted += [
        {"name": f"witness {name}", "address": variables[name]["colo_witness_address"], "port": 2379}
        for name in witnesses
    ]
    return wanted if peers else []


def disks_wanted(vms: Mapping[str, Any], host: str, variables: Mapping[str, Any]) -> list[str]:
    """What the VMs whose copies ``host`` has use on their primaries, and it must have too."""
    return sorted(
        {
            path
            for name, vm in vms.items()
            if vm["secondary"] == host
            for path in _said(variables, vm["primary"], LOOK).get("guests", {}).get(name, {}).get("disks", [])
        }
    )


def preflight(vms: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``table`` with a line for each VM, and ``problems``, one sentence for each thing that is in the way.

    ``variables`` are each host's, with what playbooks/preflight.yml registered.
    """
    used = {host for vm in vms.values() for host in (vm["primary"], vm["secondary"])}
    of_host = {host: _host_problems(host, variables) for host in sorted(used)}
    problems = [sentence for sentences in of_host.values() for sentence in sentences]
    rows = [("VM", "PAIR", *COLUMNS, "RESULT")]
    for name, vm in sorted(vms.items()):
        pair = _pair(name, vm, variables)
        cells, sentences = zip(*(column(pair) for column in COLUMNS.values()), strict=True)
        found = [sentence for sentence in sentences if sentence]
        in_the_way = found or any(of_host[host] for host in pair.hosts)
        result = "protected" if pair.protected else "NOT READY" if in_the_way else "ready"
        rows.append((name, " > ".join(pair.hosts), *cells, result))
        problems += found
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return {"table": lines, "problems": problems}


def _pair(name: str, vm: Mapping[str, Any], variables: Mapping[str, Any]) -> Pair:
    hosts = (vm["primary"], vm["secondary"])
    first, second = (_said(variables, host, LOOK) or None for host in hosts)
    entries = [
        next(
            (entry for entry in _said(variables, host, "colo_look").get("vms", []) if entry["name"] == name),
            {},
        )
        for host in hosts
    ]
    missing = _said(variables, hosts[1], "colo_preflight_disks").get("missing", [])
    return Pair(name, vm, first, second, (entries[0], entries[1]), missing)


def _said(variables: Mapping[str, Any], host: str, what: str) -> Mapping[str, Any]:
    """What a host's task has registered, empty when it did not answer or could not tell."""
    result = variables[host].get(what) or {} if host in variables else {}
    return {} if any(result.get(key) for key in ("unreachable", "skipped", "failed")) else result


def _host_problems(host: str, variables: Mapping[str, Any]) -> list[str]:
    said = _said(variables, host, LOOK)
    if not said:
        result = variables[host].get(LOOK) or {} if host in variables else {}
        return [f"{host}: {result['msg']}" if result.get("failed") else f"{host} does not answer on ssh."]
    early = variables[host]["colo_preflight_asked"] - CLOCKS_S
    late = variables[host]["colo_preflight_answered"] + CLOCKS_S
    off = min(said["time"] - early, 0) or max(said["time"] - late, 0)
    clock = (
        f"{host}: its clock is {abs(off) + CLOCKS_S:.0f} s or more {'behind' if off < 0 else 'ahead of'} the controller's: "
        "have all hosts keep time (package chrony); certificates and records carry it."
    )
    return [*said["problems"], *([clock] if off else [])]


def _xen(pair: Pair) -> Seen:
    releases = [(side or {}).get("xen_release", "") for side in (pair.primary, pair.secondary)]
    problems = pair_problems({pair.vm: pair.settings}, dict(zip(pair.hosts, releases, strict=True)))
    return " > ".join(dict.fromkeys(release or "?" for release in releases)), "".join(problems)


def _processor(pair: Pair) -> Seen:
    if pair.primary is None or pair.secondary is None:
        return "?", ""
    if pair.primary["processor"] == pair.secondary["processor"]:
        return "same", ""
    return "differ", (
        f"{pair.vm}: the processors of {pair.hosts[0]} and {pair.hosts[1]} have different features (hw_caps of 'xl info': "
        f"{pair.primary['processor']} and {pair.secondary['processor']}). Use hosts of one kind, or level them with cpuid= in "
        "the VM's configuration, and start it anew."
    )


def _guest(pair: Pair) -> Seen:
    if pair.primary is None:
        return "?", ""
    guest = pair.guest
    bridge = pair.settings["bridge"]
    where = f"{pair.vm} on {pair.hosts[0]}"
    if pair.moved:
        return (
            "moved",
            f"{pair.vm} runs on {pair.hosts[1]}: playbooks/reprotect.yml protects it from there; or swap its hosts in "
            "colo_vms.",
        )
    if guest is None:
        return (
            "not running",
            f"{where} does not run. If it runs nowhere, start it there ('xl create'); otherwise correct colo_vms.",
        )
    wrong = [
        why
        for found, why in (
            (
                guest["type"] != "hvm",
                f"is of type {guest['type']}, and only hvm guests are protected (type='hvm')",
            ),
            (guest["passthrough"], "has devices of its host passed through, which no copy can have"),
            (
                any(kind != "vif_ioemu" for kind in guest["nics"]),
                "has a network card that is not emulated (vif type=ioemu), so its packets cannot be compared",
            ),
            (
                set(guest["bridges"]) - {bridge},
                f"has a network card on {', '.join(guest['bridges'])}, and its bridge in colo_vms is {bridge}, where the other "
                "host would have it",
            ),
        )
        if found
    ]
    if wrong:
        return guest["type"], f"{where} {'; it '.join(wrong)}. Change its configuration, and start it anew."
    # Whether its guest uses them is seen when it is protected.
    offered = ", PV offered" if guest["pv_platform"] else ""
    return f"{guest['type']}, {guest['vcpus']} vCPU{offered}", ""


def _memory(pair: Pair) -> Seen:
    if pair.protected:
        return "in use", ""
    if pair.guest is None or pair.secondary is None:
        return "?", ""
    free = pair.secondary["free_memory_mib"]
    held = (pair.entries[1].get("domain") or {}).get("memory_mib", 0)
    need = pair.guest["memory_mib"] + OVERHEAD_MIB
    cell = f"{need} of {free + held} MiB"
    if need <= free + held:
        return cell, ""
    return cell, (
        f"{pair.vm}: its copy needs {need} MiB on {pair.hosts[1]}, where Xen has {free} left: stop a domain there, give dom0 "
        "less (dom0_mem=), or choose another secondary."
    )


def _path(pair: Pair) -> Seen:
    ways = [
        (host, peer, what.split(" ", 1)[1], found)
        for host, peer, side in zip(
            pair.hosts, reversed(pair.hosts), (pair.primary, pair.secondary), strict=True
        )
        for what, found in (side or {}).get("reach", {}).items()
        if what.split(" ", 1)[0] == peer
    ]
    broken = [
        f"{pair.vm}: {host} does not reach the {what} of {peer} ({found['error']}): look at addresses, routes and firewalls "
        f"between them, and at sshd on {peer}."
        for host, peer, what, found in ways
        if found["error"]
    ]
    if broken or not ways:
        return "broken" if broken else "?", " ".join(broken)
    speeds = [found["mbit_s"] for *_way, what, found in ways if what == "channels" and found.get("mbit_s")]
    speed = f", {min(speeds) / 1000:g} Gbit/s" if speeds else ""
    return f"{max(found['ms'] for *_way, found in ways):.0f} ms{speed}", ""


def _witness(pair: Pair) -> Seen:
    ways = [
        (host, what.split(" ", 1)[1], found)
        for host, side in zip(pair.hosts, (pair.primary, pair.secondary), strict=True)
        for what, found in (side or {}).get("reach", {}).items()
        if what.startswith("witness ")
    ]
    if not ways:
        return "none", ""
    broken = [
        f"{pair.vm}: {host} does not reach the witness {name} ({found['error']}): playbooks/witness.yml sets it up; must a "
        "firewall let it through (port 2379)?"
        for host, name, found in ways
        if found["error"]
    ]
    return ("broken" if broken else f"{max(found['ms'] for *_way, found in ways):.0f} ms"), " ".join(broken)


def _disks(pair: Pair) -> Seen:
    disks = (pair.guest or {}).get("disks", [])
    if not disks:
        return "none", ""
    missing = [path for path in pair.missing_disks if path in disks]
    writable = pair.guest["writable_disks"] if pair.guest else []
    if writable:
        return "writable", (
            f"{pair.vm} can write to {', '.join(writable)}, and disks are not replicated: protect a VM that has only disks "
            "that it reads (mode r), or none."
        )
    if not missing:
        return "there", ""
    return "missing", (
        f"{pair.vm}: {pair.hosts[1]} has no {', '.join(missing)}, which {pair.vm} reads on {pair.hosts[0]}: have the same "
        "there, for instance on shared storage."
    )


def _leftovers(pair: Pair) -> Seen:
    """A domain of the VM's name on the secondary that no replicator keeps: it would be a second copy."""
    there = pair.entries[1]
    if there.get("domain") and not there.get("alive") and there.get("protection") == "stopped":
        return "domain", (
            f"There is a domain {pair.vm} on {pair.hosts[1]}, its secondary, that no replicator keeps: when it is not the VM "
            f"that people use, remove it there with 'xl destroy {pair.vm}'."
        )
    return "none", ""


COLUMNS: dict[str, Callable[[Pair], Seen]] = {
    "XEN": _xen,
    "CPU": _processor,
    "GUEST": _guest,
    "MEMORY": _memory,
    "PATH": _path,
    "WITNESS": _witness,
    "DISKS": _disks,
    "LEFT OVER": _leftovers,
}


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_pair_problems": pair_problems,
            "colo_reach_wanted": reach_wanted,
            "colo_disks_wanted": disks_wanted,
            "colo_preflight": preflight,
        }
