"""What has been run, one JSON object a line: a campaign that was killed goes on with what is not in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos.ground import Outcome, outcome_from


class JournalError(Exception):
    """The journal is of another campaign; the text says which."""


class Journal:
    """Appends outcomes; each is one write, and on the disk every ``_SYNC`` outcomes and at the end.

    The first line says what campaign it is of (``about``).
    """

    _SYNC = 100

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.done = {outcome.number for outcome in read(path, about)} if path.exists() else set()
        _end_torn_line(path)
        fresh = not path.exists() or path.stat().st_size == 0
        self._file = path.open("ab", buffering=0)
        self._unsynced = 0
        if fresh:
            self._file.write(json.dumps(about).encode() + b"\n")

    def add(self, outcome: Outcome) -> None:
        """Write down one outcome; raises OSError."""
        self._file.write(json.dumps(outcome.to_json()).encode() + b"\n")
        self.done.add(outcome.number)
        self._unsynced += 1
        if self._unsynced >= self._SYNC:
            self._sync()

    def close(self) -> None:
        """Have it all on the disk."""
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0


def read(path: Path, about: dict[str, Any] | None = None) -> Iterator[Outcome]:
    """Return the outcomes of a journal, without a last line that was not written to its end.

    Raises OSError, and JournalError when it is not ``about`` that.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    if not lines:
        return
    found = json.loads(lines[0])
    if about is not None and found != about:
        raise JournalError(f"{path} is of the campaign {found}, not of {about}: name another file.")
    for line in lines[1:]:
        yield outcome_from(json.loads(line))


def _end_torn_line(path: Path) -> None:
    """Take away what a killed campaign had begun to write."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
