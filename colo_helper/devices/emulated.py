"""A device model and taps in memory, behind the same interfaces as the real ones."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from colo_helper.devices.interface import DeviceError, FilteredNic, Tap

_LOOK_S = 0.005


@dataclass
class EmulatedDevices:
    """A device model; ``faults`` names the operations that fail, ``journal`` what it was asked. ``dead``: it has ended."""

    state: bytes = b"devices 0"
    running: bool = True
    logging: bool = False
    announced: int = 0
    closed: bool = False
    dead: bool = False
    disks: list[str] = field(default_factory=list)
    faults: set[str] = field(default_factory=set)
    journal: list[str] = field(default_factory=list)

    def _step(self, operation: str) -> None:
        self.journal.append(operation)
        if self.dead:
            raise DeviceError("The device model cannot be reached (scripted).")
        if operation in self.faults:
            self.faults.discard(operation)
            raise DeviceError(f"The device model refused '{operation}' (scripted).")

    def stop(self) -> None:
        """See DeviceModel."""
        self._step("stop")
        self.running = False

    def cont(self) -> None:
        """See DeviceModel."""
        self._step("cont")
        self.running = True

    def save_state(self) -> bytes:
        """See DeviceModel."""
        self._step("save_state")
        return self.state

    def load_state(self, state: bytes) -> None:
        """See DeviceModel."""
        self._step("load_state")
        if self.running:
            raise DeviceError("The devices were running when their state was to be loaded.")
        self.state = state

    def log_dirty(self, enable: bool) -> None:
        """See DeviceModel."""
        self._step("log_dirty_on" if enable else "log_dirty_off")
        self.logging = enable

    def announce(self) -> None:
        """See DeviceModel."""
        self._step("announce")
        self.announced += 1

    def writable_disks(self) -> list[str]:
        """See DeviceModel."""
        return self.disks

    def ended(self, within_s: float = 0.0) -> bool:
        """See DeviceModel."""
        deadline = time.monotonic() + within_s
        while not self.dead and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return self.dead

    def close(self) -> None:
        """See DeviceModel."""
        self.closed = True


@dataclass
class EmulatedNics:
    """Taps of an emulated domain; ``faults`` names the operations that fail half way, after their first tap."""

    current: list[Tap] = field(default_factory=lambda: [Tap("vif7.0-emu", "xenbr0"), Tap("vif7.0", "xenbr0")])
    faults: set[str] = field(default_factory=set)

    def taps(self) -> list[Tap]:
        """See Nics."""
        return list(self.current)

    def isolate(self) -> list[Tap]:
        """See Nics."""
        before = self.taps()
        self._change("isolate", [replace(tap, bridge="") for tap in before])
        return before

    def connect(self, taps: Sequence[Tap]) -> None:
        """See Nics."""
        wanted = {tap.name: tap.bridge for tap in taps}
        self._change(
            "connect", [replace(tap, bridge=wanted.get(tap.name, tap.bridge)) for tap in self.current]
        )

    def _change(self, operation: str, wanted: list[Tap]) -> None:
        if operation in self.faults:
            self.faults.discard(operation)
            self.current = [*wanted[:1], *self.current[1:]]
            raise DeviceError(f"'ip' failed in the middle of '{operation}' (scripted).")
        self.current = wanted


@dataclass
class EmulatedFilters:
    """Filters of NICs of which tests hold the device model's ends, under the same names: ``ends``."""

    nics: int = 1
    attached: list[FilteredNic] = field(default_factory=list)
    ends: list[FilteredNic] = field(default_factory=list)
    on: bool = False
    faults: set[str] = field(default_factory=set)

    def attach(self, *, mirror: bool) -> list[FilteredNic]:
        """See Filters."""
        self._step("attach")
        self.detach()
        for number in range(self.nics):
            pairs = [socket.socketpair() for _ in range(4)]
            for ours, _ in pairs:
                ours.setblocking(False)
            self.attached.append(_nic(f"net{number}", [ours for ours, _ in pairs], mirror=mirror))
            self.ends.append(_nic(f"net{number}", [theirs for _, theirs in pairs], mirror=mirror))
        return list(self.attached)

    def detach(self) -> None:
        """See Filters."""
        self._step("detach")
        self.on = False
        for nic in (*self.attached, *self.ends):
            nic.close()
        self.attached.clear()
        self.ends.clear()

    def switch(self, *, on: bool) -> None:
        """See Filters."""
        self._step("switch_on" if on else "switch_off")
        self.on = on

    def _step(self, operation: str) -> None:
        if operation in self.faults:
            self.faults.discard(operation)
            raise DeviceError(f"The filters refused '{operation}' (scripted).")


def _nic(name: str, ends: Sequence[socket.socket], *, mirror: bool) -> FilteredNic:
    from_network, to_guest, from_guest, to_network = ends
    if mirror:
        to_guest.close()
    return FilteredNic(name, from_network, None if mirror else to_guest, from_guest, to_network)
