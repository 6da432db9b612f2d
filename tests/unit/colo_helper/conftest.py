"""A protected VM with an arbiter, for all tests of who may run."""

import pytest

from tests.unit.colo_helper.arbitrated import World
from tests.unit.colo_helper.replication_pair import pairs_that_retry

BRIEF_MS = 500


@pytest.fixture
def pair(monkeypatch):
    """What makes pairs whose primary looks for its secondary again at once."""
    monkeypatch.setattr("colo_helper.replication.ownership._CONFIRM_AGAIN_S", 0.1)
    monkeypatch.setattr("colo_helper.replication.primary_epochs._LOOK_S", 0.1)
    with pairs_that_retry(monkeypatch, BRIEF_MS) as make:
        yield make


@pytest.fixture
def world():
    """The arbiter."""
    return World()


@pytest.fixture
def both(pair, world):
    """A VM that replicates, and whose copy may take over."""
    return pair(arbiters=world.ways, output="hold").start().replicating()
