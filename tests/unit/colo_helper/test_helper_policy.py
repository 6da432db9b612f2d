"""When a live copy stops going round: every verdict with its sentence, and what holds for any guest and link."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.helper.policy import MAX_ROUNDS, Round, after_round, pages_per_second

GUEST = 100_000
#: 25,000 pages a second are 102.4 MB/s.
RATE = 25_000


def going(*dirty: int, rate: float = RATE) -> list[Round]:
    """Rounds that each send what the one before left, at one rate; the first sends the guest."""
    pages = [GUEST, *dirty[:-1]]
    return [Round(sent, sent / rate, left) for sent, left in zip(pages, dirty, strict=True)]


@pytest.mark.parametrize(
    ("rounds", "stop", "sentence"),
    [
        (
            going(7500),
            True,
            "7500 dirty pages take about 300 ms at 102.4 MB/s, no more than the 300 ms allowed.",
        ),
        (going(7501), False, "7501 dirty pages take about 300 ms at 102.4 MB/s; another round."),
        (going(1), True, "1 dirty page takes about 0 ms at 102.4 MB/s, no more than the 300 ms allowed."),
        (going(0), True, "0 dirty pages take about 0 ms at 102.4 MB/s, no more than the 300 ms allowed."),
        (going(50_000), False, "50000 dirty pages take about 2000 ms at 102.4 MB/s; another round."),
        (
            going(50_000, 45_000, 40_500),
            False,
            "40500 dirty pages take about 1620 ms at 102.4 MB/s; another round.",
        ),
        (
            going(50_000, 45_001, 40_502),
            True,
            "40502 dirty pages take about 1620 ms at 102.4 MB/s, and the guest dirties them as fast as they go.",
        ),
        (
            going(50_000, 50_000, 44_000),
            False,
            "44000 dirty pages take about 1760 ms at 102.4 MB/s; another round.",
        ),
        (
            going(*[99_000, 80_000] * 2),
            False,
            "80000 dirty pages take about 3200 ms at 102.4 MB/s; another round.",
        ),
        (
            going(*[99_000, 80_000] * 2, 79_000),
            True,
            "79000 dirty pages take about 3160 ms at 102.4 MB/s, but 4 times the guest's memory has been sent.",
        ),
        (
            going(*[10_000, 8_000] * 15),
            True,
            f"8000 dirty pages take about 320 ms at 102.4 MB/s, but {MAX_ROUNDS} rounds are enough.",
        ),
        (
            [Round(GUEST, 0.0, 500)],
            True,
            "500 dirty pages take no measurable time, no more than the 300 ms allowed.",
        ),
        ([Round(0, 0.1, 500)], False, "500 dirty pages take a time that is not known yet; another round."),
        (
            [Round(0, 0.1, 0)],
            True,
            "0 dirty pages take a time that is not known yet, no more than the 300 ms allowed.",
        ),
    ],
)
def test_every_verdict(rounds, stop, sentence):
    verdict = after_round(rounds, GUEST)
    assert (verdict.stop, verdict.sentence) == (stop, sentence)


def test_the_operators_downtime_is_what_counts():
    rounds = going(7500)
    assert after_round(rounds, GUEST, target_ms=299).stop is False
    assert after_round(rounds, GUEST, target_ms=0.5).sentence.endswith("; another round.")
    assert after_round(going(10), GUEST, target_ms=0.5).sentence.endswith("no more than the 0.5 ms allowed.")


def test_the_rate_is_that_of_all_rounds():
    assert pages_per_second([Round(100, 1.0, 9), Round(300, 1.0, 9)]) == 200
    assert pages_per_second([Round(100, 0.0, 9)]) == math.inf


@given(
    st.integers(0, 1 << 24),
    st.lists(
        st.builds(Round, st.integers(0, 1 << 24), st.floats(0, 1e4), st.integers(0, 1 << 24)),
        min_size=1,
        max_size=40,
    ),
)
def test_it_always_ends_and_never_stops_without_a_reason(guest_pages, rounds):
    verdict = after_round(rounds, guest_pages)
    assert verdict.sentence.endswith(".")
    if len(rounds) >= MAX_ROUNDS:
        assert verdict.stop
    if rounds[-1].dirty_after == 0:
        assert verdict.stop, "nothing is left to be sent while the guest runs"
    if not verdict.stop:
        assert verdict.sentence.endswith("; another round.")
