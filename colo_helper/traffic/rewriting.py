"""The rewriters of all NICs of a guest, on frames."""

from __future__ import annotations

from collections.abc import Sequence

from colo_helper.proxy.packet import Packet
from colo_helper.proxy.rewrite import Rewriter
from colo_helper.traffic.framing import RawFrame
from colo_helper.traffic.moves import Moves

#: How often the connections that have ended are looked for, in seconds.
_LOOK_S = 10.0


class Rewriting:
    """Between a guest and its clients; see proxy.rewrite."""

    def __init__(self, nics: int) -> None:
        self._rewriters = [Rewriter() for _ in range(nics)]
        self._look_s = 0.0

    @classmethod
    def of(cls, moves: Moves, nics: int, now_s: float) -> Rewriting:
        """Go on with the connections that an earlier takeover moved."""
        rewriting = cls(nics)
        rewriting.taken_over(moves, now_s)
        return rewriting

    @property
    def connections(self) -> int:
        """How many are followed."""
        return sum(map(len, self._rewriters))

    def from_guest(self, nic: int, packets: Sequence[Packet], now_s: float) -> list[RawFrame]:
        """Return what the guest has sent as its clients must see it."""
        rewriter = self._rewriters[nic]
        return [RawFrame(rewriter.from_guest(packet, now_s), packet.ethernet) for packet in packets]

    def to_guest(self, nic: int, packets: Sequence[Packet], now_s: float) -> list[RawFrame]:
        """Return what clients have sent as the guest must see it."""
        rewriter = self._rewriters[nic]
        return [RawFrame(rewriter.to_guest(packet, now_s), packet.ethernet) for packet in packets]

    def checkpointed(self) -> None:
        """Forget all: the guest is a copy of the primary's, with its numbers."""
        for rewriter in self._rewriters:
            rewriter.checkpointed()

    def taken_over(self, moves: Moves, now_s: float) -> None:
        """The guest is on its own now, and goes on with what its primary had taken over; a NIC may be gone since."""
        for nic, rewriter in enumerate(self._rewriters):
            rewriter.taken_over(moves[nic] if nic < len(moves) else {}, now_s)

    def moves(self) -> Moves:
        """Return what the next replicator of this guest has to know."""
        return [rewriter.moves() for rewriter in self._rewriters]

    def expire(self, now_s: float) -> float:
        """Forget now and then what was quiet for long enough; returns when to look again."""
        if now_s >= self._look_s:
            self._look_s = now_s + _LOOK_S
            for rewriter in self._rewriters:
                rewriter.expire(now_s)
        return self._look_s
