"""How long a guest may run without a checkpoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.proxy.policy import PAGE_MS, Bounds, Load, next_interval

BOUNDS = Bounds(latency_ms=100, min_interval_ms=50, max_interval_ms=10_000)


@pytest.mark.parametrize(
    ("load", "bounds", "interval_ms", "sentence"),
    [
        (
            Load(10, 0, 20),
            BOUNDS,
            10_000,
            "Few pages are written: a checkpoint after 10000 ms, the longest allowed, still keeps the bound of 100 ms.",
        ),
        (
            Load(1000, 0.5, 20, page_ms=0.1),
            BOUNDS,
            800,
            "1000 pages are written a second: after 800 ms a checkpoint takes 100 ms, which is the bound.",
        ),
        (
            Load(100_000, 0, 20, page_ms=0.1),
            BOUNDS,
            50,
            "100000 pages are written a second: the bound of 100 ms would need a checkpoint every 8 ms, "
            "and the least allowed is 50 ms.",
        ),
        (
            Load(1000, 0, 300),
            BOUNDS,
            300,
            "A checkpoint takes 300 ms even without a dirty page, so the bound of 100 ms cannot be kept; "
            "with one every 300 ms the guest still runs.",
        ),
        (
            Load(10, 12.5, 30),
            BOUNDS,
            50,
            "Outputs differ 12.5 times a second, so comparing them brings nothing: "
            "a checkpoint every 50 ms, as Remus would make it.",
        ),
        (Load(10, 12.4, 30), BOUNDS, 10_000, None),
        (Load(0, 0, 0), BOUNDS, 10_000, None),
        (Load(10, 0, 90_000), BOUNDS, 10_000, None),
        (Load(10, 0, 20), Bounds(10, 50, 10_000), 50, None),
    ],
)
def test_intervals(load, bounds, interval_ms, sentence):
    interval = next_interval(load, bounds)
    assert interval.interval_ms == pytest.approx(interval_ms)
    if sentence:
        assert interval.sentence == sentence


rates = st.floats(0, 1e6)
LOADS = st.builds(Load, rates, rates, st.floats(0, 1e5), st.floats(0.001, 1))


@given(LOADS, st.floats(0, 1e5), st.floats(1, 1e4), st.floats(0, 1e5))
def test_the_interval_is_in_its_range_and_keeps_the_bound_where_it_can(load, latency_ms, least, more):
    bounds = Bounds(latency_ms, least, least + more)
    interval_ms = next_interval(load, bounds).interval_ms
    assert bounds.min_interval_ms <= interval_ms <= bounds.max_interval_ms
    cost_ms = load.checkpoint_ms + load.dirty_pages_per_s * interval_ms / 1000 * load.page_ms
    possible = load.checkpoint_ms + load.dirty_pages_per_s * least / 1000 * load.page_ms <= latency_ms
    assert cost_ms <= latency_ms * (1 + 1e-9) or not possible


@given(LOADS, st.floats(1, 10))
def test_more_writing_never_makes_the_interval_longer(load, times):
    more = Load(load.dirty_pages_per_s * times, load.divergences_per_s, load.checkpoint_ms, load.page_ms)
    assert next_interval(more, BOUNDS).interval_ms <= next_interval(load, BOUNDS).interval_ms * (1 + 1e-9)


def test_a_range_that_is_none():
    with pytest.raises(ValueError, match=r"Checkpoints cannot be between 50 and 10 ms apart\."):
        Bounds(100, 50, 10)


def test_a_page_costs_what_a_gigabit_a_second_takes_for_it():
    assert pytest.approx(0.0328, rel=0.01) == PAGE_MS
