"""Flows without a stream: each packet is compared with the other side's in the same place."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NoReturn

from colo_helper.proxy.packet import Kind, Packet
from colo_helper.proxy.verdicts import SHOWN_BYTES, Cause, DisagreementError, differing
from colo_helper.proxy.waiting import Flow, Held, Waiting

#: What Python takes for a flow and a packet of the secondary in it beside the bytes, about.
_SAID_BYTES = 1000


def message(packet: Packet) -> bytes:
    """Return what the receiver of a packet gets to see: without what belongs to the way, and without checksums.

    Type and code of ICMP, addresses and ports are the flow's name.
    """
    if packet.kind is Kind.ICMP:
        return packet.frame[packet.transport + 4 : packet.end]
    return packet.frame[packet.payload : packet.end]


class Datagrams(Flow):
    """UDP, ICMP, other IP and other frames of one flow: equal packets in equal order."""

    __slots__ = ("_said",)

    def __init__(self, waiting: Waiting, name: str) -> None:
        super().__init__(waiting, name)
        self._said: deque[bytes] = deque()

    @property
    def idle(self) -> bool:
        """Return whether nothing waits here, so that the flow can be forgotten."""
        return not self.held and not self._said

    def primary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Let a packet go that the secondary has sent already."""
        if self.stuck or not self._said:
            self.hold(packet, now_s)
            return []
        theirs = self._said.popleft()
        self.waiting.bytes -= len(theirs) + _SAID_BYTES
        ours = message(packet)
        if ours != theirs:
            self.hold(packet, now_s)
            self._differ(ours, theirs)
        self._look(now_s)
        return [packet]

    def secondary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Let the oldest packet go, if this is the same."""
        if self.stuck:
            return []
        theirs = message(packet)
        if not self.held:
            self._said.append(theirs)
            self.waiting.bytes += len(theirs) + _SAID_BYTES
            if len(self._said) == 1:
                self.waiting.ahead(self, now_s)
            return []
        ours = message(self.held[0].packet)
        if ours != theirs:
            self._differ(ours, theirs)
        return [self.pop()]

    def _differ(self, ours: bytes, theirs: bytes) -> NoReturn:
        raise self.stick(DisagreementError(Cause.DIVERGENCE, differing(self.name, 0, ours, theirs)))

    def _look(self, now_s: float) -> None:
        if self._said:
            self.waiting.ahead(self, now_s)
        else:
            self.waiting.level(self)

    def missing(self, entry: Held) -> str:
        """Return the beginning of the packet."""
        return f"a packet that begins with {message(entry.packet)[:SHOWN_BYTES].hex() or 'nothing'}"

    def surplus(self) -> str:
        """Return the beginning of the secondary's packet."""
        return f"a packet that begins with {self._said[0][:SHOWN_BYTES].hex() or 'nothing'}"

    def forget(self) -> None:
        """Forget the secondary's packets."""
        self.waiting.bytes -= sum(map(len, self._said)) + _SAID_BYTES * len(self._said)
        self._said.clear()


class Uncomparable(Flow):
    """What is never compared: each of the primary's packets waits for a checkpoint; the secondary's mean nothing."""

    __slots__ = ()

    def primary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Hold it and ask for a checkpoint."""
        self.hold(packet, now_s)
        sentence = f"The primary sent {self.name}, which cannot be compared."
        raise self.stick(DisagreementError(Cause.UNCOMPARABLE, sentence))

    def secondary(self, packet: Packet, now_s: float) -> list[Packet]:  # noqa: ARG002 - see Flow
        """Drop it."""
        return []

    def missing(self, entry: Held) -> str:  # noqa: ARG002 - see Flow
        """Return what it is."""
        return "what is never compared"

    def surplus(self) -> str:
        """Return that there is nothing."""
        return "nothing"

    def forget(self) -> None:
        """There is nothing to forget."""


class Neighbours(Flow):
    """ARP, ND, IGMP and MLD: what the guest is and belongs to, said whenever a timer or a question asks for it.

    They are not compared one by one. What a packet says about its sender (`Packet.flow`) must have been said by the secondary
    too, once, or by the primary before the last checkpoint. So an address that only the primary has taken is not announced.
    """

    __slots__ = ("_known", "_most")

    def __init__(self, waiting: Waiting, most: int = 1024) -> None:
        super().__init__(waiting, "the guest's announcements")
        #: What the secondary stands for, in the order of its last use: whether the primary has said it as well.
        self._known: OrderedDict[bytes, bool] = OrderedDict()
        self._most = most

    def primary(self, packet: Packet, now_s: float) -> list[Packet]:
        """Let go what the secondary stands for."""
        if packet.flow not in self._known:
            self.hold(packet, now_s)
            return []
        self._learn(packet.flow, by_primary=True)
        return [packet]

    def secondary(self, packet: Packet, now_s: float) -> list[Packet]:  # noqa: ARG002 - see Flow
        """Let go what waited for it."""
        known = packet.flow in self._known
        self._learn(packet.flow, by_primary=False)
        if known:
            return []
        waited = [entry for entry in self.held if entry.packet.flow == packet.flow]
        for entry in waited:
            self.held.remove(entry)
            self.waiting.let_go(entry)
            self._learn(packet.flow, by_primary=True)
        return [entry.packet for entry in waited]

    def _learn(self, said: bytes, *, by_primary: bool) -> None:
        self._known[said] = self._known.get(said, False) or by_primary
        self._known.move_to_end(said)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def missing(self, entry: Held) -> str:
        """Return what the packet says."""
        return f"{entry.packet.flow[:5].decode()} {entry.packet.flow[5:].hex()}"

    def surplus(self) -> str:
        """Return that there is nothing: the secondary's own are dropped."""
        return "nothing"

    def checkpointed(self) -> list[Packet]:
        """Return all held packets; the secondary stands for what they say."""
        released = super().checkpointed()
        for packet in released:
            self._learn(packet.flow, by_primary=True)
        return released

    def forget(self) -> None:
        """Forget what only the secondary said: it has become the primary's copy."""
        self._known = OrderedDict((said, True) for said, by_primary in self._known.items() if by_primary)
