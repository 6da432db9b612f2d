"""Whether a host can take part: pure checks over what was read, each with its sentence."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import host, save_helper, surroundings
from ansible.module_utils.colo.files import read_text
from ansible.module_utils.colo.release import describe

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

#: Xen releases whose interface is known, with the Debian release that ships each.
XEN_RELEASES = {"4.17": "12", "4.20": "13"}
DEVICE_MODEL = Path("/usr/libexec/xen-qemu-system-i386")
CAPABILITIES = Path("/proc/xen/capabilities")
OS_RELEASE = Path("/etc/os-release")
NETWORK = Path("/sys/class/net")
MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Facts:
    """What was read from a host. ``bridges`` says for each wanted bridge whether it is one."""

    name: str
    dom0: bool
    xen: dict[str, str]
    os: dict[str, str]
    python: tuple[int, int]
    device_model: bool
    bridges: dict[str, bool]

    @property
    def xen_release(self) -> str:
        """Like 4.17; empty when Xen did not answer."""
        major, minor = self.xen.get("xen_major"), self.xen.get("xen_minor")
        return f"{major}.{minor}" if major and minor else ""

    @property
    def free_memory_mib(self) -> int:
        """What Xen has to give to a new domain."""
        text = self.xen.get("free_memory", "")
        return int(text) if text.isdigit() else 0


def parse_os_release(text: str) -> dict[str, str]:
    """os-release: KEY=VALUE a line, the value quoted as for a shell."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key: (shlex.split(value) or [""])[0] for key, value in pairs}


def read_facts(module: AnsibleModule, bridges: list[str]) -> Facts:
    """Read all of it; one call of xl, the rest from files."""
    rc, out, _err = host.run_tool(module, ["xl", "info"])
    return Facts(
        name=platform.node().split(".")[0],
        dom0="control_d" in (read_text(CAPABILITIES) or ""),
        xen=host.parse_info(out) if rc == 0 else {},
        os=parse_os_release(read_text(OS_RELEASE) or ""),
        python=sys.version_info[:2],
        device_model=DEVICE_MODEL.is_file(),
        bridges={name: (NETWORK / name / "bridge").is_dir() for name in bridges},
    )


def examine(facts: Facts, minimum_memory_mib: int) -> list[dict[str, Any]]:
    """Every check with ``ok``, what was found, what is wanted, and a sentence that says what to do if it is not."""
    findings: list[dict[str, Any]] = []

    def check(name: str, ok: bool, found: Any, wanted: str, remedy: str) -> None:  # noqa: ANN401
        sentence = (
            f"{facts.name}: {name} is {found}."
            if ok
            else f"{facts.name}: {name} is {found}, not {wanted}: {remedy}."
        )
        findings.append({"check": name, "ok": ok, "found": found, "wanted": wanted, "sentence": sentence})

    releases = " or ".join(XEN_RELEASES)
    debians = " or ".join(XEN_RELEASES.values())
    distribution = f"{facts.os.get('ID', 'unknown')} {facts.os.get('VERSION_ID', '')}".strip()
    features = facts.xen.get("virt_caps", "").split()
    check("the kernel's place", facts.dom0, "Xen's dom0" if facts.dom0 else "outside Xen", "Xen's dom0",
          "boot it into Xen (package xen-hypervisor-amd64, then the Xen entry of the boot menu)")  # fmt: skip
    check("the Xen release", facts.xen_release in XEN_RELEASES, facts.xen_release or "unknown", releases,
          "install Debian's own Xen packages; 'xl info' must answer")  # fmt: skip
    check("the distribution", distribution in {f"debian {release}" for release in XEN_RELEASES.values()}, distribution,
          f"debian {debians}", "COLO is proved on these releases only")  # fmt: skip
    check("Python's release", facts.python >= MINIMUM_PYTHON, ".".join(map(str, facts.python)), "3.11 or newer",
          "use the system's Python of a supported Debian release (ansible_python_interpreter: /usr/bin/python3)")  # fmt: skip
    check("the processor's virtualisation", {"hvm", "hap"} <= set(features), " ".join(features) or "unknown",
          "one with hvm and hap", "turn on VT-x with EPT or AMD-V with NPT in the firmware")  # fmt: skip
    check("the device model", facts.device_model, str(DEVICE_MODEL) if facts.device_model else "missing", "installed",
          "apt install qemu-system-xen")  # fmt: skip
    check("Xen's free memory", facts.free_memory_mib >= minimum_memory_mib, f"{facts.free_memory_mib} MiB",
          f"{minimum_memory_mib} MiB or more", "give dom0 less (dom0_mem=) or stop domains")  # fmt: skip
    for name, found in facts.bridges.items():
        check(f"the bridge {name}", found, "there" if found else "missing", "there",
              f"make the bridge {name} in /etc/network/interfaces, or name another in colo_vms")  # fmt: skip
    return findings


def report(module: AnsibleModule) -> dict[str, Any]:
    """What colo_preflight_info returns."""
    facts = read_facts(module, module.params["bridges"])
    findings = examine(facts, module.params["minimum_memory_mib"])
    return {
        "changed": False,
        "ok": all(finding["ok"] for finding in findings),
        "findings": findings,
        "problems": [finding["sentence"] for finding in findings if not finding["ok"]],
        "xen_release": facts.xen_release,
        "xen_version": facts.xen.get("xen_version", ""),
        "debian_release": facts.os.get("VERSION_ID", ""),
        "python_version": ".".join(map(str, facts.python)),
        "free_memory_mib": facts.free_memory_mib,
        "processor": facts.xen.get("hw_caps", ""),
        "time": time.time(),
        "guests": surroundings.read_guests(module, module.params["guests"]),
        "reach": surroundings.reach(module, module.params["reach"]),
        "missing": surroundings.missing(module.params["paths"]),
        "helper": describe(Path(module.params["prefix"])),
        "save_helper": save_helper.describe(),
    }
