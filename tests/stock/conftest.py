"""Debian's helper on this machine, and a place for fake domains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stock import packages
from tests.stock.harness import working_directory


@pytest.fixture(scope="session")
def stock() -> packages.Stock:
    try:
        return packages.stock()
    except packages.WrongMachineError as error:
        pytest.skip(str(error))
    except packages.StockError as error:
        pytest.fail(str(error))


@pytest.fixture
def workdir() -> Iterator[Path]:
    with working_directory() as path:
        yield path
