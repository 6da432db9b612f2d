"""Nearest-rank quantiles."""

import pytest

from colo_helper.quantiles import nearest_rank


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0], 0.5, 1.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([1.0, 9.0], 0.99, 9.0),
    ],
)
def test_the_smallest_sample_that_the_share_does_not_exceed(values, share, expected):
    assert nearest_rank(values, share) == expected
