"""Debian's own Xen tools, unpacked beside the system, and the shim that lets them run without a hypervisor.

Nothing is installed and root is not needed. The packages come from this machine's apt, into a directory named after
what apt says they are; the shim into one named after its source and compiler. Either is moved into place when it is
complete, so an interrupted run leaves nothing half made.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RELEASE = "4.17"
PACKAGES = (
    "xen-utils-4.17",
    "libxenmisc4.17",
    "libxencall1",
    "libxenforeignmemory1",
    "libxenevtchn1",
    "libxengnttab1",
    "libxendevicemodel1",
    "libxentoollog1",
    "libxentoolcore1",
    "libxenstore4",
    "libxenhypfs1",
    "libxen-dev",  # the public headers that the shim is compiled against
)
SHIM_SOURCE = Path(__file__).parent / "shim"
SHIM_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-D__XEN_TOOLS__")


class StockError(Exception):
    """The stock tools cannot be had on this machine; the sentence says what is needed."""


class WrongMachineError(StockError):
    """This machine cannot run Debian 12's binaries at all."""


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "colo-lab"


def _run(command: list[str], doing: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError as error:
        raise StockError(
            f"{command[0]} is needed to {doing}; scripts/install-packages installs it."
        ) from error
    except subprocess.CalledProcessError as error:
        raise StockError(
            f"Cannot {doing}: {command[0]} says {(error.stderr or error.stdout).strip()}"
        ) from error
    return done.stdout


@contextmanager
def _complete_or_not_at_all(final: Path) -> Iterator[Path]:
    """Yield a new directory beside ``final`` that becomes ``final`` when the block ends without an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=final.parent))
    try:
        yield made
        made.chmod(0o755)
        try:
            made.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            # another run made the same in the meantime
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_machine() -> None:
    """Raise WrongMachineError unless Debian 12's amd64 binaries run on this machine."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    found = f"{release.get('ID', 'an unknown system')} {release.get('VERSION_ID', '')}".strip()
    if found != "debian 12" or platform.machine() != "x86_64":
        raise WrongMachineError(
            f"The stock helper is Debian 12's for amd64 (Xen {RELEASE}) and runs with that system's libraries; "
            f"this is {found} on {platform.machine()}. Run these tests on Debian 12."
        )


def _offered() -> list[str]:
    """Ask apt which files it would download: name, size and hash of each, whatever mirror they come from."""
    command = ["apt-get", "--print-uris", "-qq", "download", *PACKAGES]
    doing = f"find Debian's packages of Xen {RELEASE}"
    try:
        lines = _run(command, doing)
    except StockError:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "-qq", "update"], "read the package lists")  # a fresh container has none
        lines = _run(command, doing)
    return sorted(" ".join(line.split()[1:]) for line in lines.splitlines() if line.startswith("'"))


@dataclass(frozen=True, slots=True)
class Stock:
    """The unpacked packages below ``root`` and the directory of the built shim."""

    root: Path
    shim: Path

    @property
    def helper(self) -> Path:
        """The stock save helper."""
        return self.root / f"usr/lib/xen-{RELEASE}/bin/libxl-save-helper"

    @property
    def verifier(self) -> tuple[list[str], dict[str, str]]:
        """Command and environment of the stock verifier of streams."""
        python = self.root / f"usr/lib/xen-{RELEASE}/lib/python"
        program = self.root / f"usr/lib/xen-{RELEASE}/bin/verify-stream-v2"
        return ["/usr/bin/python3", str(program)], {**os.environ, "PYTHONPATH": str(python)}

    @property
    def library_path(self) -> str:
        """LD_LIBRARY_PATH: the shim's two libraries hide the real ones, everything else is Debian's."""
        return f"{self.shim}:{self.root}/usr/lib/x86_64-linux-gnu"


def unpacked() -> Path:
    """Return the directory with the unpacked packages; the first time they are downloaded."""
    check_machine()
    offered = _offered()
    wrong = [line for line in offered if f"_{RELEASE}." not in line]
    if len(offered) != len(PACKAGES) or wrong:
        raise StockError(
            f"apt offers other packages than Xen {RELEASE} of Debian 12: {wrong or offered}. "
            "Its sources must name bookworm and bookworm-security."
        )
    key = hashlib.sha256("\n".join(offered).encode()).hexdigest()[:16]
    final = _cache() / f"stock-xen-{key}"
    if not final.is_dir():
        with _complete_or_not_at_all(final) as made, tempfile.TemporaryDirectory() as debs:
            Path(debs).chmod(0o777)  # apt downloads as its own user when we are root
            _run(["apt-get", "-qq", "download", *PACKAGES], "download Debian's Xen packages", cwd=Path(debs))
            for deb in sorted(Path(debs).glob("*.deb")):
                _run(["dpkg", "-x", str(deb), str(made)], f"unpack {deb.name}")
    return final


def built_shim(root: Path) -> Path:
    """Return the directory with libxencall.so.1 and libxenforeignmemory.so.1 of ours; compiled when they changed."""
    sources = sorted(SHIM_SOURCE.iterdir())
    digest = hashlib.sha256(
        f"{root.name} {SHIM_FLAGS} {_run(['gcc', '--version'], 'compile the shim')}".encode()
    )
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    final = _cache() / f"fakexen-{digest.hexdigest()[:16]}"
    if not final.is_dir():
        with _complete_or_not_at_all(final) as made:
            command = [
                "gcc",
                *SHIM_FLAGS,
                "-isystem",
                str(root / "usr/include"),
                f"-Wl,--version-script={SHIM_SOURCE / 'symbols.map'}",
                "-Wl,-z,defs",
                "-o",
                str(made / "libxencall.so.1"),
                *(str(source) for source in sources if source.suffix == ".c"),
            ]
            _run(command, "compile the shim")
            # One object under two names: the loader sees that both are the same file and loads it once.
            (made / "libxenforeignmemory.so.1").symlink_to("libxencall.so.1")
    return final


def stock() -> Stock:
    """Return everything, made at need; raises StockError with a sentence that says what is needed."""
    root = unpacked()
    return Stock(root, built_shim(root))
