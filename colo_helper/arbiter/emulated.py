"""An arbiter in memory, with a clock and faults of one's own: for tests and fault campaigns."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from colo_helper.arbiter.interface import ArbiterError, RefusedError
from colo_helper.arbiter.record import PROTECTED, Lease, Record, Seen


@dataclass
class _Kept:
    seen: Seen = field(default_factory=Seen)
    until_s: float = 0.0
    lease_s: int = 0


class EmulatedStore:
    """What is kept; asked through an EmulatedArbiter of each host. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._kept: dict[str, _Kept] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def read(self, vm: str) -> Seen:
        """See Arbiter."""
        with self._lock:
            return self._look(vm).seen

    def change(self, seen: Seen, record: Record, lease_s: int) -> Seen:
        """See Arbiter."""
        with self._lock:
            kept = self._look(record.vm)
            if kept.seen != seen:
                raise RefusedError(kept.seen)
            lease = (
                Lease(record.owner, record.epoch, next(self._numbers)) if record.mode == PROTECTED else None
            )
            kept.seen = Seen(record, next(self._numbers), lease)
            kept.lease_s, kept.until_s = lease_s, self.clock() + lease_s
            return kept.seen

    def renew(self, lease: Lease) -> bool:
        """See Arbiter."""
        with self._lock:
            for vm, kept in self._kept.items():
                if self._look(vm).seen.lease == lease:
                    kept.until_s = self.clock() + kept.lease_s
                    return True
            return False

    def forget(self) -> None:
        """Lose everything, as an etcd whose disk was replaced."""
        with self._lock:
            self._kept.clear()

    def _look(self, vm: str) -> _Kept:
        kept = self._kept.setdefault(vm, _Kept())
        if kept.seen.lease and self.clock() >= kept.until_s:
            kept.seen = Seen(kept.seen.record, kept.seen.version)
        return kept


class EmulatedArbiter:
    """One host's way to the store, which may be cut. See Arbiter."""

    def __init__(self, store: EmulatedStore) -> None:
        self._store = store
        self.clock = store.clock
        self.cut = False
        #: The next change is carried out, but nobody hears so.
        self.lose_answer = False

    def read(self, vm: str) -> Seen:
        """See Arbiter."""
        return self._reached().read(vm)

    def change(self, seen: Seen, record: Record, lease_s: int) -> Seen:
        """See Arbiter."""
        found = self._reached().change(seen, record, lease_s)
        if self.lose_answer:
            self.lose_answer = False
            raise ArbiterError("The arbiter's answer was lost.")
        return found

    def renew(self, lease: Lease) -> bool:
        """See Arbiter."""
        return self._reached().renew(lease)

    def _reached(self) -> EmulatedStore:
        if self.cut:
            raise ArbiterError("The arbiter does not answer: cut.")
        return self._store
