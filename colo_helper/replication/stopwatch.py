"""How long the steps of a checkpoint take."""

from __future__ import annotations

import time


class Stopwatch:
    """Laps on the monotonic clock, in milliseconds."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self.laps_ms: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End the lap that began with the one before."""
        now = time.monotonic()
        self.laps_ms[name] = round((now - self._last) * 1000, 1)
        self._last = now

    @property
    def total_ms(self) -> float:
        """From the start to the last lap's end."""
        return round((self._last - self._started) * 1000, 1)
