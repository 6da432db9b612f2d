"""What redis-benchmark says, as figures."""

import pytest

from lab.redis import Rate, rates

# As redis-benchmark 7.0 prints it.
SAID = """WARNING: Could not fetch server CONFIG
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","52.14","180.123","20.112","170.111","300.123","410.111","500.1"
"GET","54.00","175.000","19.000","169.000","290.000","400.000","480.0"
"""


def test_figures_of_both_commands() -> None:
    assert rates(SAID) == [
        Rate("SET", 52.14, 170.111, 410.111, 500.1),
        Rate("GET", 54.0, 169.0, 400.0, 480.0),
    ]


@pytest.mark.parametrize("said", ["", SAID.rsplit("\n", 2)[0], "Error: Server closed the connection"])
def test_a_load_that_did_not_end_well_has_no_figures(said: str) -> None:
    with pytest.raises(ValueError, match="redis-benchmark said no figures of SET and GET"):
        rates(said)
