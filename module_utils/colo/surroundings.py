"""What lies around a host: the guests that Xen runs there, ports of others, files. Parsers are pure."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ansible.module_utils.basic import AnsibleModule

#: How long a connection may take, in seconds.
REACH_TIMEOUT_S = 3.0
#: A link's speed in Mbit/s as its driver says it (Documentation/ABI/testing/sysfs-class-net); of a bridge, its fastest port's.
LINK_SPEED = "/sys/class/net/{device}/speed"


def parse_guests(text: str) -> dict[str, dict[str, Any]]:
    """``xl list -l``, an array of domains as libxl describes them (libxl_domain_config), by name."""
    guests = {}
    for domain in json.loads(text or "[]"):
        config = domain.get("config", {})
        identity, build = config.get("c_info", {}), config.get("b_info", {})
        disks = [disk for disk in config.get("disks", []) if disk.get("pdev_path")]
        if "name" in identity:
            guests[identity["name"]] = {
                "type": str(identity.get("type", "unknown")),
                "memory_mib": (build.get("max_memkb", 0) + build.get("video_memkb", 0)) // 1024,
                "vcpus": build.get("max_vcpus", 1),
                "pv_platform": build.get("type.hvm", {}).get("xen_platform_pci") != "False",
                "passthrough": len(config.get("pcidevs", [])) + len(config.get("usbctrls", [])),
                "nics": [str(nic.get("nictype", "vif")) for nic in config.get("nics", [])],
                "bridges": sorted({nic["bridge"] for nic in config.get("nics", []) if nic.get("bridge")}),
                "disks": [disk["pdev_path"] for disk in disks],
                "writable_disks": [disk["pdev_path"] for disk in disks if disk.get("readwrite")],
            }
    return guests


def read_guests(module: AnsibleModule, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Those of ``names`` that Xen runs here."""
    wanted = set(names)
    if not wanted:
        return {}
    rc, out, _err = host.run_tool(module, ["xl", "list", "-l"])
    return {name: guest for name, guest in parse_guests(out if rc == 0 else "").items() if name in wanted}


def reach(module: AnsibleModule, targets: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Whether TCP ports of others answer, by the target's name: ``ms`` to the connection, or an ``error``.

    ``mbit_s`` is what the link here that leads there says of itself; None where it says nothing.
    """
    found = {}
    for target in targets:
        began = time.monotonic()
        try:
            with socket.create_connection((target["address"], target["port"]), REACH_TIMEOUT_S) as connection:
                took_ms = round((time.monotonic() - began) * 1000, 1)
                speed = link_speed(module, connection.getpeername()[0])
                found[target["name"]] = {"ms": took_ms, "error": "", "mbit_s": speed}
        except OSError as error:
            found[target["name"]] = {"ms": None, "error": error.strerror or str(error), "mbit_s": None}
    return found


def link_speed(module: AnsibleModule, address: str) -> int | None:
    """The speed of the link that leads to an address, in Mbit/s; None where its driver does not know."""
    rc, out, _err = host.run_tool(module, ["ip", "-json", "route", "get", address])
    try:
        device = json.loads(out)[0]["dev"] if rc == 0 else ""
        said = int(Path(LINK_SPEED.format(device=device)).read_text(encoding="ascii"))
    except (OSError, ValueError, LookupError):  # EINVAL of a link that is down, or virtual
        return None
    return said if said > 0 else None


def missing(paths: Iterable[str]) -> list[str]:
    """Those that are not there."""
    return sorted({path for path in paths if not Path(path).exists()})
