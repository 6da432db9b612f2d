"""What the parents of both sides' helpers have in common: the helper's log, and the record of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from colo_helper.helper.messages import Level
from colo_helper.monitor.monitor import Monitor, now_utc
from colo_helper.monitor.state import Checkpoint
from colo_helper.replication.stopwatch import Stopwatch

#: The figures of a checkpoint: dirty on the primary, on the secondary, on either; sent.
COUNTS = ("a_pages", "b_pages", "d_pages", "sent_pages")


class HelperLog:
    """Takes a helper's log: warnings become events, and ``complaint`` is the last error, which is why a helper fails."""

    monitor: Monitor
    complaint = ""

    def log(self, level: int, errnoval: int | None, context: str, text: str) -> None:  # noqa: ARG002
        """Take a line of the helper's log; see helper.callout.Callbacks."""
        if level >= Level.ERROR:
            self.complaint = text
        elif level >= Level.WARN:
            self.monitor.event("helper", text)


def checkpoint_record(epoch: int, counts: Mapping[str, int], sent_bytes: int, watch: Stopwatch) -> Checkpoint:
    """Return the record of a checkpoint that is complete now; ``counts`` has COUNTS."""
    return Checkpoint(
        epoch=epoch,
        **{name: counts[name] for name in COUNTS},
        bytes=sent_bytes,
        pause_ms=watch.total_ms,
        phases_ms=watch.laps_ms,
        completed=now_utc(),
    )
