"""What waits, how long it may, and how much of it there may be. Times are seconds of the monotonic clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from dataclasses import dataclass

from colo_helper.proxy.packet import Packet
from colo_helper.proxy.verdicts import Cause, Checkpoint, DisagreementError, Limits

#: What Python takes for a held packet beside its frame, about, and the copy of its payload that is compared.
_HELD_BYTES = 600


@dataclass(slots=True, eq=False)
class Held:
    """A packet of the primary that waits. ``end``: it may go when both have said all up to that offset (TCP only)."""

    flow: Flow
    packet: Packet
    since_s: float
    end: int

    @property
    def size(self) -> int:
        """Return about how much memory it takes, in bytes."""
        return 2 * len(self.packet.frame) + _HELD_BYTES


class Waiting:
    """All that waits on one NIC: the primary's packets, and the flows on which the secondary is ahead."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: OrderedDict[Held, None] = OrderedDict()
        self._ahead: OrderedDict[Flow, float] = OrderedDict()
        #: What is held, and what only the secondary has said, in bytes of memory.
        self.bytes = 0

    @property
    def packets(self) -> int:
        """Return how many packets of the primary wait."""
        return len(self._held)

    @property
    def full(self) -> bool:
        """Return whether a limit is reached."""
        return self.bytes >= self._limits.bytes or len(self._held) >= self._limits.packets

    def hold(self, entry: Held) -> None:
        """Count a packet that waits from now on."""
        self._held[entry] = None
        self.bytes += entry.size

    def let_go(self, entry: Held) -> None:
        """Count it no longer."""
        del self._held[entry]
        self.bytes -= entry.size

    def ahead(self, flow: Flow, now_s: float) -> None:
        """The secondary is ahead on a flow, and something has just moved there."""
        self._ahead[flow] = now_s
        self._ahead.move_to_end(flow)

    def is_ahead(self, flow: Flow) -> bool:
        """Return whether the secondary is ahead there."""
        return flow in self._ahead

    def level(self, flow: Flow) -> None:
        """The secondary is not ahead there any more."""
        self._ahead.pop(flow, None)

    def deadline(self) -> float | None:
        """Return when something will have waited for too long, or None when nothing waits."""
        dues = []
        if self._held:
            dues.append(next(iter(self._held)).since_s + self._limits.secondary_s)
        if self._ahead:
            dues.append(next(iter(self._ahead.values())) + self._limits.primary_s)
        return min(dues, default=None)

    def overdue(self, now_s: float) -> Checkpoint | None:
        """Return the checkpoint that is needed because something has waited for too long."""
        if self._held:
            entry = next(iter(self._held))
            if now_s >= entry.since_s + self._limits.secondary_s:
                return Checkpoint(
                    Cause.SECONDARY_SILENT,
                    f"On {entry.flow.name} the secondary has not said within {self._limits.secondary_s * 1000:.0f} ms "
                    f"what the primary has: {entry.flow.missing(entry)}.",
                )
        if self._ahead:
            flow, since_s = next(iter(self._ahead.items()))
            if now_s >= since_s + self._limits.primary_s:
                return Checkpoint(
                    Cause.PRIMARY_SILENT,
                    f"On {flow.name} the primary has not said within {self._limits.primary_s * 1000:.0f} ms "
                    f"what the secondary has: {flow.surplus()}.",
                )
        return None

    def crowd(self) -> str:
        """Return what is held, for people."""
        return (
            f"{len(self._held)} packets wait and {self.bytes} bytes are held, "
            f"of {self._limits.packets} and {self._limits.bytes} that may be"
        )


class Flow(ABC):
    """One conversation of the guest: what waits in it, and by which rule it may go.

    What `primary` and `secondary` return may leave now, in this order. Both raise DisagreementError; from then on the flow
    is stuck: the primary's packets wait and the secondary's are dropped, until a checkpoint.
    """

    __slots__ = ("held", "name", "stuck", "waiting")

    def __init__(self, waiting: Waiting, name: str) -> None:
        self.waiting = waiting
        self.name = name
        self.held: deque[Held] = deque()
        self.stuck = False

    @abstractmethod
    def primary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Take a packet of the primary, which leaves now or is held."""

    @abstractmethod
    def secondary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Take a packet of the secondary, which never leaves."""

    @abstractmethod
    def forget(self) -> None:
        """Forget what the sides said differently: a checkpoint has made them equal."""

    @abstractmethod
    def missing(self, entry: Held) -> str:
        """Return, for people, what a held packet has that the secondary has not said."""

    @abstractmethod
    def surplus(self) -> str:
        """Return, for people, what the secondary has said and the primary has not."""

    def hold(self, packet: Packet, now_s: float, end: int = 0) -> None:
        """Let a packet wait behind the others of its flow."""
        entry = Held(self, packet, now_s, end)
        self.held.append(entry)
        self.waiting.hold(entry)

    def pop(self) -> Packet:
        """Let the packet go that has waited longest."""
        entry = self.held.popleft()
        self.waiting.let_go(entry)
        return entry.packet

    def stick(self, error: DisagreementError) -> DisagreementError:
        """Return the error, for the flow to raise; it is stuck now."""
        self.stuck = True
        return error

    def checkpointed(self) -> list[Packet]:
        """Return all held packets: they may leave, because a checkpoint has made the sides equal."""
        released = [self.pop() for _ in range(len(self.held))]
        self.stuck = False
        self.waiting.level(self)
        self.forget()
        return released
