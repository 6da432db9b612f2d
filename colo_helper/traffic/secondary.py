"""What becomes of the secondary's packets: its guest gets what the client sent, and what it says goes to the comparator.

After a take-over its guest talks with the network itself, and connections that only the primary's numbers are known of are
kept in step for as long as they last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from colo_helper.proxy.outage import Outage
from colo_helper.proxy.packet import Packet, opposite
from colo_helper.traffic.framing import RawFrame
from colo_helper.traffic.interface import Outputs
from colo_helper.traffic.moves import Moves
from colo_helper.traffic.rewriting import Rewriting
from colo_helper.traffic.said import Said

#: What is kept for the guest while it stands still, in bytes; clients send again what is dropped.
_KEPT_BYTES = 4 << 20


@dataclass
class SecondaryRouter:
    """See Router. The guest stands still until ``resumed``.

    ``moves`` are of connections that the primary itself has taken over from another; they are moved there until a take-over.
    """

    nics: int
    out: Outputs
    moves: Moves = field(default_factory=list)
    epoch: int = -1
    running: bool = False
    alone: bool = False
    _kept: list[tuple[int, int, RawFrame]] = field(default_factory=list)
    _kept_bytes: int = 0
    _said: Said | None = field(default_factory=Said)
    _outage: Outage | None = field(default_factory=Outage)

    def __post_init__(self) -> None:
        self.rewriting = Rewriting(self.nics)

    # ------------------------------------------------------------------------------------------------ packets

    def from_guest(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """See Router."""
        packets = [frame.packet() for frame in frames]
        moved = self.rewriting.from_guest(nic, packets, now_s)
        if self.alone:
            self.out.to_network(nic, moved)
        elif self.epoch >= 0:  # before the first checkpoint only its device model speaks, which announces it
            self.out.to_peer(self.epoch, nic, frames)
        for packet in packets:
            if self._said is not None:
                self._said.note(nic, packet)
            if self._outage is not None:
                self._outage.from_guest(nic, packet)

    def from_network(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """See Router. Before a take-over the copy is on no network; what comes nevertheless is not for it."""
        if self.alone:
            self._give(nic, frames, now_s)

    def from_peer(self, epoch: int, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """See Router. What the primary got before the last checkpoint is in its state already."""
        if self.alone or nic >= self.nics:
            return
        if self.running and epoch == self.epoch:
            self._give(nic, frames, now_s)
            return
        self._know_client(nic, [frame.packet() for frame in frames])
        for frame in frames if epoch >= self.epoch else ():
            if self._kept_bytes + len(frame.data) <= _KEPT_BYTES:
                self._kept.append((epoch, nic, frame))
                self._kept_bytes += len(frame.data)

    def expire(self, now_s: float) -> float | None:
        """See Router."""
        return self.rewriting.expire(now_s) if self.alone else None

    @property
    def crowded(self) -> bool:
        """See Router."""
        return False

    # -------------------------------------------------------------------------------------------- checkpoints

    def halted(self) -> None:
        """The guest stands still."""
        self.running = False

    def applied(self, epoch: int) -> None:
        """The guest, which still stands still, has the state of ``epoch``: its connections are the primary's."""
        self.rewriting.checkpointed()
        self.epoch = epoch
        self._said = Said()

    def resumed(self, now_s: float) -> None:
        """The guest runs on: it gets what came for it meanwhile."""
        self.running = True
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        for epoch, nic, frame in kept:
            self.from_peer(epoch, nic, [frame], now_s)

    def take_over(self, now_s: float) -> None:
        """There is no primary any more."""
        self.alone = True
        self._kept.clear()
        self.rewriting.taken_over(self.moves, now_s)

    def say_again(self, now_s: float) -> None:
        """The guest has the network now: its clients get what it has said since the last checkpoint, which may never have left.

        Its timers have been backing off since the primary died. What a client has got already it knows by the numbers, so only
        TCP is said again. The clients' timers have been backing off as well: before it they are told that the outage is over.
        """
        said, outage = self._said, self._outage
        self._said = self._outage = None
        again = list(said.take()) if said else []
        talked = dict.fromkeys((nic, opposite(packet.flow)) for nic, packet in again)
        for nic in range(self.nics):
            told = outage.over([one for one in talked if one[0] == nic]) if outage else ()
            self.out.to_network(nic, [RawFrame(frame, vnet_bytes) for vnet_bytes, frame in told])
        for nic, packet in again:
            self.out.to_network(nic, self.rewriting.from_guest(nic, [packet], now_s))

    def _give(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        packets = [frame.packet() for frame in frames]
        self._know_client(nic, packets)
        self.out.to_guest(nic, self.rewriting.to_guest(nic, packets, now_s))

    def _know_client(self, nic: int, packets: Sequence[Packet]) -> None:
        if self._outage is not None:
            for packet in packets:
                self._outage.from_client(nic, packet)
