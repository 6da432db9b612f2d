"""Benchmarks run by hand, and for hours: that their modules fit together is seen here."""

import importlib
from pathlib import Path

import pytest

import bench

MODULES = sorted(path.stem for path in Path(bench.__path__[0]).glob("*.py") if path.stem != "pause_sampler")


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_can_be_imported(name):
    assert importlib.import_module(f"bench.{name}")
