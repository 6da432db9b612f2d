"""The interval follows what the last checkpoints cost."""

import pytest

from colo_helper.proxy.policy import Bounds
from colo_helper.replication.pace import Made, Pace

BOUNDS = Bounds(latency_ms=500, min_interval_ms=100, max_interval_ms=10_000)


def paced(*made):
    pace = Pace(BOUNDS)
    for one in made[:-1]:
        pace.after(one)
    return pace.after(made[-1])


def test_one_checkpoint_tells_nothing_of_the_rate():
    assert paced(Made(5.0, 4000, 100.0, False)).interval_ms == 10_000


def test_a_quiet_guest_runs_as_long_as_is_allowed():
    assert paced(*(Made(at, 10, 50.0, False) for at in range(5))).interval_ms == 10_000


def test_a_busy_guest_is_checkpointed_as_often_as_the_bound_needs():
    # 10,000 pages a second are 327.68 ms of copying; 450 ms of the bound are left for it.
    found = paced(*(Made(at, 10_000, 50.0 + 10_000 * 4096 * 8 / 1e6, False) for at in range(5)))
    assert found.interval_ms == pytest.approx(450 / 327.68 * 1000)


def test_a_guest_whose_outputs_always_differ_is_like_remus():
    found = paced(*(Made(at * 0.14, 10, 50.0, True) for at in range(8)))
    assert found.interval_ms == 100
    assert "as Remus would make it" in found.sentence


def test_only_the_last_checkpoints_count():
    busy = [Made(at, 50_000, 2000.0, False) for at in range(10)]
    quiet = [Made(10.0 + at, 1, 50.0, False) for at in range(8)]
    assert paced(*busy, *quiet).interval_ms == 10_000
