"""Builds the disk image of a lab host, once per recipe, in a cache that all labs of this machine share.

Two layers, each named by the digest of what went in: `base-DIGEST/` (root file system of packages) and
`image-DIGEST/` (disk, Xen, kernel, initrd). A layer is made in a `building-*` directory and renamed when it is whole,
so an interrupted build is never taken for a finished one; the next build removes what it left.
"""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.recipe import FILES, Recipe
from lab.sources import KEYRING, acquire_settings, debian_suites

_NEEDED_BYTES = 5 * 2**30
Say = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """A finished image: files that hosts boot from and never write to."""

    directory: Path

    @property
    def disk(self) -> Path:
        """Raw ext4 disk without a partition table; backing file of each host's overlay."""
        return self.directory / "disk.img"

    @property
    def xen(self) -> Path:
        """The hypervisor, unpacked (QEMU's multiboot loader takes ELF only)."""
        return self.directory / "xen"

    @property
    def kernel(self) -> Path:
        """dom0's kernel."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """dom0's initramfs."""
        return self.directory / "initrd.img"


def ensure_image(recipe: Recipe, cache: Path, say: Say) -> Image:
    """The image of `recipe`, built if the cache does not hold it."""
    target = cache / f"image-{recipe.image_digest}"
    with _cache_lock(cache, say):
        _remove_unfinished(cache)
        if not target.is_dir():
            _check_space(cache)
            base = _ensure_base(recipe, cache, say)
            started = time.monotonic()
            say("packing the disk image and the guests")
            with _layer(target) as building:
                work = building / "work"
                work.mkdir()
                script = {"BASE": str(base), "WORK": str(work), "FILES": str(FILES), "OUT": str(building)}
                _run_isolated(FILES / "build-image.sh", script, cache / "build-image.log")
                shutil.rmtree(work)
            say(f"image {target.name} is ready ({time.monotonic() - started:.0f} s)")
    return Image(target)


def _ensure_base(recipe: Recipe, cache: Path, say: Say) -> Path:
    target = cache / f"base-{recipe.base_digest}"
    if not target.is_dir():
        started = time.monotonic()
        say(f"fetching Debian {recipe.debian} with Xen {recipe.xen} (once per machine, about two minutes)")
        suites = debian_suites(recipe.codename)
        with _layer(target) as building:
            sources = building / "lab.sources"
            sources.write_text("\n".join(suite.deb822("/etc/apt/lab-keyring.gpg") for suite in suites))
            apt_conf = building / "apt.conf"
            apt_conf.write_text(acquire_settings())
            script = {
                "ROOT": str(building / "rootfs"),
                "CODENAME": recipe.codename,
                "MIRROR": suites[0].uri,
                "KEYRING": str(KEYRING),
                "BASE_PACKAGES": ",".join(recipe.base_packages),
                "HOST_PACKAGES": " ".join(recipe.host_packages),
                "SOURCES": str(sources),
                "APT_CONF": str(apt_conf),
            }
            _run_isolated(FILES / "build-base.sh", script, cache / "build-base.log")
        say(f"base {target.name} is ready ({time.monotonic() - started:.0f} s)")
    return target / "rootfs"


@contextmanager
def _layer(target: Path) -> Iterator[Path]:
    """A directory to build in, which becomes `target` only if the block ends well."""
    building = target.with_name(f"building-{target.name}")
    building.mkdir()
    try:
        yield building
    except BaseException:
        shutil.rmtree(building)
        raise
    building.rename(target)


def _remove_unfinished(cache: Path) -> None:
    # The lock is ours and builds run under it: what is named building-* belongs to a build that died.
    for leftover in cache.glob("building-*"):
        shutil.rmtree(leftover)


def _run_isolated(script: Path, variables: dict[str, str], log: Path) -> None:
    """Run a build script in mount and PID namespaces of its own: whatever kills it, mounts and children go with it."""
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "bash",
        str(script),
    ]
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode != 0:
        tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-8:])
        raise LabError(f"{script.name} failed with exit code {done.returncode}; the end of {log}:\n  {tail}")


def _check_space(cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < _NEEDED_BYTES:
        raise LabError(
            f"{cache} has {free // 2**20} MiB free and the image takes up to {_NEEDED_BYTES // 2**20} MiB while it is built: "
            "make room, or set XDG_CACHE_HOME to a larger disk"
        )


@contextmanager
def _cache_lock(cache: Path, say: Say) -> Iterator[None]:
    """One build at a time on this machine; the kernel drops the lock with the process."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another lab builds the image; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
