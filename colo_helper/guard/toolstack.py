"""What Debian's ``xendomains`` would start when the host boots, and how to keep it from single VMs.

It restores every file in XENDOMAINS_SAVE, whose name is the VM's, and removes it; then it creates every configuration in
XENDOMAINS_AUTO whose VM does not run. Both are set in ``/etc/default/xendomains`` (xen-utils-common).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = Path("/etc/default/xendomains")
#: What xendomains.service sees in the place of SETTINGS while there is such a file; /run is empty after a boot.
INSTEAD = Path("/run/colo/xendomains")
#: Configurations that may be created, when not all may.
ALLOWED = Path("/run/colo/xen-auto")
#: Below the directory of saved VMs, where xendomains looks at files only.
HELD = "colo-held"
#: Prints the name that a configuration gives its VM; what xendomains asks, too.
_NAME = "/usr/lib/xen-common/bin/xen-init-name"
_TIMEOUT_S = 20
_ASSIGNMENT = re.compile(r"""\s*(XENDOMAINS_SAVE|XENDOMAINS_AUTO)=(["']?)(/[^"'\s]*|)\2\s*(#.*)?""")


@dataclass(slots=True)
class Starts:
    """What would be started of one VM: a saved image, and configurations."""

    saved: Path | None = None
    configurations: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return " and ".join(map(str, [*([self.saved] if self.saved else []), *self.configurations]))


def starts(vms: Iterable[str]) -> dict[str, Starts]:
    """Return what would be started of each of ``vms`` of which anything would."""
    save, auto = _directories()
    found = {vm: Starts() for vm in vms}
    for vm, one in found.items():
        if save and (save / vm).is_file():
            one.saved = save / vm
    for path in _entries(auto):
        if (name := vm_name(path)) in found:
            found[name].configurations.append(path)
    return {vm: one for vm, one in found.items() if one.saved or one.configurations}


def vm_name(configuration: Path) -> str:
    """Return the name of the VM that a configuration is of; empty when it has none."""
    try:
        said = subprocess.run(
            [_NAME, str(configuration)], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


def hold_saved(image: Path, time: str) -> Path:
    """Put a saved VM where xendomains does not look; returns where. Raises OSError."""
    directory = image.parent / HELD
    directory.mkdir(mode=0o700, exist_ok=True)
    place = directory / f"{image.name}.{time}"
    image.rename(place)
    return place


def hide(configurations: Iterable[Path]) -> None:
    """Have xendomains see all configurations but these; the files stay as they are. Raises OSError."""
    _, auto = _directories()
    show_all()
    ALLOWED.mkdir(mode=0o755)
    hidden = set(configurations)
    for path in _entries(auto):
        if path not in hidden:
            (ALLOWED / path.name).symlink_to(path)
    temporary = INSTEAD.with_name(f".{INSTEAD.name}")
    temporary.write_text(f"{_settings()}\n# Written by colo-guard.\nXENDOMAINS_AUTO={ALLOWED}\n")
    temporary.rename(INSTEAD)


def show_all() -> None:
    """Have xendomains see its own settings again. Raises OSError."""
    INSTEAD.unlink(missing_ok=True)
    if ALLOWED.exists():
        shutil.rmtree(ALLOWED)


def _directories() -> tuple[Path | None, Path | None]:
    """Return XENDOMAINS_SAVE and XENDOMAINS_AUTO; None: nothing is restored, or created."""
    said = {match[1]: match[3] for line in _settings().splitlines() if (match := _ASSIGNMENT.fullmatch(line))}
    save, auto = said.get("XENDOMAINS_SAVE"), said.get("XENDOMAINS_AUTO")
    return Path(save) if save else None, Path(auto) if auto else None


def _entries(auto: Path | None) -> list[Path]:
    return sorted(auto.iterdir()) if auto and auto.is_dir() else []


def _settings() -> str:
    try:
        return SETTINGS.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
