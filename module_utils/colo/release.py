"""Releases of colo_helper on a host: unpacked once, never changed, switched by one symbolic link."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import os
import py_compile
import shutil
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo.base import DesiredState, Failure, host_name
from ansible.module_utils.colo.files import exclusive, read_json, switch_link
from ansible.module_utils.colo.save_helper import VARIABLE, places_linked_into, require_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ansible.module_utils.basic import AnsibleModule

MANIFEST = "release.json"
PROC = Path("/proc")


def current_digest(prefix: Path) -> str | None:
    """The release that ``current`` points to; None when there is none or it leads nowhere."""
    link = prefix / "current"
    return link.readlink().name if link.is_symlink() and (link / MANIFEST).is_file() else None


def installed(prefix: Path) -> list[str]:
    """The releases on this host, newest first."""
    found = (path for path in (prefix / "releases").glob("[!.]*") if (path / MANIFEST).is_file())
    return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def digests_in_use(prefix: Path, digests: Iterable[str]) -> set[str]:
    """Of ``digests``, those that a running process has mapped: removing them would break it at its next import."""
    wanted = {digest: str(prefix / "releases" / digest) + "/" for digest in digests}
    used: set[str] = set()
    for maps in PROC.glob("[0-9]*/maps"):
        try:
            text = maps.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # the process has ended, or is none of ours to look into
        used |= {digest for digest, path in wanted.items() if path in text}
    return used


def digest_of_process(prefix: Path, pid: int) -> str:
    """The release that a process has mapped; empty when it runs without one, or does not run."""
    releases = str(prefix / "releases") + "/"
    try:
        text = (PROC / str(pid) / "maps").read_text(encoding="utf-8", errors="replace") if pid else ""
    except OSError:
        return ""
    return text.split(releases, 1)[1].split("/", 1)[0] if releases in text else ""


def compile_missing(packages: Path) -> int:
    """Compile every source that has no byte code of this Python yet; returns how many. What fails is not imported."""
    count = 0
    for source in packages.rglob("*.py"):
        target = Path(importlib.util.cache_from_source(str(source)))
        if target.is_file() and target.read_bytes()[:4] == importlib.util.MAGIC_NUMBER:
            continue
        py_compile.compile(
            str(source),
            cfile=str(target),
            quiet=2,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        count += 1
    return count


def extract(archive: Path, target: Path) -> None:
    """Unpack files and directories that stay below ``target``, and nothing else."""
    with tarfile.open(archive, "r:gz") as stream:
        for member in stream:
            path = Path(member.name)
            if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
                raise tarfile.TarError(f"it holds {member.name!r}, which no release does")
            stream.extract(member, target, set_attrs=True, **_EXTRACT_OPTIONS)


#: Python 3.12 warns without a filter; Debian 12's 3.11.2 may not know one. Members are checked above in any case.
_EXTRACT_OPTIONS: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}


class HelperRelease(DesiredState):
    """The release in use below a prefix."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.prefix = Path(module.params["prefix"])
        self.releases = self.prefix / "releases"
        self.digest: str = module.params["digest"] or ""
        self.present: bool = module.params["state"] == "present"

    def read(self) -> dict[str, Any]:
        """The digest in use and all installed ones."""
        return {"digest": current_digest(self.prefix), "releases": sorted(installed(self.prefix))}

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """The wanted digest in use, and as many old ones as are kept."""
        if not self.present:
            used = digests_in_use(self.prefix, before["releases"])
            if used:
                raise Failure(
                    f"colo_helper is in use on {host_name()} (release {', '.join(sorted(used))}): "
                    "end the protection of its VMs first with playbooks/unprotect.yml."
                )
            places = places_linked_into(self.prefix)
            if places:
                raise Failure(
                    f"xl on {host_name()} saves VMs with colo_helper ({', '.join(places)} points into {self.prefix}): "
                    f"set {VARIABLE}: false and run playbooks/site.yml first.",
                    places=places,
                )
            return {"digest": None, "releases": []}
        others = [digest for digest in installed(self.prefix) if digest != self.digest]
        keep: int = self.module.params["keep"]
        stale = set(others[keep:])
        if stale:
            stale -= digests_in_use(self.prefix, stale)
        return {"digest": self.digest, "releases": sorted({self.digest, *others} - stale)}

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:
        """Install, verify, switch, tidy up; in that order, so that a failure leaves the old release in use."""
        if not self.present:
            shutil.rmtree(self.prefix)
            return
        with exclusive(self.prefix / ".lock"):
            # Somebody else's run may have installed it since it was looked for.
            if self.digest not in installed(self.prefix):
                self._install(before["digest"])
            if current_digest(self.prefix) != self.digest:
                self._require_save_helper(before["digest"])
                switch_link(self.prefix / "current", f"releases/{self.digest}")
            for digest in set(before["releases"]) - set(desired["releases"]):
                shutil.rmtree(self.releases / digest, ignore_errors=True)

    def finish(self) -> None:
        """Remove the archive when asked to, now that nothing is to be had from it any more."""
        if self.module.params["remove_archive"] and self.module.params["archive"]:
            Path(self.module.params["archive"]).unlink(missing_ok=True)

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """The digest, and what its manifest says."""
        manifest = read_json(self.prefix / "current" / MANIFEST) or {}
        return {**state, "version": manifest.get("version"), "path": str(self.prefix / "current")}

    def _require_save_helper(self, old: str | None) -> None:
        """Where xl saves VMs with the release in use, the next one must be able to."""
        places = places_linked_into(self.prefix)
        if places:
            require_program(
                self.module,
                self.releases / self.digest / "bin" / "colo-save-helper",
                f"release {old} stays in use, because {places[0]} leads there. "
                f"Take another release, or set {VARIABLE}: false.",
            )

    def _install(self, old: str | None) -> None:
        stays = f"release {old} stays in use" if old else "nothing was installed"
        archive = Path(self.module.params["archive"] or "")
        if not archive.is_file():
            raise Failure(
                f"There is no archive {archive} on {host_name()} to install release {self.digest} from; {stays}."
            )
        self.releases.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=self.releases, prefix=f".new-{self.digest}-"))
        try:
            new.chmod(0o755)
            extract(archive, new)
            self._check(new)
            compile_missing(new / "site-packages")
            self._start(new)
            os.sync()
            new.rename(self.releases / self.digest)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise Failure(
                f"The archive {archive} on {host_name()} is broken ({error}); {stays}. "
                "Remove build/bundles on the controller and run playbooks/site.yml again."
            ) from error
        except Failure as failure:
            raise Failure(f"{failure.sentence}; {stays}.") from failure
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Failure(
                f"Release {self.digest} does not fit below {self.releases} on {host_name()}: {error.strerror}; {stays}. "
                "Make room there and run playbooks/site.yml again."
            ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _check(self, new: Path) -> None:
        manifest = read_json(new / MANIFEST) or {}
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        if manifest.get("digest") != self.digest:
            raise Failure(f"The archive holds release {manifest.get('digest')}, not {self.digest}")
        if manifest.get("python") != own:
            raise Failure(
                f"Release {self.digest} was built for Python {manifest.get('python')}, {host_name()} has {own}"
            )

    def _start(self, new: Path) -> None:
        rc, out, err = self.module.run_command([str(new / "bin" / "colo-helper"), "--version"])
        if rc:
            said = (err or out).strip().splitlines()[-1:] or ["nothing"]
            raise Failure(f"Release {self.digest} does not start on {host_name()} (exit {rc}): {said[0]}")


def describe(prefix: Path) -> dict[str, Any]:
    """What the preflight tells of the installation: the digest in use and all that are there."""
    return {"digest": current_digest(prefix), "releases": installed(prefix)}
