"""What the two sides' routers need, and what they offer to the thread that moves packets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from colo_helper.proxy.verdicts import Checkpoint
from colo_helper.traffic.framing import RawFrame


class Outputs(Protocol):
    """Where a router puts packets. None of it blocks; NICs are numbered in the order of the guest's."""

    def to_network(self, nic: int, frames: Sequence[RawFrame]) -> None:
        """Let frames leave."""

    def to_guest(self, nic: int, frames: Sequence[RawFrame]) -> None:
        """Give frames to the guest."""

    def to_peer(self, epoch: int, nic: int, frames: Sequence[RawFrame]) -> None:
        """Send frames of an epoch to the other side; they may be lost when it does not keep up."""

    def need_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Say that a checkpoint is needed, once until it is made."""


class Router(Protocol):
    """Decides what becomes of packets. Times are seconds of the monotonic clock; calls never overlap."""

    def from_guest(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """Take what the guest has sent."""

    def from_network(self, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """Take what the network has sent to the guest (a copy of it where the guest gets it by itself)."""

    def from_peer(self, epoch: int, nic: int, frames: Sequence[RawFrame], now_s: float) -> None:
        """Take what the other side has sent with ``Outputs.to_peer``."""

    def expire(self, now_s: float) -> float | None:
        """Do what is due, and return when to call again; None when nothing waits."""

    @property
    def crowded(self) -> bool:
        """Whether the guest is to be held back: nothing more is read from it for the moment."""
