"""Readings of a host: systemd's view of a unit, Xen's view of its domains. Parsers are pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

#: Parsed tools speak the same everywhere.
ENVIRONMENT = {"LC_ALL": "C"}
#: xl waits for as long as xenstored or the hypervisor do not answer; a failover cannot.
XL_TIMEOUT_S = 30
PROCESSES = Path("/proc")


def unit_name(vm: str) -> str:
    """The systemd unit that protects ``vm``."""
    return f"colo-replicator@{vm}.service"


def parse_properties(text: str) -> dict[str, str]:
    """``systemctl show``: one KEY=VALUE a line."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def parse_domains(text: str) -> dict[str, dict[str, Any]]:
    """``xl list``: name, id, memory, VCPUs, state, time; a name may hold blanks, the other columns cannot.

    The state column has a letter or a dash in each of six places: running, blocked, paused, shutdown, crashed, dying.
    """
    domains = {}
    for line in text.splitlines()[1:]:
        parts = line.rsplit(None, 5)
        if len(parts) == 6 and parts[1].isdigit():
            domains[parts[0]] = {"domid": int(parts[1]), "memory_mib": int(parts[2]), "state": parts[4]}
    return domains


def parse_info(text: str) -> dict[str, str]:
    """``xl info``: ``key : value`` a line."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def read_unit(module: AnsibleModule, vm: str) -> dict[str, str]:
    """What systemd says of the replicator: ``active``, ``sub`` and ``result``."""
    properties = "ActiveState,SubState,Result"
    _rc, out, _err = run_tool(module, ["systemctl", "show", f"--property={properties}", unit_name(vm)])
    found = parse_properties(out)
    return {
        "active": found.get("ActiveState", "unknown"),
        "sub": found.get("SubState", "unknown"),
        "result": found.get("Result", "unknown"),
    }


def main_pid(module: AnsibleModule, vm: str) -> int:
    """The replicator's process; 0 when it does not run."""
    _rc, out, _err = run_tool(module, ["systemctl", "show", "--property=MainPID", unit_name(vm)])
    return int(parse_properties(out).get("MainPID") or 0)


def read_domains(module: AnsibleModule) -> dict[str, dict[str, Any]] | None:
    """The domains of this host by name; None when Xen does not tell, or not in time. ``headless``: no device model runs."""
    served = device_models()  # before as well: a domain may end while xl waits
    rc, out, _err = run_tool(module, ["xl", "list"])
    if rc != 0:
        return None
    served |= device_models()
    return {
        name: {**domain, "headless": domain["domid"] not in served}
        for name, domain in parse_domains(out).items()
    }


def device_models() -> set[int]:
    """Domains that have a running device model, by command lines with ``-xen-domid N`` (libxl_dm.c); a zombie has none."""
    found = set()
    for path in PROCESSES.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if b"-xen-domid" in words[:-1]:
            number = words[words.index(b"-xen-domid") + 1]
            found |= {int(number)} if number.isdigit() else set()
    return found


def run_tool(module: AnsibleModule, argv: list[str]) -> tuple[int, str, str]:
    """Run a tool with a fixed language; 127 when it is not there. xl ends with 124 or 137 after ``XL_TIMEOUT_S``."""
    program = module.get_bin_path(argv[0])
    if program is None:
        return 127, "", f"{argv[0]}: not found"
    limit = ["timeout", "--kill-after=5", str(XL_TIMEOUT_S)] if argv[0] == "xl" else []
    result: tuple[int, str, str] = module.run_command(
        [*limit, program, *argv[1:]], environ_update=ENVIRONMENT
    )
    return result
