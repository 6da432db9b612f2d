"""How long the guest may run until the next checkpoint that nothing asks for, from what the last ones cost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from colo_helper.proxy.policy import PAGE_MS, Bounds, Interval, Load, next_interval

#: So many checkpoints are looked at.
_LOOKED_AT = 8


class Made(NamedTuple):
    """A checkpoint: when it was complete (seconds), the pages that differed, what a client waited for it (milliseconds)."""

    at_s: float
    pages: int
    cost_ms: float
    #: Whether the outputs differed.
    diverged: bool


@dataclass
class Pace:
    """The pace of one session."""

    bounds: Bounds
    _made: deque[Made] = field(default_factory=lambda: deque(maxlen=_LOOKED_AT))

    def after(self, made: Made) -> Interval:
        """Return the interval after one more checkpoint."""
        self._made.append(made)
        return next_interval(self._load(), self.bounds)

    def _load(self) -> Load:
        made = list(self._made)
        passed_s = made[-1].at_s - made[0].at_s
        since = made[1:]  # what the first one copied was written before it
        return Load(
            dirty_pages_per_s=sum(one.pages for one in since) / passed_s if passed_s > 0 else 0.0,
            divergences_per_s=sum(one.diverged for one in since) / passed_s if passed_s > 0 else 0.0,
            checkpoint_ms=median(max(0.0, one.cost_ms - one.pages * PAGE_MS) for one in made),
        )
