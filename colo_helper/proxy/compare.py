"""The comparator of one NIC: which of the primary's packets may leave, and when a checkpoint is needed.

The caller parses what both guests send and calls `primary` and `secondary` in the order of arrival, `expire` at `deadline`, and
`checkpointed` when a checkpoint has made the secondary a copy of the primary. It must have fed all that the primary sent before
it stood still, and must never feed what the secondary sent before. While `full`, it must not read on from the primary.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from colo_helper.proxy.datagrams import Datagrams, Neighbours, Uncomparable
from colo_helper.proxy.packet import Kind, Packet, flow_name
from colo_helper.proxy.spans import History
from colo_helper.proxy.tcp_streams import Connection
from colo_helper.proxy.verdicts import (
    NOTHING,
    Cause,
    Checkpoint,
    Counters,
    DisagreementError,
    Limits,
    Verdict,
)
from colo_helper.proxy.waiting import Flow, Waiting

#: So many of the connections that were idle longest are looked at for one that may be forgotten.
_CANDIDATES = 64


class Comparator:
    """Compares what two copies of a guest send on one NIC. Times are seconds of one monotonic clock."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.counters = Counters()
        self._waiting = Waiting(self.limits)
        self._history = History(self.limits.history_bytes)
        #: TCP, the least recently used first.
        self._connections: OrderedDict[bytes, Connection] = OrderedDict()
        #: Of other flows only those in which something waits.
        self._flows: dict[tuple[Kind, bytes], Datagrams | Uncomparable] = {}
        self._neighbours = Neighbours(self._waiting)
        self._crowded = False
        #: The checkpoint that is needed and has not been made.
        self.asked: Checkpoint | None = None

    @property
    def full(self) -> bool:
        """Return whether a limit is reached; a checkpoint has been asked for, and the secondary is not listened to."""
        return self._crowded or self._waiting.full

    @property
    def held_packets(self) -> int:
        """Return how many packets of the primary wait."""
        return self._waiting.packets

    @property
    def held_bytes(self) -> int:
        """Return about how much memory takes what waits."""
        return self._waiting.bytes

    @property
    def connections(self) -> int:
        """Return how many TCP connections are remembered."""
        return len(self._connections)

    @property
    def flows(self) -> int:
        """Return how many other flows are remembered: those in which something waits."""
        return len(self._flows)

    def primary(self, packet: Packet, now_s: float) -> Verdict:
        """Take a packet that the primary's guest sent."""
        self.counters.primary += 1
        flow = self._flow(packet)
        try:
            released = flow.primary(packet, now_s)
        except DisagreementError as error:
            return self._ask(Checkpoint(error.cause, error.sentence))
        return self._conclude(packet, flow, released)

    def secondary(self, packet: Packet, now_s: float) -> Verdict:
        """Take a packet that the secondary's guest sent. It never leaves."""
        self.counters.secondary += 1
        if self.full or packet.kind is Kind.FRAGMENT:
            return NOTHING
        flow = self._flow(packet)
        try:
            released = flow.secondary(packet, now_s)
        except DisagreementError as error:
            return self._ask(Checkpoint(error.cause, error.sentence))
        return self._conclude(packet, flow, released)

    def deadline(self) -> float | None:
        """Return when `expire` must be called, if nothing comes before; None when nothing waits, or a checkpoint is due."""
        return None if self.asked else self._waiting.deadline()

    def expire(self, now_s: float) -> Verdict:
        """Ask for a checkpoint if something has waited for too long."""
        overdue = None if self.asked else self._waiting.overdue(now_s)
        return self._ask(overdue) if overdue else NOTHING

    def checkpointed(self) -> Verdict:
        """Let all packets go: the secondary is a copy of the primary that sent them. Also when the protection ends."""
        released = self._neighbours.checkpointed()
        for flow in (*self._connections.values(), *self._flows.values()):
            released += flow.checkpointed()
        self._flows.clear()
        self._crowded = False
        self.asked = None
        self.counters.released += len(released)
        return Verdict(released, None)

    # ------------------------------------------------------------------------------------------------------ inside

    def _flow(self, packet: Packet) -> Flow:
        kind = packet.kind
        if kind is Kind.TCP:
            connection = self._connections.get(packet.flow)
            if connection is None:
                return self._new_connection(packet)
            self._connections.move_to_end(packet.flow)
            return connection
        if kind is Kind.NEIGHBOUR:
            return self._neighbours
        flow = self._flows.get((kind, packet.flow))
        if flow is None:
            of = Uncomparable if kind is Kind.FRAGMENT else Datagrams
            flow = self._flows[kind, packet.flow] = of(self._waiting, flow_name(packet))
        return flow

    def _new_connection(self, packet: Packet) -> Connection:
        if len(self._connections) >= self.limits.connections:
            oldest = islice(self._connections.items(), _CANDIDATES)
            idle = next((key for key, connection in oldest if connection.evictable), None)
            if idle is None:
                self._crowded = True
            else:
                del self._connections[idle]
        connection = Connection(self._waiting, self._history, flow_name(packet))
        self._connections[packet.flow] = connection
        return connection

    def _conclude(self, packet: Packet, flow: Flow, released: list[Packet]) -> Verdict:
        if isinstance(flow, Datagrams) and flow.idle:
            del self._flows[packet.kind, packet.flow]
        self.counters.released += len(released)
        if self.full:
            return self._ask(Checkpoint(Cause.MEMORY, self._crowd()), released)
        return Verdict(released, None) if released else NOTHING

    def _crowd(self) -> str:
        if self._crowded:
            return (
                f"{len(self._connections)} connections are remembered, of {self.limits.connections} that may be, "
                "and none of those idle longest may be forgotten before a checkpoint."
            )
        return f"{self._waiting.crowd()}."

    def _ask(self, checkpoint: Checkpoint, released: list[Packet] | None = None) -> Verdict:
        """Return the verdict that asks for a checkpoint, unless one has been asked for."""
        if self.asked:
            return Verdict(released or (), None)
        self.asked = checkpoint
        self.counters.checkpoints[checkpoint.cause] += 1
        return Verdict(released or (), checkpoint)
