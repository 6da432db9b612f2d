"""Debian mirrors, suites and keys, taken from this machine's own apt: the project names no registry host."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

#: apt-get indextargets prints one line per configured index in this form (apt-get(8), indextargets).
_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
#: The keys by which this machine trusts Debian (package debian-archive-keyring).
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Suite:
    """One apt source: base URI and suite, e.g. `bookworm-security`."""

    uri: str
    suite: str

    def deb822(self, keyring: str) -> str:
        """The source as a deb822 stanza (sources.list(5)), signed by `keyring` as seen in the new system."""
        return f"Types: deb\nURIs: {self.uri}\nSuites: {self.suite}\nComponents: main\nSigned-By: {keyring}\n"


def parse_targets(text: str, machine: str, wanted: str) -> list[Suite]:
    """The Debian suites in `apt-get indextargets` output, moved from codename `machine` to `wanted`.

    Third-party sources are left out: their suites are not `machine`, `machine-updates` or `machine-security`.
    """
    suites: dict[str, Suite] = {}
    for line in text.splitlines():
        uri, release, component = line.split("|")
        if component != "main" or release not in {machine, f"{machine}-updates", f"{machine}-security"}:
            continue
        suite = release.replace(machine, wanted, 1)
        suites.setdefault(suite, Suite(uri=uri.rstrip("/"), suite=suite))
    return list(suites.values())


def debian_suites(wanted: str) -> list[Suite]:
    """The suites of codename `wanted` as this machine's apt would fetch them, the main one first."""
    machine = _machine_codename()
    out = subprocess.run(
        ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    suites = parse_targets(out, machine, wanted)
    suites.sort(key=lambda s: s.suite != wanted)
    if not suites or suites[0].suite != wanted:
        raise LabError(
            f"apt on this machine has no source for Debian {machine} main, so {wanted} cannot be fetched: "
            "add the Debian mirror to /etc/apt/sources.list.d and run apt-get update"
        )
    if not KEYRING.exists():
        raise LabError(f"the keyring {KEYRING} is missing: apt-get install debian-archive-keyring")
    return suites


def acquire_settings() -> str:
    """This machine's `Acquire::*` settings (proxies, certificates) as apt.conf text."""
    out = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    keep = ("Acquire::http::", "Acquire::https::", "Acquire::Retries")
    return "".join(f"{line}\n" for line in out.splitlines() if line.startswith(keep))


def _machine_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise LabError("/etc/os-release names no VERSION_CODENAME: the lab's image is built on Debian")
