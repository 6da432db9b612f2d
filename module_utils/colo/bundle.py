"""Building a release of colo_helper on the controller, from wheels, for the Python of a host."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.colo.base import Failure
from ansible.module_utils.colo.files import exclusive

#: Raise when the way a release is built changes: the digest of every release changes with it.
FORMAT = 1
#: glibc 2.36 is Debian 12's, the oldest host; newer hosts run the same wheels.
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1)), "manylinux2014_x86_64")
#: Of the installed wheels, what a host never reads: records of the installation (they hold paths of the controller),
#: stubs, the packages' own tests, and zstandard's second back-end (12 MiB; it takes the C one under CPython).
PRUNED = ("bin", "*.dist-info/RECORD", "*.dist-info/REQUESTED", "*.dist-info/direct_url.json", "**/*.pyi",
          "*/test_*.py", "zstandard/_cffi*.so")  # fmt: skip
#: The versions that the tests ran with, in a checkout.
PINS = "constraints.txt"
#: The first pip that installs dependency groups.
PIP = "pip>=25.1"
#: Bundles that stay on the controller, to go back to without building.
KEPT_BUNDLES = 5
#: Where tracebacks shall look for the sources of what was compiled here.
INSTALLED = "/opt/colo-helper/current"
MANIFEST = "release.json"
#: Without the host's own site packages: nothing of them is used, and looking for them takes time at every start.
LAUNCHER = """\
#!/usr/bin/python3 -IS
\"\"\"Starts a program of colo_helper from the release that this file belongs to, whichever link led here.\"\"\"
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + "/site-packages")

from {module} import {function}

sys.exit({function}())
"""


@dataclass(frozen=True)
class Project:
    """What of the source tree goes into a release."""

    source: Path
    version: str
    dependencies: tuple[str, ...]
    build_requires: tuple[str, ...]
    scripts: dict[str, str]
    digest: str


def _tables(source: Path) -> dict[str, Any]:
    """What pyproject.toml says."""
    import tomllib  # noqa: PLC0415  # only the controller builds, and only here

    try:
        text = (source / "pyproject.toml").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Failure(f"{source} has no pyproject.toml: set source to a checkout of this project.") from None
    return tomllib.loads(text)


def read_project(source: Path) -> Project:
    """Read pyproject.toml and hash what a release is made of: the package and the tables that build it."""
    tables = _tables(source)
    project, build = tables["project"], tables["build-system"]
    digest = hashlib.sha256(json.dumps([project, build, tables.get("tool", {}).get("setuptools")]).encode())
    for path in package_files(source):
        digest.update(f"\n{path.relative_to(source)} {hash_file(path)}".encode())
    return Project(
        source=source,
        version=project["version"],
        dependencies=tuple(project["dependencies"]),
        build_requires=(*build["requires"], "wheel"),
        scripts=project["scripts"],
        digest=digest.hexdigest(),
    )


def write_launchers(directory: Path, scripts: dict[str, str]) -> None:
    """Write one launcher for each of the project's programs: name, and "module:function"."""
    directory.mkdir()
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        launcher = directory / name
        launcher.write_text(LAUNCHER.format(module=module, function=function))
        launcher.chmod(0o755)


def package_files(source: Path) -> list[Path]:
    """The files of colo_helper, in a fixed order."""
    root = source / "colo_helper"
    return sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class WheelStore:
    """A directory of wheels and a lock file that says which requirements they answer, and their hashes."""

    def __init__(
        self, directory: Path, requirements: tuple[str, ...], options: list[str], pins: Path | None = None
    ) -> None:
        self.directory = directory
        self._requirements = requirements
        # The controller's own constraints hold for the hosts too.
        pinned = [f"--constraint={pins}"] if pins is not None and pins.is_file() else []
        self._options = [*options, *pinned]
        self._lock = directory / "lock.json"
        versions = hash_file(pins) if pins is not None and pins.is_file() else ""
        self._key = hashlib.sha256(json.dumps([requirements, versions]).encode()).hexdigest()

    def locked(self) -> dict[str, str] | None:
        """File name to SHA-256 of the wheels at hand; None when they are not complete or answer something else."""
        try:
            lock = json.loads(self._lock.read_text(encoding="utf-8"))
            wheels: dict[str, str] = lock["wheels"]
            complete = all(hash_file(self.directory / name) == value for name, value in wheels.items())
        except (OSError, ValueError, KeyError):
            return None
        return wheels if complete and lock["key"] == self._key else None

    def fill(self) -> dict[str, str]:
        """Fetch what is missing (the only step that needs the package index) and lock it."""
        wheels = self.locked()
        if wheels is not None:
            return wheels
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".fetch-") as name:
            fetched = Path(name)
            run_pip("download", "--only-binary=:all:", *self._options, "--dest", name, *self._requirements)
            wheels = {path.name: hash_file(path) for path in sorted(fetched.glob("*.whl"))}
            for wheel in wheels:
                (fetched / wheel).replace(self.directory / wheel)
        self._lock.write_text(json.dumps({"key": self._key, "wheels": wheels}, indent=2) + "\n")
        return wheels


class BundleBuilder:
    """The bundle of one project for one Python; everything it writes is below ``build``."""

    def __init__(self, project: Project, build: Path, python: str) -> None:
        self.project = project
        self.build = build
        self.python = python
        self._target = [
            f"--python-version={python}",
            "--implementation=cp",
            *(f"--platform={platform}" for platform in PLATFORMS),
        ]
        pins = project.source / PINS
        self.wheels = WheelStore(build / "wheels" / f"py{python}", project.dependencies, self._target, pins)
        self._tools = WheelStore(build / "wheels" / "build", project.build_requires, [])

    def digest(self, wheels: dict[str, str]) -> str:
        """The release's name: it changes when anything that goes into it does."""
        parts = [FORMAT, self.python, LAUNCHER, PRUNED, self.project.digest, sorted(wheels.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def path(self, digest: str) -> Path:
        """Where the bundle of that digest is, or will be."""
        return self.build / "bundles" / f"colo-helper-{self.project.version}-py{self.python}-{digest}.tar.gz"

    def make(self, wheels: dict[str, str]) -> Path:
        """Build the bundle; returns its path."""
        digest = self.digest(wheels)
        with tempfile.TemporaryDirectory(prefix="colo-bundle-") as name:
            work = Path(name)
            tree = work / "tree"
            packages = tree / "site-packages"
            self._install(work, packages, wheels)
            prune(packages)
            write_launchers(tree / "bin", self.project.scripts)
            manifest = {"digest": digest, "version": self.project.version, "python": self.python}
            (tree / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            precompile(packages, self.python)
            path = self.path(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            temporary.write_bytes(pack(tree))
            temporary.replace(path)
        return path

    def tidy(self, made: Path) -> None:
        """Remove bundles of this Python but the newest few, and never the one just made."""
        bundles = made.parent.glob(f"colo-helper-*-py{self.python}-*.tar.gz")
        newest = sorted(bundles, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in newest[KEPT_BUNDLES:]:
            if path != made:
                path.unlink(missing_ok=True)

    def _install(self, work: Path, packages: Path, wheels: dict[str, str]) -> None:
        """Make the project's own wheel from a clean copy, then install it beside the others."""
        self._tools.fill()
        source = work / "source"
        for path in package_files(self.project.source):
            copy = source / path.relative_to(self.project.source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        shutil.copyfile(self.project.source / "pyproject.toml", source / "pyproject.toml")
        shutil.copyfile(self.project.source / "LICENSE", source / "LICENSE")
        # The long description is no part of a release: a changed README makes no new one.
        (source / "README.md").write_text("See the project's own README.\n")
        offline = ["--no-index", f"--find-links={self._tools.directory}"]
        run_pip("wheel", "--no-deps", *offline, f"--wheel-dir={work}", str(source))
        names = [name.split("-")[:2] for name in (*wheels, *(p.name for p in work.glob("*.whl")))]
        run_pip(
            "install", "--no-index", f"--find-links={self.wheels.directory}", f"--find-links={work}", "--no-deps",
            "--no-compile", "--only-binary=:all:", *self._target, f"--target={packages}",
            *(f"{name}=={version}" for name, version in names),
        )  # fmt: skip


def run_pip(*arguments: str) -> None:
    """Run this Python's pip; its last error becomes the sentence."""
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        errors = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()[-1:]
        raise Failure(
            f"The controller cannot build colo_helper: pip {arguments[0]} said: {' '.join(errors) or 'nothing'}. "
            "It needs pip and, the first time, its package index; afterwards build/wheels is enough.",
            command=" ".join(argv),
        )


def prune(packages: Path) -> None:
    """Remove what a host never reads."""
    for pattern in PRUNED:
        for path in sorted(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def precompile(packages: Path, python: str) -> None:
    """Compile here when this machine has the host's Python: a slow host then has nothing left to compile.

    A file that does not compile is left to the host, which would not import it either.
    """
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if python == own else shutil.which(f"python{python}")
    if interpreter:
        subprocess.run(
            [interpreter, "-I", "-m", "compileall", "-qq", "--invalidation-mode=unchecked-hash",
             "-s", str(packages.parent), "-p", INSTALLED, str(packages)],
            check=False, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip


def pack(tree: Path) -> bytes:
    """The tree as tar.gz: the same bytes for the same files, whoever packs them and when. The manifest comes first."""
    paths = sorted(
        tree.rglob("*"), key=lambda path: (path.name != MANIFEST or path.parent != tree, str(path))
    )
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            entry = archive.gettarinfo(path, arcname=str(path.relative_to(tree)))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = "root"
            executable = entry.isdir() or path.stat().st_mode & 0o100
            entry.mode = 0o755 if executable else 0o644
            with path.open("rb") if entry.isfile() else io.BytesIO() as content:
                archive.addfile(entry, content)
    return gzip.compress(raw.getvalue(), compresslevel=6, mtime=0)


def make_bundle(source: Path, build: Path, python: str, *, predict: bool) -> dict[str, Any]:
    """Build unless it is there; with ``predict`` only say what would be. ``digest`` is empty when unknowable offline."""
    builder = BundleBuilder(read_project(source), build, python)
    version = builder.project.version
    if predict:
        wheels = builder.wheels.locked()
        digest = builder.digest(wheels) if wheels is not None else ""
        path = builder.path(digest) if digest else None
        missing = path is None or not path.exists()
        return {
            "changed": missing,
            "digest": digest,
            "path": str(path or ""),
            "version": version,
            "built": not missing,
        }
    # Two plays may be at it at once.
    with exclusive(build / ".bundle.lock"):
        wheels = builder.wheels.fill()
        digest = builder.digest(wheels)
        path = builder.path(digest)
        missing = not path.exists()
        if missing:
            builder.make(wheels)
            builder.tidy(path)
    return {"changed": missing, "digest": digest, "path": str(path), "version": version, "built": True}


def fetch_controller_wheels(source: Path, build: Path, groups: list[str], *, predict: bool) -> dict[str, Any]:
    """Have all wheels that dependency groups of the project need, and pip, for this Python; with ``predict`` only look."""
    known: dict[str, list[Any]] = _tables(source)["dependency-groups"]
    for group in groups:
        if not all(isinstance(one, str) for one in known.get(group, [None])):
            plain = [name for name, entries in known.items() if all(isinstance(one, str) for one in entries)]
            raise Failure(
                f"{source}/pyproject.toml has no plain dependency group {group}; it has: {', '.join(plain)}."
            )
    requirements = (PIP, *(one for group in groups for one in known[group]))
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    store = WheelStore(build / "wheels" / f"controller-{python}", requirements, [], source / PINS)
    with exclusive(build / ".bundle.lock") if not predict else nullcontext():
        before = store.locked()
        wheels = before if before is not None or predict else store.fill()
    names = {"before": sorted(before or ()), "after": sorted(wheels or ())}
    return {
        "changed": before is None,
        "directory": str(store.directory),
        "wheels": names["after"],
        "diff": {side: "".join(f"{name}\n" for name in found) for side, found in names.items()},
    }
