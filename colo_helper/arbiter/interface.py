"""What an arbiter can do. "No" and "cannot tell" are two different answers."""

from __future__ import annotations

from typing import Protocol

from colo_helper.arbiter.record import Lease, Record, Seen


class ArbiterError(Exception):
    """The arbiter cannot be asked, or what it keeps cannot be read: nobody can tell who may run. The text says why."""


class RefusedError(Exception):
    """Somebody else has changed the record, or holds the lease: the answer is no, and ``seen`` is what there is now."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(f"The arbiter says no: {seen.record}, {seen.lease}")
        self.seen = seen


class Arbiter(Protocol):
    """The few verbs. Each raises ArbiterError when nobody can tell whether it was done."""

    def read(self, vm: str) -> Seen:
        """Look."""

    def change(self, seen: Seen, record: Record, lease_s: int) -> Seen:
        """Put ``record`` in the place of what was ``seen``, and its owner's lease with it.

        Raises RefusedError when the record is another one by now, or when somebody else holds a lease.
        """

    def renew(self, lease: Lease) -> bool:
        """Let a lease last for its whole time again; False when it has ended."""
