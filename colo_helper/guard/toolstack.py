"""What Debian's ``xendomains`` would start, and how to keep it from single VMs.

It restores every file in XENDOMAINS_SAVE, whose name is the VM's, and removes it; then it creates every configuration in
XENDOMAINS_AUTO whose VM does not run. It passes over names that begin with a dot, and over directories. Both are set in
``/etc/default/xendomains``, which it sources (xen-utils-common). Everything here raises OSError, and
subprocess.SubprocessError when a shell cannot tell.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SETTINGS = Path("/etc/default/xendomains")
#: What xendomains.service sees in the place of SETTINGS while there is such a file; it goes when that has started.
INSTEAD = Path("/run/colo/.xendomains")
#: The configurations that it may create, when not all.
ALLOWED = Path("/run/colo/.xen-auto")
#: Below the directory of saved VMs.
HELD = ".colo-held"
#: Prints the name that a configuration gives its VM; what xendomains asks, too.
_NAME = "/usr/lib/xen-common/bin/xen-init-name"
_TIMEOUT_S = 20
_SOURCE = '. "$1" >/dev/null 2>&1; printf "%s\\0%s" "$XENDOMAINS_SAVE" "$XENDOMAINS_AUTO"'


@dataclass(frozen=True, slots=True)
class Directories:
    """Where saved VMs and configurations are; None: it restores, or creates, nothing."""

    saved: Path | None
    configurations: Path | None

    def configured(self) -> list[Path]:
        """Return the configurations that it would create, sorted."""
        there = self.configurations
        if not (there and there.is_dir()):
            return []
        return sorted(path for path in there.iterdir() if not path.name.startswith("."))


def directories() -> Directories:
    """Return what the settings say, as a shell understands them."""
    if not SETTINGS.exists():
        return Directories(None, None)
    said = subprocess.run(
        ["bash", "-c", _SOURCE, "guard", str(SETTINGS)], capture_output=True, timeout=_TIMEOUT_S, check=True
    )
    saved, configurations = said.stdout.decode(errors="surrogateescape").split("\0")
    return Directories(Path(saved) if saved else None, Path(configurations) if configurations else None)


def vm_name(configuration: Path) -> str:
    """Return the name of the VM that a configuration is of; empty when nobody can tell."""
    try:
        said = subprocess.run(
            [_NAME, str(configuration)], capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return said.stdout.decode(errors="surrogateescape").strip()


def hold_saved(image: Path) -> Path:
    """Put a saved VM where xendomains does not look, in the place of an older one; returns where."""
    directory = image.parent / HELD
    directory.mkdir(mode=0o700, exist_ok=True)
    return image.rename(directory / image.name)


def show_only(directory: Path, configurations: Iterable[Path]) -> None:
    """Have xendomains create nothing but these of a directory, the next time it starts; the files stay as they are."""
    if ALLOWED.exists():
        shutil.rmtree(ALLOWED)
    ALLOWED.mkdir(mode=0o755)
    for path in configurations:
        (ALLOWED / path.name).symlink_to(directory / path.name)
    line = b"\n# By colo-helper guard:\nXENDOMAINS_AUTO=%s\n" % str(ALLOWED).encode()
    temporary = INSTEAD.with_name(f"{INSTEAD.name}.new")
    temporary.write_bytes(SETTINGS.read_bytes() + line)
    temporary.rename(INSTEAD)


def show_all() -> None:
    """Have xendomains see its own settings."""
    INSTEAD.unlink(missing_ok=True)
