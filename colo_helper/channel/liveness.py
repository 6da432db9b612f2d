"""Whether the peer lives: pure bookkeeping of who was heard when, and of how long an answer takes.

All times are seconds of this host's monotonic clock; the peer's clock is never compared with ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, unique

from colo_helper.quantiles import nearest_rank

#: How many round trips the figures are of.
WINDOW = 256
#: RFC 3550, 6.4.1: the jitter follows each difference by one sixteenth.
_JITTER_GAIN = 1 / 16


@unique
class Life(Enum):
    """What the silence of the paths means."""

    ALIVE = "every path was heard"
    SUSPECTED = "some path is silent"
    DEAD = "every path is silent"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``silent`` names the paths that missed all their beats; ``silence_s`` is how long nothing came on any path."""

    life: Life
    silent: tuple[str, ...]
    silence_s: float
    sentence: str


class Liveness:
    """Of one peer over several paths. A path is silent when it missed ``misses`` beats of ``interval_s`` each."""

    def __init__(self, paths: Iterable[str], interval_s: float, misses: int, now_s: float) -> None:
        self.interval_s = interval_s
        self.misses = misses
        self._heard = dict.fromkeys(paths, now_s)
        self._looked_s = now_s

    @property
    def limit_s(self) -> float:
        """How long a path may be silent."""
        return self.interval_s * self.misses

    def heard(self, path: str, now_s: float) -> None:
        """Something came in on a path."""
        self._heard[path] = max(self._heard[path], now_s)

    def look(self, now_s: float) -> Verdict:
        """Judge; to be called at least once in every ``interval_s``.

        Whoever looks much later was stopped itself (a frozen host, a debugger), and what the peer sent meanwhile was not
        read yet. That time is not held against the peer.
        """
        late_s = now_s - self._looked_s - self.interval_s
        self._looked_s = now_s
        if late_s > self.interval_s:
            for path in self._heard:
                self._heard[path] = min(now_s, self._heard[path] + late_s)
        silent = tuple(path for path, heard_s in self._heard.items() if now_s - heard_s > self.limit_s)
        silence_s = now_s - max(self._heard.values())
        if len(silent) == len(self._heard):
            sentence = f"The peer has been silent on every path for {silence_s:.1f} s ({self.misses} beats)."
            return Verdict(Life.DEAD, silent, silence_s, sentence)
        if silent:
            sentence = f"The peer is silent on {' and '.join(silent)} and alive on the other paths."
            return Verdict(Life.SUSPECTED, silent, silence_s, sentence)
        return Verdict(Life.ALIVE, (), silence_s, "The peer is heard on every path.")


class RoundTrips:
    """The last WINDOW round trips to the peer; times in milliseconds."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._jitter_ms = 0.0

    def add(self, milliseconds: float) -> None:
        """Take one round trip."""
        if self._samples:
            self._jitter_ms += (abs(milliseconds - self._samples[-1]) - self._jitter_ms) * _JITTER_GAIN
        self._samples.append(milliseconds)

    def figures(self) -> dict[str, float]:
        """Return ``p50_ms``, ``p99_ms``, ``last_ms`` and ``jitter_ms`` (RFC 3550); empty before the first round trip."""
        if not self._samples:
            return {}
        ordered = sorted(self._samples)
        return {
            "p50_ms": round(nearest_rank(ordered, 0.5), 3),
            "p99_ms": round(nearest_rank(ordered, 0.99), 3),
            "last_ms": round(self._samples[-1], 3),
            "jitter_ms": round(self._jitter_ms, 3),
        }
