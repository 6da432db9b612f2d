"""Releases on a host: unpacked beside the old one, tried, switched; and what stays when something fails."""

import errno
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ansible.module_host import FakeHost, Runner, utility

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_archive(path: Path, digest: str, python: str = PYTHON, extra: str = "") -> Path:
    files = {
        "release.json": json.dumps({"digest": digest, "version": "0.1.0", "python": python}),
        "bin/colo-helper": "#!/bin/sh\n",
        "site-packages/colo_helper/__init__.py": "X = 1\n",
    }
    if extra:
        files[extra] = "outside"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            entry.mode = 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def prefix(host: FakeHost) -> Path:
    host.answers["colo-helper"] = lambda _words: (0, "colo-helper 0.1.0\n", "")
    return host.root / "opt"


@pytest.fixture
def install(host: FakeHost, run: Runner, prefix: Path) -> Any:
    def call(digest: str, **options: Any) -> dict[str, Any]:
        archive = make_archive(host.root / f"{digest}.tar.gz", digest)
        return run("colo_helper", digest=digest, archive=str(archive), prefix=str(prefix), **options)

    return call


def test_first_release_and_the_second_run(install: Any, prefix: Path) -> None:
    first = install("d1", remove_archive=True)
    assert first["changed"] is True
    assert (first["digest"], first["version"], first["releases"]) == ("d1", "0.1.0", ["d1"])
    assert (prefix / "current").readlink() == Path("releases/d1")
    package = prefix / "current" / "site-packages" / "colo_helper"
    assert list((package / "__pycache__").glob("*.pyc")), (
        "compiled at once, not at the first start of each process"
    )
    assert not (prefix.parent / "d1.tar.gz").exists()
    assert install("d1")["changed"] is False


def test_check_mode_predicts_without_an_archive(run: Runner, prefix: Path) -> None:
    result = run("colo_helper", digest="d1", archive="/nowhere", prefix=str(prefix), check=True)
    assert result["changed"] is True
    assert result["digest"] == "d1"
    assert not prefix.exists()


def test_old_releases_go_but_those_in_use_stay(install: Any, host: FakeHost, prefix: Path) -> None:
    for digest in ("d1", "d2", "d3"):
        install(digest, keep=5)
    maps = host.root / "proc" / "4711"
    maps.mkdir()
    (maps / "maps").write_text(f"7f00 r-xp {prefix}/releases/d1/site-packages/zstandard/backend_c.so\n")
    result = install("d4", keep=0)
    assert result["releases"] == ["d1", "d4"]


def test_going_back_to_an_old_release_needs_no_archive(install: Any, run: Runner, prefix: Path) -> None:
    install("d1")
    install("d2")
    result = run("colo_helper", digest="d1", prefix=str(prefix))
    assert result["changed"] is True
    assert (prefix / "current").readlink() == Path("releases/d1")


def test_a_second_run_at_the_same_time_finds_the_release_installed(
    install: Any, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = utility("release")
    install("d1")
    look = release.HelperRelease.read

    def read_before_the_other_run(self: Any) -> dict[str, Any]:
        monkeypatch.setattr(release.HelperRelease, "read", look)
        return {"digest": None, "releases": []}

    monkeypatch.setattr(release.HelperRelease, "read", read_before_the_other_run)
    monkeypatch.setattr(release, "extract", None)
    result = install("d1")
    assert (result["digest"], result["releases"]) == ("d1", ["d1"])
    assert (prefix / "current").readlink() == Path("releases/d1")


def refused(prefix: Path, result: dict[str, Any], digest: str = "d1") -> str:
    """The sentence; the old release is untouched and nothing half done is left."""
    assert result["failed"] is True
    assert (prefix / "current").readlink() == Path(f"releases/{digest}")
    assert [path.name for path in (prefix / "releases").iterdir()] == [digest]
    sentence: str = result["msg"]
    return sentence


def test_broken_archive(install: Any, run: Runner, host: FakeHost, prefix: Path) -> None:
    install("d1")
    archive = make_archive(host.root / "broken.tar.gz", "d2")
    archive.write_bytes(archive.read_bytes()[:120])
    result = run("colo_helper", digest="d2", archive=str(archive), prefix=str(prefix))
    sentence = refused(prefix, result)
    assert sentence.startswith(f"The archive {archive} on xa is broken (")
    assert sentence.endswith(
        "); release d1 stays in use. Remove build/bundles on the controller and run playbooks/site.yml again."
    )


def test_archive_that_leaves_its_directory(install: Any, run: Runner, host: FakeHost, prefix: Path) -> None:
    install("d1")
    archive = make_archive(host.root / "evil.tar.gz", "d2", extra="../../evil")
    result = run("colo_helper", digest="d2", archive=str(archive), prefix=str(prefix))
    assert "it holds '../../evil', which no release does" in refused(prefix, result)


def test_full_disk(install: Any, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("d1")

    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(utility("release"), "extract", full)
    assert refused(prefix, install("d2")) == (
        f"Release d2 does not fit below {prefix}/releases on xa: No space left on device; release d1 stays in use. "
        "Make room there and run playbooks/site.yml again."
    )


def test_release_that_does_not_start(install: Any, host: FakeHost, prefix: Path) -> None:
    install("d1")
    host.answers["colo-helper"] = lambda _words: (1, "", "Traceback\nImportError: no GLIBC_2.36\n")
    assert refused(prefix, install("d2")) == (
        "Release d2 does not start on xa (exit 1): ImportError: no GLIBC_2.36; release d1 stays in use."
    )


def test_release_of_another_python(install: Any, run: Runner, host: FakeHost, prefix: Path) -> None:
    install("d1")
    archive = make_archive(host.root / "d2.tar.gz", "d2", python="3.99")
    result = run("colo_helper", digest="d2", archive=str(archive), prefix=str(prefix))
    assert refused(prefix, result) == (
        f"Release d2 was built for Python 3.99, xa has {PYTHON}; release d1 stays in use."
    )


def test_no_archive_at_all(run: Runner, prefix: Path) -> None:
    result = run("colo_helper", digest="d1", archive="/nowhere.tar.gz", prefix=str(prefix))
    assert result["msg"] == (
        "There is no archive /nowhere.tar.gz on xa to install release d1 from; nothing was installed."
    )


def test_removal_is_refused_while_in_use(install: Any, run: Runner, host: FakeHost, prefix: Path) -> None:
    install("d1")
    maps = host.root / "proc" / "4711"
    maps.mkdir()
    (maps / "maps").write_text(f"{prefix}/releases/d1/site-packages/x.so\n")
    assert run("colo_helper", state="absent", prefix=str(prefix))["msg"] == (
        "colo_helper is in use on xa (release d1): end the protection of its VMs first with playbooks/unprotect.yml."
    )
    (maps / "maps").write_text("")
    assert run("colo_helper", state="absent", prefix=str(prefix))["changed"] is True
    assert not prefix.exists()
    assert run("colo_helper", state="absent", prefix=str(prefix))["changed"] is False


def test_a_release_whose_save_helper_does_not_start_is_not_used_where_xl_saves_with_it(
    install: Any, run: Runner, host: FakeHost, prefix: Path
) -> None:
    install("d1")
    install("d2")
    place = host.root / "lib" / "xen-4.17" / "bin" / "libxl-save-helper"
    place.parent.mkdir(parents=True)
    place.symlink_to(prefix / "current" / "bin" / "colo-save-helper")
    without = run("colo_helper", digest="d1", prefix=str(prefix))
    assert without["msg"] == (
        f"There is no {prefix}/releases/d1/bin/colo-save-helper on xa: release d2 stays in use, because {place} leads there. "
        "Take another release, or set colo_host_save_helper_default: false."
    )
    (prefix / "releases" / "d1" / "bin" / "colo-save-helper").write_text("")
    host.answers["colo-save-helper"] = lambda _words: (1, "", "ImportError: no colo_helper\n")
    broken = run("colo_helper", digest="d1", prefix=str(prefix))
    assert broken["msg"].startswith(
        f"{prefix}/releases/d1/bin/colo-save-helper does not start on xa (exit 1, not 2 and its usage): "
        "ImportError: no colo_helper; release d2 stays in use, "
    )
    assert (prefix / "current").readlink() == Path("releases/d2")
    host.answers["colo-save-helper"] = lambda _words: (2, "", "colo-save-helper: The first argument is ''\n")
    assert run("colo_helper", digest="d1", prefix=str(prefix))["digest"] == "d1"
