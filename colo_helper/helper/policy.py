"""When a live copy stops going round: a pure decision on what the rounds so far have shown.

Xen's own helper stops after 5 rounds or below 50 dirty pages, whatever the link and the guest do. Here the guest is
stopped as soon as what is dirty can be sent within the downtime that the operator allows, and no later than when another
round would not make it less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from colo_helper.stream.libxc import PAGE_BYTES

#: How long the guest may stand still for the last round.
TARGET_DOWNTIME_MS = 300
#: The same for what is left of a checkpoint's pages when the rest was sent ahead.
TARGET_PAUSE_MS = 50
MAX_ROUNDS = 30
#: A round that leaves more than this part of what the one before left has gained nothing.
_GAIN = 0.9
#: Rounds in a row without gain before we give in.
_PATIENCE = 2
#: All that a live copy may send, in sizes of the guest.
_MAX_COPIES = 4


class Round(NamedTuple):
    """One finished round: pages sent, how long that took, and how many were dirty at its end."""

    pages: int
    seconds: float
    dirty_after: int


class Verdict(NamedTuple):
    """Whether the guest is stopped now, and one sentence why."""

    stop: bool
    sentence: str


def pages_per_second(rounds: Sequence[Round]) -> float:
    """Return how fast pages went in all rounds together; infinite when that took no measurable time."""
    seconds = sum(finished.seconds for finished in rounds)
    return sum(finished.pages for finished in rounds) / seconds if seconds > 0 else math.inf


def after_round(rounds: Sequence[Round], guest_pages: int, target_ms: float = TARGET_DOWNTIME_MS) -> Verdict:
    """Decide after a round whether the guest is stopped for the last one."""
    dirty = rounds[-1].dirty_after
    need_ms, what = _estimate(dirty, pages_per_second(rounds))
    if need_ms <= target_ms:
        return Verdict(True, f"{what}, no more than the {target_ms:g} ms allowed.")
    if len(rounds) >= MAX_ROUNDS:
        return Verdict(True, f"{what}, but {MAX_ROUNDS} rounds are enough.")
    if sum(finished.pages for finished in rounds) >= _MAX_COPIES * max(guest_pages, 1):
        return Verdict(True, f"{what}, but {_MAX_COPIES} times the guest's memory has been sent.")
    if len(rounds) > _PATIENCE and all(
        later.dirty_after > _GAIN * earlier.dirty_after
        for earlier, later in zip(rounds[-_PATIENCE - 1 :], rounds[-_PATIENCE:], strict=False)
    ):
        return Verdict(True, f"{what}, and the guest dirties them as fast as they go.")
    return Verdict(False, f"{what}; another round.")


def _estimate(dirty: int, rate: float) -> tuple[float, str]:
    """Return how long ``dirty`` pages take at so many a second, in ms, and the beginning of a sentence about it."""
    count = "1 dirty page takes" if dirty == 1 else f"{dirty} dirty pages take"
    if rate == math.inf:
        return 0.0, f"{count} no measurable time"
    if rate == 0:  # nothing has been sent, so nothing is known of the link
        return (math.inf if dirty else 0.0), f"{count} a time that is not known yet"
    need_ms = 1000 * dirty / rate
    return need_ms, f"{count} about {need_ms:.0f} ms at {rate * PAGE_BYTES / 1e6:.1f} MB/s"
