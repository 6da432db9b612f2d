"""How long a guest may run without a checkpoint when none is needed.

The longer it runs, the more pages the next checkpoint has to copy, and the longer a client waits when the outputs do differ:
a checkpoint is made at once then, whatever the interval. So the interval is the longest after which a checkpoint still keeps
the operator's bound. A guest whose outputs always differ is checkpointed as often as Remus would do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

#: What a dirty page adds to a checkpoint, unless it was measured: 4 KiB on a link of 1 Gbit/s.
PAGE_MS = 4096 * 8 / 1e6


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured lately. A checkpoint without a page costs ``checkpoint_ms``, each page adds ``page_ms``."""

    dirty_pages_per_s: float
    divergences_per_s: float
    checkpoint_ms: float
    page_ms: float = PAGE_MS


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator allows: how long a differing output may wait, and the range of the interval."""

    latency_ms: float
    min_interval_ms: float
    max_interval_ms: float

    def __post_init__(self) -> None:
        if not 0 < self.min_interval_ms <= self.max_interval_ms:
            raise ValueError(
                f"Checkpoints cannot be between {self.min_interval_ms:g} and {self.max_interval_ms:g} ms apart."
            )


class Interval(NamedTuple):
    """When the next checkpoint is forced after the last one, and one sentence why."""

    interval_ms: float
    sentence: str


def next_interval(load: Load, bounds: Bounds) -> Interval:
    """Return the interval until the next forced checkpoint."""
    least, most = bounds.min_interval_ms, bounds.max_interval_ms
    if load.divergences_per_s * (least + load.checkpoint_ms) >= 1000:
        return Interval(
            least,
            f"Outputs differ {load.divergences_per_s:.1f} times a second, so comparing them brings nothing: "
            f"a checkpoint every {least:.0f} ms, as Remus would make it.",
        )
    spare_ms = bounds.latency_ms - load.checkpoint_ms
    if spare_ms <= 0:
        interval = min(most, max(least, load.checkpoint_ms))
        return Interval(
            interval,
            f"A checkpoint takes {load.checkpoint_ms:.0f} ms even without a dirty page, so the bound of "
            f"{bounds.latency_ms:.0f} ms cannot be kept; with one every {interval:.0f} ms the guest still runs.",
        )
    page_ms_per_s = load.dirty_pages_per_s * load.page_ms
    longest = most if page_ms_per_s * most <= spare_ms * 1000 else spare_ms * 1000 / page_ms_per_s
    if longest < least:
        return Interval(
            least,
            f"{load.dirty_pages_per_s:.0f} pages are written a second: the bound of {bounds.latency_ms:.0f} ms would need a "
            f"checkpoint every {longest:.0f} ms, and the least allowed is {least:.0f} ms.",
        )
    if longest == most:
        return Interval(
            most,
            f"Few pages are written: a checkpoint after {most:.0f} ms, the longest allowed, still keeps the bound of "
            f"{bounds.latency_ms:.0f} ms.",
        )
    return Interval(
        longest,
        f"{load.dirty_pages_per_s:.0f} pages are written a second: after {longest:.0f} ms a checkpoint takes "
        f"{bounds.latency_ms:.0f} ms, which is the bound.",
    )
