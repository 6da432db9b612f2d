"""One way to take a quantile, for every figure that is told to people."""

from __future__ import annotations

import math
from collections.abc import Sequence


def nearest_rank(ascending: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least ``share`` (above 0, at most 1) of them do not exceed."""
    return ascending[max(0, math.ceil(len(ascending) * share) - 1)]
