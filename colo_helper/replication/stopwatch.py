"""How long the steps of a checkpoint take."""

from __future__ import annotations

import time


def milliseconds(seconds: float) -> float:
    """Return a time as the records have it: in milliseconds, to a tenth."""
    return round(seconds * 1000, 1)


class Stopwatch:
    """Laps on the monotonic clock, in milliseconds."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self.laps_ms: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End the lap that began with the one before."""
        now = time.monotonic()
        self.laps_ms[name] = milliseconds(now - self._last)
        self._last = now

    @property
    def total_ms(self) -> float:
        """From the start to the last lap's end."""
        return milliseconds(self._last - self._started)
