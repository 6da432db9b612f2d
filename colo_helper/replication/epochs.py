"""What all parents of save helpers have in common: the helper's log, and the record of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from colo_helper.helper.messages import Level
from colo_helper.monitor.monitor import Monitor, now_utc
from colo_helper.monitor.state import Checkpoint
from colo_helper.replication.guest import Guest
from colo_helper.replication.stopwatch import Stopwatch

#: The figures of a checkpoint: dirty on the primary, on the secondary, on either; sent before the pause, and in it.
COUNTS = ("a_pages", "b_pages", "d_pages", "ahead_pages", "sent_pages")


class HelperParent:
    """The base of those who serve a helper; see helper.callout.Callbacks. It serves what each of them needs by itself.

    Warnings of the helper become events, and ``complaint`` is its last error, which is why a helper fails.
    """

    monitor: Monitor
    complaint = ""

    def log(self, level: int, errnoval: int | None, context: str, text: str) -> None:  # noqa: ARG002
        """Take a line of the helper's log."""
        if level >= Level.ERROR:
            self.complaint = text
        elif level >= Level.WARN:
            self.monitor.event("helper", text)

    def progress(self, context: str, what: str, done: int, total: int) -> None:
        """How far the helper is: nothing that everybody needs."""

    def restore_results(self, store_gfn: int, console_gfn: int) -> None:
        """The rings of a copy that was made before are where they were."""

    def suspend(self) -> int:
        """See Callbacks."""
        raise self._unasked("suspend")

    def postcopy(self) -> int:
        """See Callbacks."""
        raise self._unasked("postcopy")

    def checkpoint(self) -> int:
        """See Callbacks."""
        raise self._unasked("checkpoint")

    def wait_checkpoint(self) -> int:
        """See Callbacks."""
        raise self._unasked("wait_checkpoint")

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:  # noqa: ARG002
        """See Callbacks."""
        raise self._unasked("switch_qemu_logdirty")

    def static_data_done(self, missing: int) -> int:  # noqa: ARG002
        """See Callbacks."""
        raise self._unasked("static_data_done")

    def _unasked(self, what: str) -> AssertionError:
        return AssertionError(f"{type(self).__name__} serves a helper that has no reason to call {what}")


class SavingParent(HelperParent):
    """The base of those who serve a saving helper: it logs what ``guest`` writes, and that needs the device model."""

    guest: Guest

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:
        """Let the device model log what it writes, or stop that."""
        assert domid == self.guest.domain.domid
        self.guest.devices.log_dirty(enable)
        return 0


def checkpoint_record(
    epoch: int,
    counts: Mapping[str, int],
    sent_bytes: int,
    watch: Stopwatch,
    commit_ms: float = 0.0,
    apply_ms: float = 0.0,
    why: str = "",
) -> Checkpoint:
    """Return the record of a checkpoint that is complete now; ``counts`` has COUNTS."""
    return Checkpoint(
        epoch=epoch,
        **{name: counts[name] for name in COUNTS},
        bytes=sent_bytes,
        pause_ms=watch.total_ms,
        phases_ms=watch.laps_ms,
        commit_ms=commit_ms,
        apply_ms=apply_ms,
        why=why,
        completed=now_utc(),
    )
