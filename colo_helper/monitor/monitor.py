"""Keeps ``state.json`` and ``events.jsonl`` of one VM, and tells systemd."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from colo_helper.monitor.files import append_line, write_file, write_json
from colo_helper.monitor.recent import Recent
from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.state import Checkpoint, State

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def now_utc() -> str:
    """Return the time for people, such as ``2026-01-01T00:00:00.000Z``; nothing is ever decided by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def boot_id() -> str:
    """Return the identity of this host's boot; domain numbers and monotonic clocks mean nothing across it."""
    return BOOT_ID.read_text().strip()


def _says_who(before: State, after: State) -> bool:
    return after.role != before.role or after.phase in ("active", "standby", "handed_over")


class Monitor:
    """The state, kept in memory and written on every change. May be read by other threads at any time.

    What cannot be written, because the disk is full, is said in the journal, and written later (see ``catch_up``). Who has the
    VM, which a change of the role and some phases say, raises OSError when it cannot be written and this state ``decides``:
    then the file tells the next replicator so, and nobody else does.
    """

    def __init__(self, directory: Path, state: State, notifier: Notifier, *, decides: bool = True) -> None:
        self._decides = decides
        #: Whether an earlier replicator's state is still to be taken up: nothing of this one's has taken its place yet.
        self.takes_up = False
        #: Whether the state is newer than its file.
        self._unwritten = False
        self._directory = directory
        self._notifier = notifier
        self._lock = threading.Lock()
        self._state = state
        self._since = now_utc()
        self._boot_id = boot_id()
        self._recent = Recent()

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    def snapshot(self) -> dict[str, Any]:
        """Return what ``state.json`` holds, with fresh clocks."""
        return {
            **self._state.to_json(),
            "since": self._since,
            "updated": now_utc(),
            "updated_monotonic_s": round(time.monotonic(), 3),
            "boot_id": self._boot_id,
        }

    def enter(self, phase: str, reason: str, **changes: Any) -> None:  # noqa: ANN401  (fields of State)
        """Enter a phase for a reason (one sentence): state file, event and systemd's status line.

        Raises OSError, see Monitor; then it is not entered.
        """
        with self._lock:
            before, since = self._state, self._since
            if phase != before.phase:
                self._since = now_utc()
            self._state = replace(before, phase=phase, reason=reason, **{"progress": None, **changes})
            try:
                self._write_state(must=self._decides and _says_who(before, self._state))
            except OSError:
                self._state, self._since, self._unwritten = before, since, True
                raise
            self.takes_up = False
        self.event(phase, reason)
        self._notifier.status(f"{phase}: {reason}")

    def restore(self, **known: Any) -> None:  # noqa: ANN401  (fields of State)
        """Take over what an earlier run knew; the next change writes it down."""
        with self._lock:
            self._state = replace(self._state, **known)

    def note(self, **known: Any) -> None:  # noqa: ANN401  (fields of State)
        """Write down what is known from now on, in the same phase; when that fails (OSError) it is not known."""
        with self._lock:
            before, since = self._state, self._since
            self._state = replace(before, **known)
            if self._state.phase != before.phase:
                self._since = now_utc()
            try:
                write_json(self._directory / "state.json", self.snapshot())
            except OSError:
                self._state, self._since = before, since
                raise

    def progress(self, step: str, moved_bytes: int, elapsed_s: float, **more: float | None) -> None:
        """Say how far a long step is."""
        with self._lock:
            progress = {"step": step, "bytes": moved_bytes, "elapsed_s": round(elapsed_s, 1), **more}
            self._state = replace(self._state, progress=progress)
            self._write_state()

    def checkpoint(
        self,
        record: Checkpoint,
        channels: dict[str, Any],
        packets: dict[str, int] | None = None,
        interval: dict[str, Any] | None = None,
    ) -> None:
        """Record a completed checkpoint, how the channels are (channel.session.Session.figures), the packets, and the pace."""
        with self._lock:
            totals = self._state.totals.plus(record)
            self._recent.add(record)
            self._state = replace(
                self._state,
                epoch=record.epoch,
                last=record,
                totals=totals,
                recent=self._recent.figures(),
                channels=channels,
                packets=packets,
                interval=interval,
            )
            self._write_state()

    def verification(self, result: dict[str, Any]) -> None:
        """Write ``verify.json``."""
        self._write("verify.json", {"format": 1, **result, "completed": now_utc()})

    def keep(self, name: str, write: Callable[[BinaryIO], object]) -> Path:
        """Have a file written beside the state that only root may read; returns its path. Raises OSError."""
        path = self._directory / name
        write_file(path, write)
        return path

    def event(self, event: str, sentence: str, **fields: Any) -> None:  # noqa: ANN401  (any JSON value)
        """Append to ``events.jsonl`` and to the journal (stderr)."""
        state = self._state
        line = {"time": now_utc(), "event": event, "sentence": sentence, "epoch": state.epoch, **fields}
        self.catch_up()
        try:
            append_line(self._directory / "events.jsonl", line)
        except OSError as error:
            self._say(f"an event was not kept: {error}")
        self._say(f"{event}: {sentence}")

    def catch_up(self) -> None:
        """Write the state if that was not possible before: at every event, and at the end."""
        with self._lock:
            if self._unwritten:
                self._write_state()

    def _write_state(self, *, must: bool = False) -> None:
        """Within the lock. Raises OSError when what ``must`` be written is not."""
        self._unwritten = not self._write("state.json", self.snapshot(), must=must)

    def _write(self, name: str, value: dict[str, Any], *, must: bool = False) -> bool:
        """Tell whether it could be written."""
        try:
            write_json(self._directory / name, value)
        except OSError as error:
            if must:
                raise
            self._say(f"{name} was not written: {error}")
            return False
        return True

    def _say(self, sentence: str) -> None:
        sys.stderr.write(f"{self._state.vm} {sentence}\n")
        sys.stderr.flush()
