"""The state of one VM's replication on this host, as ``state.json`` shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1
PRIMARY_PHASES = (
    "connecting",
    "copying",
    "resyncing",
    "replicating",
    "asking",
    "unprotected",
    "awaiting_guest",
    "stopped",
    "failed",
)
SECONDARY_PHASES = (
    "waiting",
    "receiving",
    "resyncing",
    "replicating",
    "peer_lost",
    "torn",
    "standby",
    "handed_over",
    "active",
    "stopped",
    "failed",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The record of one checkpoint. Page counts are of 4 KiB pages, times are milliseconds.

    ``phases_ms`` are the parts of this side's pause, ``pause_ms``. On the primary, ``commit_ms`` is how long it then took
    until the secondary had all of it, and ``apply_ms`` how long after that until the copy ran; the guest ran meanwhile.
    """

    epoch: int
    a_pages: int
    b_pages: int
    d_pages: int
    ahead_pages: int
    sent_pages: int
    bytes: int
    pause_ms: float
    phases_ms: dict[str, float]
    commit_ms: float
    apply_ms: float
    completed: str
    #: On the primary: why this checkpoint was made when it was.
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object for ``last``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums since the replicator started."""

    checkpoints: int = 0
    bytes: int = 0
    b_nonempty: int = 0

    def plus(self, record: Checkpoint) -> Totals:
        """Return the sums with one more checkpoint."""
        return Totals(
            self.checkpoints + 1, self.bytes + record.bytes, self.b_nonempty + (1 if record.b_pages else 0)
        )


@dataclass(frozen=True, slots=True)
class State:
    """Everything ``state.json`` says but the clocks."""

    vm: str
    role: str
    phase: str
    reason: str
    peer: str
    domid: int | None = None
    epoch: int = 0
    last: Checkpoint | None = None
    totals: Totals = field(default_factory=Totals)
    #: Figures of the last checkpoints; see monitor.recent.
    recent: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    channels: dict[str, Any] | None = None
    #: Counters of the guest's packets; see traffic.primary. None while nobody takes hold of them.
    packets: dict[str, int] | None = None
    #: How many connections a takeover found that are younger than the last checkpoint.
    followed: int = 0
    #: ``interval_ms`` until a checkpoint that nothing asks for, and a ``sentence`` why; see proxy.policy.
    interval: dict[str, Any] | None = None
    mode: str = "colo"
    #: Names the first copy that both sides' domains come from; empty before there is one.
    generation: str = ""
    #: The generation whose guest has ended: a copy of it is worth nothing any more.
    ended_generation: str = ""
    #: Why nobody takes over by itself; empty when somebody may.
    maintenance: str = ""
    #: On a primary with an arbiter: whether its secondary may have been given a right to the VM.
    shared: bool = False
    #: On a copy that took over: what an operator has decided against the arbiter, which has not heard of it.
    override: str = ""
    #: On a copy without a primary: whether that has said that its guest has ended; only an operator lets this one go on then.
    guest_ended: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the object without ``since``, ``updated``, ``updated_monotonic_s`` and ``boot_id``."""
        return {"format": FORMAT, **asdict(self)}


def kept_state(saved: dict[str, Any] | None) -> dict[str, Any]:
    """Return the fields of State that outlast a replicator, and a boot, whatever it comes to; ``saved`` is a state file's."""
    known = saved or {}
    return {
        "maintenance": str(known.get("maintenance", "")),
        # (one of a release without that field tells it by its phase)
        "shared": known.get("shared", known.get("phase") in ("replicating", "asking")) is True,
        "override": str(known.get("override", "")),
        "guest_ended": known.get("guest_ended") is True,
    }
