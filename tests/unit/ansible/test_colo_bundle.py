"""Building a release: what names it, what is in it, and that an unchanged source costs nothing. pip is not started."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ansible.module_host import REPOSITORY, Runner, utility


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkout with a small colo_helper."""
    root = tmp_path / "checkout"
    (root / "colo_helper").mkdir(parents=True)
    (root / "colo_helper" / "__init__.py").write_text("X = 1\n")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(REPOSITORY / name, root / name)
    return root


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for pip: wheels appear, and `install` writes what an installation leaves. Returns the verbs it was asked."""
    verbs: list[str] = []

    def run_pip(verb: str, *words: str) -> None:
        verbs.append(verb)
        if verb == "download":
            directory = Path(words[words.index("--dest") + 1])
            (directory / "zstandard-0.25.0-cp311-cp311-manylinux_2_17_x86_64.whl").write_text("wheel")
        elif verb == "wheel":
            directory = next(Path(word.split("=")[1]) for word in words if word.startswith("--wheel-dir="))
            (directory / "colo_helper-0.1.0-py3-none-any.whl").write_text("wheel")
            source = Path(words[-1])
            assert sorted(path.name for path in source.iterdir()) == [
                "LICENSE",
                "README.md",
                "colo_helper",
                "pyproject.toml",
            ]
        elif verb == "install":
            packages = next(Path(word.split("=")[1]) for word in words if word.startswith("--target="))
            assert {"zstandard==0.25.0", "colo_helper==0.1.0", "--no-index"} <= set(words)
            for name in (
                "colo_helper/__init__.py",
                "bin/invoke",
                "x-1.dist-info/RECORD",
                "zstandard/_cffi.x.so",
                "a/b.pyi",
            ):
                (packages / name).parent.mkdir(parents=True, exist_ok=True)
                (packages / name).write_text("")

    monkeypatch.setattr(utility("bundle"), "run_pip", run_pip)
    return verbs


def test_build_and_the_second_run(source: Path, pip: list[str], run: Runner) -> None:
    first = run("colo_bundle", source=str(source), python_version="3.11")
    assert first["changed"] is first["built"] is True
    assert pip == ["download", "download", "wheel", "install"]
    pip.clear()
    second = run("colo_bundle", source=str(source), python_version="3.11")
    assert second["changed"] is False
    assert second["digest"] == first["digest"]
    assert pip == []
    with tarfile.open(first["path"]) as archive:
        names = archive.getnames()
        manifest = json.load(archive.extractfile("release.json") or io.BytesIO())
        assert archive.getmember("bin/colo-helper").mode == 0o755
    assert names[0] == "release.json"
    assert manifest == {"digest": first["digest"], "version": "0.1.0", "python": "3.11"}
    assert {"bin/colo-helper", "site-packages/colo_helper/__init__.py"} <= set(names)
    assert not [name for name in names if name.endswith((".pyi", "RECORD", ".so", "invoke"))]


@pytest.mark.usefixtures("pip")
def test_the_digest_follows_what_goes_into_a_release(source: Path, run: Runner) -> None:
    def digest(python: str = "3.11") -> str:
        result: dict[str, Any] = run("colo_bundle", source=str(source), python_version=python)
        return str(result["digest"])

    first = digest()
    (source / "README.md").write_text("new")
    with (source / "pyproject.toml").open("a") as stream:
        stream.write("\n[tool.something]\nx = 1\n")
    assert digest() == first
    assert digest("3.13") != first
    (source / "colo_helper" / "__init__.py").write_text("X = 2\n")
    assert digest() != first


@pytest.mark.usefixtures("pip")
def test_old_bundles_go(source: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utility("bundle"), "KEPT_BUNDLES", 1)
    for text in ("X = 1\n", "X = 2\n", "X = 3\n"):
        (source / "colo_helper" / "__init__.py").write_text(text)
        result = run("colo_bundle", source=str(source), python_version="3.11")
    assert Path(result["path"]) in (source / "build" / "bundles").iterdir()
    assert len(list((source / "build" / "bundles").iterdir())) <= 2


def test_check_mode_builds_nothing(source: Path, pip: list[str], run: Runner) -> None:
    fresh = run("colo_bundle", source=str(source), python_version="3.11", check=True)
    assert (fresh["changed"], fresh["built"], fresh["digest"], fresh["path"]) == (True, False, "", "")
    assert not (source / "build").exists()
    built = run("colo_bundle", source=str(source), python_version="3.11")
    pip.clear()
    again = run("colo_bundle", source=str(source), python_version="3.11", check=True)
    assert (again["changed"], again["digest"]) == (False, built["digest"])
    assert pip == []


def test_a_damaged_wheel_is_fetched_again(source: Path, pip: list[str], run: Runner) -> None:
    run("colo_bundle", source=str(source), python_version="3.11")
    pip.clear()
    next((source / "build" / "wheels" / "py3.11").glob("*.whl")).write_text("damaged")
    assert run("colo_bundle", source=str(source), python_version="3.11")["changed"] is False
    assert pip == ["download"]


def test_what_a_controller_needs_is_fetched_once(source: Path, pip: list[str], run: Runner) -> None:
    asked = {"source": str(source), "groups": ["controller", "fleet"]}
    assert run("colo_wheels", **asked, check=True)["changed"] is True
    assert not (source / "build").exists()
    first = run("colo_wheels", **asked)
    assert (first["changed"], pip) == (True, ["download"])
    assert first["directory"] == str(
        source / "build" / "wheels" / f"controller-py{sys.version_info.major}.{sys.version_info.minor}"
    )
    assert first["wheels"] == ["zstandard-0.25.0-cp311-cp311-manylinux_2_17_x86_64.whl"]
    again = run("colo_wheels", **asked)
    assert (again["changed"], again["wheels"], pip) == (False, first["wheels"], ["download"])
    assert run("colo_wheels", source=str(source))["changed"] is True, "other groups need others"


def test_a_group_that_pip_would_have_to_resolve_is_refused(source: Path, run: Runner) -> None:
    for group in ("dev", "nonsense"):
        said = run("colo_wheels", source=str(source), groups=[group])["msg"]
        assert (
            said
            == f"{source}/pyproject.toml has no plain dependency group {group}; it has: controller, fleet, fuzz."
        )


def test_no_checkout(run: Runner, tmp_path: Path) -> None:
    result = run("colo_bundle", source=str(tmp_path), python_version="3.11")
    assert result["msg"] == f"{tmp_path} has no pyproject.toml: set source to a checkout of this project."


def test_pip_fails_with_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(
        "#!/bin/sh\necho 'WARNING: x' >&2\necho 'ERROR: No matching distribution' >&2\nexit 1\n"
    )
    interpreter.chmod(0o755)
    monkeypatch.setattr(utility("bundle").sys, "executable", str(interpreter))
    with pytest.raises(utility("base").Failure) as failure:
        utility("bundle").run_pip("download", "zstandard")
    assert failure.value.sentence == (
        "The controller cannot build colo_helper: pip download said: ERROR: No matching distribution. "
        "It needs pip and, the first time, its package index; afterwards build/wheels is enough."
    )


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    bundle = utility("bundle")
    trees = []
    for name, order in (("one", "ab"), ("two", "ba")):
        tree = tmp_path / name
        tree.mkdir()
        for letter in order:
            (tree / letter).write_text(letter)
        (tree / "release.json").write_text("{}")
        trees.append(tree)
    (trees[1] / "a").touch()
    (trees[1] / "a").chmod(0o600)
    assert bundle.pack(trees[0]) == bundle.pack(trees[1])
