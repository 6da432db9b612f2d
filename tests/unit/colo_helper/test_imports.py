"""Imports between the packages point one way: the table in docs/architecture/README.md, held against the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import colo_helper

ROOT = Path(colo_helper.__file__).parent
#: What a package may import of the others. Modules beside the packages, as `colo_helper.quantiles`, are for all.
MAY_IMPORT = {
    "arbiter": set(),
    "channel": set(),
    "control": {"monitor"},
    "devices": set(),
    "exporter": {"control", "monitor"},
    "guard": {"monitor", "replication"},
    "helper": {"stream", "memory", "hypervisor"},
    "hypervisor": {"memory", "stream"},
    "memory": set(),
    "monitor": set(),
    "proxy": set(),
    "stream": set(),
    "traffic": {"proxy", "devices"},
}


def imported(path):
    """Yield the modules that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_package_is_in_the_table():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"replication"} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package):
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for path in (ROOT / package).glob("**/*.py"):
        of_ours = [module.split(".") for module in imported(path) if module.startswith("colo_helper")]
        found = {names[1] for names in of_ours if len(names) > 1} & packages
        assert found <= MAY_IMPORT[package] | {package}, path
