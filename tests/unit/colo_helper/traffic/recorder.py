"""Where a router's packets go in a test."""

from __future__ import annotations

from dataclasses import dataclass, field

from colo_helper.traffic.framing import RawFrame


@dataclass
class Recorder:
    network: list[tuple[int, bytes]] = field(default_factory=list)
    guest: list[tuple[int, bytes]] = field(default_factory=list)
    peer: list[tuple[int, int, bytes]] = field(default_factory=list)
    checkpoints: list[object] = field(default_factory=list)

    def to_network(self, nic, frames):
        self.network += ((nic, frame.data) for frame in frames)

    def to_guest(self, nic, frames):
        self.guest += ((nic, frame.data) for frame in frames)

    def to_peer(self, epoch, nic, frames):
        self.peer += ((epoch, nic, frame.data) for frame in frames)

    def need_checkpoint(self, checkpoint):
        self.checkpoints.append(checkpoint)


def raw(*frames):
    return [RawFrame(frame, 0) for frame in frames]
