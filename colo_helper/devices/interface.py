"""What replication asks of a domain's device model and of its network taps."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class DeviceError(Exception):
    """The device model or a tap did not do what it was asked; the text says what and why."""


class DeviceModel(Protocol):
    """The program that emulates a domain's devices. Every method may raise DeviceError."""

    def stop(self) -> None:
        """Stop the emulated devices; harmless when they are stopped."""

    def cont(self) -> None:
        """Let the emulated devices run."""

    def save_state(self) -> bytes:
        """Return the state of the stopped devices."""

    def load_state(self, state: bytes) -> None:
        """Load what ``save_state`` of the other copy returned; the devices must be stopped and stay so."""

    def log_dirty(self, enable: bool) -> None:
        """Report (or stop reporting) the guest frames the devices write to the hypervisor."""

    def announce(self) -> None:
        """Tell the network where the guest's addresses are now."""

    def writable_disks(self) -> list[str]:
        """Return the names of the disks the guest can write through this device model."""

    def ended(self, within_s: float = 0.0) -> bool:
        """Whether the program is there no more, for certain, or is so soon; never raises. One that hangs is there."""

    def close(self) -> None:
        """End the conversation; the device model goes on."""


@dataclass(frozen=True, slots=True)
class Tap:
    """One network interface of the host that carries a guest's packets; ``bridge`` is empty when on none."""

    name: str
    bridge: str


class Nics(Protocol):
    """The taps of one domain. Every method may raise DeviceError."""

    def taps(self) -> list[Tap]:
        """Return the domain's taps as they are now."""

    def isolate(self) -> list[Tap]:
        """Take every tap off its bridge and verify it; returns them as they were before."""

    def connect(self, taps: Sequence[Tap]) -> None:
        """Put each tap onto the bridge it names and verify it."""


@dataclass(frozen=True, slots=True)
class FilteredNic:
    """A NIC whose packets go through us: ends of sockets, none of which blocks. Their framing: see traffic.framing.

    ``to_guest`` None: what comes from the network goes to the guest by itself, and we get a copy.
    """

    name: str
    from_network: socket.socket
    to_guest: socket.socket | None
    from_guest: socket.socket
    to_network: socket.socket

    def close(self) -> None:
        """Close our ends."""
        for end in (self.from_network, self.to_guest, self.from_guest, self.to_network):
            if end:
                end.close()


class Filters(Protocol):
    """The filters of one device model's NICs. Every method may raise DeviceError."""

    def attach(self, *, mirror: bool) -> list[FilteredNic]:
        """Have filters for all NICs, switched off; what an earlier program left is taken away first.

        ``mirror``: we will only get a copy of what comes from the network.
        """

    def switch(self, *, on: bool) -> None:
        """Let nothing leave the guest but by us, or (off) let packets pass by us; what we write is still taken then.

        Somebody must read all the sockets from the moment they are on: a device model that cannot write waits, and answers
        nobody.
        """

    def detach(self) -> None:
        """Let the packets flow by themselves again, at once; harmless when nothing is attached."""
