"""A protected VM with an arbiter, for all tests of who may run."""

import threading

import pytest

from colo_helper.monitor import monitor
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


@pytest.fixture
def full(monkeypatch):
    """Both hosts' disks, once it is set: nothing can be written."""
    full = threading.Event()

    def on_disk(write):
        def written(path, value):
            if full.is_set():
                raise OSError(28, "No space left on device")
            write(path, value)

        return written

    for name in ("write_json", "append_line"):
        monkeypatch.setattr(monitor, name, on_disk(getattr(monitor, name)))
    return full
