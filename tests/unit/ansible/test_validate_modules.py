"""The modules before ansible-test's validate-modules, as the modules of a collection, which is all that it takes."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.unit.ansible.module_host import REPOSITORY

COLLECTION = Path("ansible_collections") / "colo" / "xen"


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """The modules and what they import, by the names that a collection gives them."""
    root = tmp_path / COLLECTION
    for source, target in (("library", "modules"), ("module_utils", "module_utils")):
        shutil.copytree(
            REPOSITORY / source, root / "plugins" / target, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in (root / "plugins").rglob("*.py"):
        text = path.read_text()
        for ours, theirs in (
            ("ansible.module_utils.colo", "ansible_collections.colo.xen.plugins.module_utils.colo"),
            ("M(colo_", "M(colo.xen.colo_"),
            ("- module: colo_", "- module: colo.xen.colo_"),
        ):
            text = text.replace(ours, theirs)
        path.write_text(text)
    return root


def complaints(collection: Path) -> list[str]:
    """What the tool says against the modules of a collection."""
    spec = find_spec("ansible_test")
    assert spec is not None
    assert spec.origin is not None
    tool = Path(spec.origin).parent / "_util" / "controller" / "sanity" / "validate-modules"
    modules = sorted(
        str(path.relative_to(collection)) for path in (collection / "plugins" / "modules").glob("*.py")
    )
    options = ["--format=json", "--arg-spec", f"--collection={COLLECTION}", "--collection-version=0.1.0"]
    root = collection.parents[2]
    done = subprocess.run(
        [sys.executable, tool / "validate.py", *options, *modules],
        cwd=collection,
        env={**os.environ, "PYTHONPATH": f"{tool}:{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        pytest.fail(f"validate-modules did not run: {done.stderr[-2000:]}")
    return [
        f"{path}: {error['code']}: {error['msg']}" for path, said in found.items() for error in said["errors"]
    ]


def test_every_module_is_as_ansible_wants_modules(collection: Path) -> None:
    assert complaints(collection) == []


def test_the_tool_sees_what_is_wrong(collection: Path) -> None:
    module = collection / "plugins" / "modules" / "colo_vm.py"
    module.write_text(
        module.read_text().replace("argument_spec={", 'argument_spec={"undocumented": {"type": "str"},')
    )
    assert [said for said in complaints(collection) if "undocumented" in said and "colo_vm.py" in said] != []
