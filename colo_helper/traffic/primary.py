"""What becomes of the primary's packets: they leave when the secondary has said the same, or after a checkpoint.

A checkpoint cuts the guest's output in two. What it sent before it stood still leaves when the secondary has all of the
checkpoint. What it sends after is compared with what the secondary sends from the new state on, and waits until then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from colo_helper.proxy.capture import Capture, Mark, Whose
from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.verdicts import Cause, Checkpoint, Limits, Verdict
from colo_helper.traffic.framing import RawFrame
from colo_helper.traffic.interface import Outputs
from colo_helper.traffic.rewriting import Rewriting

#: What is kept of the secondary's packets while the word that it has the checkpoint is on its way; the rest is dropped.
_EARLY_FRAMES = 1024


@dataclass
class PrimaryRouter:
    """See Router. ``open`` until the first ``cut``: then what the guest sends leaves at once, and nothing goes to the peer.

    ``comparing`` False: the secondary is not asked, and all that the guest sends waits for the next checkpoint.
    ``moved``: some connections were taken over from another primary, so what the network sends comes to the guest by us.
    Clients see the numbers that they know, everybody else sees the guest's: the secondary is a copy of that.
    """

    nics: int
    out: Outputs
    comparing: bool = True
    limits: Limits = field(default_factory=Limits)
    moved: Rewriting | None = None
    clock: Callable[[], float] = time.monotonic
    open: bool = True
    epoch: int = -1
    #: A cut was made, and the secondary does not run from it yet.
    pending: bool = False
    asked: Checkpoint | None = None
    #: Where all that is compared is noted down, while somebody wants it.
    capture: Capture | None = None
    _standing: bool = False
    #: The device model is asked for something, and must not wait for us to read.
    _obeying: bool = False
    _dead: bool = False
    #: Without comparing: what waits for the next checkpoint.
    _held: list[tuple[int, RawFrame]] = field(default_factory=list)
    _held_bytes: int = 0
    #: Sent after a cut, before the secondary had the checkpoint.
    _later: list[tuple[int, RawFrame]] = field(default_factory=list)
    _later_bytes: int = 0
    _early: list[tuple[int, RawFrame]] = field(default_factory=list)
    #: Where the guest gets the network's packets by us: what came while it was being stopped.
    _arrived: list[tuple[int, RawFrame]] = field(default_factory=list)
    _comparators: list[Comparator] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._comparators = [Comparator(self.limits) for _ in range(self.nics)]

    # ------------------------------------------------------------------------------------------------ packets

    def from_guest(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """See Router."""
        if self._dead:
            return
        if self.open:
            self._leave(nic, frames)
        else:
            self._note(Whose.PRIMARY, nic, frames, now_s)
            self._take(nic, frames, now_s)

    def _take(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        if self.pending:
            self._later += ((nic, frame) for frame in frames)
            self._later_bytes += sum(len(frame.data) for frame in frames)
        elif not self.comparing:
            self._hold(nic, frames)
        else:
            for frame in frames:
                self._conclude(nic, self._comparators[nic].primary(frame.packet(), now_s))

    def from_network(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """See Router."""
        if self.moved is not None and self._standing:
            self._arrived += ((nic, frame) for frame in frames[: _EARLY_FRAMES - len(self._arrived)])
            return
        if self.moved is not None:
            frames = self.moved.to_guest(nic, [frame.packet() for frame in frames], now_s)
            self.out.to_guest(nic, frames)
        if not self.open and self.comparing:
            self._note(Whose.NETWORK, nic, frames, now_s)
            self.out.to_peer(self.epoch, nic, frames)

    def from_peer(self, epoch: int, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """See Router. What the secondary sent before the last checkpoint was applied is void."""
        if self.open or epoch != self.epoch or nic >= self.nics:
            return
        self._note(Whose.SECONDARY, nic, frames, now_s)
        if self.pending:
            self._early += ((nic, frame) for frame in frames[: _EARLY_FRAMES - len(self._early)])
        else:
            self._hear(nic, frames, now_s)

    def _hear(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        for frame in frames:
            self._conclude(nic, self._comparators[nic].secondary(frame.packet(), now_s))

    def expire(self, now_s: float) -> float | None:
        """See Router."""
        due = [] if self.moved is None else [self.moved.expire(now_s)]
        if not (self.open or self.pending or self.asked):
            for nic, comparator in enumerate(self._comparators):
                self._conclude(nic, comparator.expire(now_s))
            due += [at for comparator in self._comparators if (at := comparator.deadline()) is not None]
        return min(due, default=None)

    @property
    def crowded(self) -> bool:
        """See Router. Never while the guest is being stopped, or its device model is asked for something."""
        if self.open or self._standing or self._obeying:
            return False
        most = self.limits.bytes
        return max(self._later_bytes, self._held_bytes) > most or any(one.full for one in self._comparators)

    # -------------------------------------------------------------------------------------------- checkpoints

    def must_obey(self) -> None:
        """The device model is about to be asked for something; the guest is not held back until it has been stopped."""
        self._obeying = True

    def halting(self) -> None:
        """The guest is about to be stopped for a checkpoint."""
        self._standing = True

    def cut(self, epoch: int) -> None:
        """The guest stands still, and all that it has sent was taken: what comes from now on is of ``epoch``."""
        self.open, self.pending, self.epoch = False, True, epoch
        self._early.clear()
        if self.capture is not None:
            self.capture.reached(Mark.CUT, epoch, self.clock())

    def resumed(self) -> None:
        """The guest runs on, and may be held back again; it gets what came meanwhile."""
        self._standing = self._obeying = False
        arrived, self._arrived = self._arrived, []
        for nic, frame in arrived:
            self.from_network(nic, [frame], self.clock())

    def received(self) -> bool:
        """The secondary has the checkpoint: what was sent before the cut leaves. Tells whether there was anything."""
        self.asked = None
        return self._release_old() > 0

    def both_run(self) -> None:
        """The secondary runs from the checkpoint on: comparing begins anew, and with it the secondary's time to answer."""
        self.pending = False
        later, self._later, self._later_bytes = self._later, [], 0
        early, self._early = self._early, []
        now_s = self.clock()
        if self.capture is not None:
            self.capture.reached(Mark.RUN, self.epoch, now_s)
        for nic, frame in later:
            self._take(nic, [frame], now_s)
        for nic, frame in early:
            self._hear(nic, [frame], now_s)

    def release_all(self) -> None:
        """There is no secondary any more: everything leaves at once, from now on as well."""
        self._release_old()
        for nic, frame in self._later:
            self._leave(nic, [frame])
        self._later, self._later_bytes = [], 0
        self._early.clear()
        self.open, self.pending, self.asked = True, False, None
        self.resumed()

    def discard_all(self) -> None:
        """The secondary may be the VM: what waits has never been said, and nothing more is."""
        self._dead = True
        self._comparators = [Comparator(self.limits) for _ in range(self.nics)]
        for waiting in (self._held, self._later, self._early):
            waiting.clear()
        self._held_bytes = self._later_bytes = 0

    # ------------------------------------------------------------------------------------------------ figures

    def counters(self) -> dict[str, int]:
        """Return what was counted: packets of both sides, those that left, those that wait, checkpoints by their cause."""
        found = {
            "primary": sum(one.counters.primary for one in self._comparators),
            "secondary": sum(one.counters.secondary for one in self._comparators),
            "released": sum(one.counters.released for one in self._comparators),
            "waiting": sum(one.held_packets for one in self._comparators)
            + len(self._held)
            + len(self._later),
            "connections": sum(one.connections for one in self._comparators),
            "moved": self.moved.connections if self.moved is not None else 0,
        }
        for cause in Cause:
            asked = sum(one.counters.checkpoints[cause] for one in self._comparators)
            found[f"asked_{cause.name.lower()}"] = asked
        return found

    def _note(self, whose: Whose, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        if self.capture is not None:
            for data, vnet_bytes in frames:
                self.capture.sent(whose, nic, data[vnet_bytes:], now_s)

    def _hold(self, nic: int, frames: Sequence[RawFrame]) -> None:
        self._held += ((nic, frame) for frame in frames)
        self._held_bytes += sum(len(frame.data) for frame in frames)
        if self._held_bytes > self.limits.bytes and not self.asked:
            self.asked = Checkpoint(Cause.MEMORY, f"{self._held_bytes} bytes wait for a checkpoint.")
            self.out.need_checkpoint(self.asked)

    def _release_old(self) -> int:
        """Let go what was sent before the last cut; returns how many packets."""
        verdicts = [comparator.checkpointed() for comparator in self._comparators]
        for nic, verdict in enumerate(verdicts):
            self._release(nic, verdict)
        held, self._held, self._held_bytes = self._held, [], 0
        for nic, frame in held:
            self._leave(nic, [frame])
        return len(held) + sum(len(verdict.release) for verdict in verdicts)

    def _conclude(self, nic: int, verdict: Verdict) -> None:
        self._release(nic, verdict)
        if verdict.checkpoint and not self.asked:
            self.asked = verdict.checkpoint
            self.out.need_checkpoint(verdict.checkpoint)

    def _release(self, nic: int, verdict: Verdict) -> None:
        if verdict.release:
            self._leave(nic, [RawFrame(packet.frame, packet.ethernet) for packet in verdict.release])

    def _leave(self, nic: int, frames: Sequence[RawFrame]) -> None:
        if self.moved is not None:
            frames = self.moved.from_guest(nic, [frame.packet() for frame in frames], self.clock())
        self.out.to_network(nic, frames)
