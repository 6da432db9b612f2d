"""Figures of the last checkpoints, for people and for benchmarks: what is usual, and what the worst was."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from colo_helper.monitor.state import Checkpoint
from colo_helper.quantiles import nearest_rank

#: How many checkpoints the figures are of.
WINDOW = 256


class Recent:
    """The last WINDOW checkpoints of a session."""

    def __init__(self) -> None:
        self._records: deque[Checkpoint] = deque(maxlen=WINDOW)

    def add(self, record: Checkpoint) -> None:
        """Take one more."""
        self._records.append(record)

    def figures(self) -> dict[str, Any]:
        """Return ``checkpoints`` (how many these are of), the pause, and medians: its parts, what follows it, bytes sent."""
        records = self._records
        pauses = sorted(record.pause_ms for record in records)
        return {
            "checkpoints": len(records),
            "pause_ms": {
                "p50": nearest_rank(pauses, 0.5),
                "p99": nearest_rank(pauses, 0.99),
                "max": pauses[-1],
            },
            "phases_ms": {
                name: _median(record.phases_ms.get(name, 0.0) for record in records)
                for name in records[-1].phases_ms
            },
            "commit_ms": _median(record.commit_ms for record in records),
            "apply_ms": _median(record.apply_ms for record in records),
            "bytes": _median(record.bytes for record in records),
        }


def _median(samples: Iterable[float]) -> float:
    return nearest_rank(sorted(samples), 0.5)
