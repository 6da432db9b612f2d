"""A few seconds of random damage on every reader of a peer's bytes; `make fuzz` goes on from here for longer."""

from __future__ import annotations

import time
import tracemalloc
from random import Random

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, BoundError, Target, measure, restorer

SECONDS = 0.6
MOST_INPUTS = 2000
HANG_S = 5.0


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_damage_does_no_harm(name, traced):
    target, rng = TARGETS[name], Random(name)
    seeds = target.seeds()
    for seed in seeds:
        measure(target, seed)
    end = time.monotonic() + SECONDS
    for _ in range(MOST_INPUTS):
        data = mutate(rng.choice(seeds), rng, 1 << 16)
        started = time.monotonic()
        try:
            measure(target, data)
        except Exception as error:
            pytest.fail(f"{name} raised {error!r} for {data[:200].hex()} ({len(data)} bytes)")
        assert time.monotonic() - started < HANG_S, data[:200].hex()
        if time.monotonic() > end:
            break


def test_the_bound_is_measured(traced):
    with pytest.raises(BoundError, match="An input of 3 bytes took 2"):
        measure(Target(lambda data: bytes(len(data) * 900_000), list, 1_000_000), b"abc")


@pytest.mark.parametrize(
    ("number", "context", "gfns"),
    [
        (0, b"context", {0, 1, 2, 5}),
        (1, b"context", {0, 1, 2, 5}),
        (2, b"context 1", {0, 1, 9}),
        (3, b"context 1", {0, 1, 9}),
        (4, b"context 1", {*range(8), 9}),
    ],
)
def test_the_seeds_reach_the_end(number, context, gfns):
    """What starts the fuzzer must be good: else all it does is to break headers."""
    domain = restorer(TARGETS["restorer"].seeds()[number])
    assert domain.context == context
    assert set(domain.memory) == gfns
