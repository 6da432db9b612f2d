"""Fixtures of the tests on the real lab; they run one after the other, on the one lab of this checkout."""

import pytest

from lab.lab import Lab
from lab.settings import here


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def settings():
    return here()


@pytest.fixture(scope="session")
def lab(settings):
    made = Lab(settings, print)
    made.up(12, None)
    return made
