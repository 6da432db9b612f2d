"""Who is silent, who is suspected, who is dead: pure, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.channel.liveness import Life, Liveness, RoundTrips

PATHS = ("forward", "back", "heartbeat")


def peer(misses=5, interval_s=1.0):
    return Liveness(PATHS, interval_s, misses, now_s=100.0)


def looked(liveness, until_s, start_s=100.0, hear=()):
    """Look twice a second up to a moment; ``hear`` is heard each time."""
    now = start_s
    while now < until_s:
        now += 0.5
        for path in hear:
            liveness.heard(path, now)
        verdict = liveness.look(now)
    return verdict


def test_silence_on_every_path_for_all_beats_is_death():
    liveness = peer()
    assert looked(liveness, 105.0).life is Life.ALIVE
    verdict = looked(liveness, 105.5, 105.0)
    assert verdict.life is Life.DEAD
    assert verdict.sentence == "The peer has been silent on every path for 5.5 s (5 beats)."


@pytest.mark.parametrize("misses", [1, 3, 20])
def test_the_number_of_misses_is_what_was_asked_for(misses):
    liveness = peer(misses)
    assert looked(liveness, 100.0 + misses).life is Life.ALIVE
    assert looked(liveness, 101.0 + misses, 100.0 + misses).life is Life.DEAD


@given(st.sets(st.sampled_from(PATHS), min_size=1))
def test_a_peer_that_is_heard_anywhere_is_not_dead(heard):
    verdict = looked(peer(), 200.0, hear=heard)
    assert verdict.life is (Life.ALIVE if heard == set(PATHS) else Life.SUSPECTED)
    assert set(verdict.silent) == set(PATHS) - heard
    for path in verdict.silent:
        assert path in verdict.sentence


def test_whoever_was_stopped_itself_does_not_judge_by_that_time():
    liveness = peer()
    looked(liveness, 101.0, hear=PATHS)
    assert liveness.look(160.0).life is Life.ALIVE, "nothing was read for a minute because we did not run"
    assert looked(liveness, 164.0, 160.0).life is Life.ALIVE
    assert looked(liveness, 166.0, 164.0).life is Life.DEAD, "but from then on it counts"


def test_a_late_word_of_an_old_connection_does_not_turn_the_clock_back():
    liveness = peer()
    liveness.heard("back", 104.0)
    liveness.heard("back", 101.0)
    assert looked(liveness, 108.0).silent == ("forward", "heartbeat")


def test_no_figures_before_the_first_round_trip():
    assert RoundTrips().figures() == {}


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=600))
def test_figures_of_round_trips(samples):
    trips = RoundTrips()
    for sample in samples:
        trips.add(sample)
    figures = trips.figures()
    kept = sorted(samples[-256:])
    assert figures["last_ms"] == round(samples[-1], 3)
    assert kept[0] - 0.001 <= figures["p50_ms"] <= figures["p99_ms"] <= kept[-1] + 0.001
    assert sum(sample <= figures["p50_ms"] + 0.001 for sample in kept) >= len(kept) / 2
    assert figures["jitter_ms"] >= 0


def test_steady_round_trips_have_no_jitter_and_one_that_stands_out_shows():
    trips = RoundTrips()
    for _ in range(200):
        trips.add(2.0)
    assert trips.figures() == {"p50_ms": 2.0, "p99_ms": 2.0, "last_ms": 2.0, "jitter_ms": 0.0}
    trips.add(18.0)
    assert trips.figures()["jitter_ms"] == 1.0, "one sixteenth of the difference (RFC 3550)"
