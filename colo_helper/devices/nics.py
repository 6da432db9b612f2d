"""A domain's network taps on the host's bridge, by netlink.

libxl makes two interfaces for each emulated NIC: ``vifD.N-emu`` carries the device model's packets, ``vifD.N`` those of
a PV driver. libxl's hotplug script puts both on the bridge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from colo_helper.devices.interface import DeviceError, Tap

_NET = Path("/sys/class/net")


def tap_names(domid: int, interfaces: Sequence[str]) -> list[str]:
    """Return those of the host's interfaces that belong to a domain's NICs, sorted."""
    pattern = re.compile(rf"vif{domid}\.\d+(-emu)?")
    return sorted(name for name in interfaces if pattern.fullmatch(name))


def preload() -> None:
    """Import what changing a tap needs, so that no guest stands still for it later."""
    import pyroute2  # noqa: F401, PLC0415


class HostNics:
    """See Nics. Reads by sysfs, which needs no library; the slow import of pyroute2 waits for the first change."""

    def __init__(self, domid: int, net: Path = _NET) -> None:
        self._domid = domid
        self._net = net

    def taps(self) -> list[Tap]:
        """See Nics."""
        try:
            names = tap_names(self._domid, [path.name for path in self._net.iterdir()])
            return [self._tap(name) for name in names]
        except (OSError, ValueError) as error:
            raise DeviceError(f"The network taps of domain {self._domid} cannot be read: {error}.") from error

    def _tap(self, name: str) -> Tap:
        master = self._net / name / "master"
        bridge = master.resolve().name if master.is_symlink() else ""
        return Tap(name, int((self._net / name / "ifindex").read_text()), bridge)

    def isolate(self) -> list[Tap]:
        """See Nics."""
        before = self.taps()
        self._set_masters([Tap(tap.name, tap.index, "") for tap in before if tap.bridge])
        still = [f"{tap.name} on {tap.bridge}" for tap in self.taps() if tap.bridge]
        if still:
            raise DeviceError(f"Taps of domain {self._domid} are still on a bridge: {', '.join(still)}.")
        return before

    def connect(self, taps: Sequence[Tap]) -> None:
        """See Nics."""
        wanted = {tap.name: tap.bridge for tap in taps}
        self._set_masters([tap for tap in taps if tap.bridge])
        missing = [tap.name for tap in self.taps() if wanted.get(tap.name, tap.bridge) != tap.bridge]
        if missing:
            raise DeviceError(
                f"Taps of domain {self._domid} did not join their bridge: {', '.join(missing)}."
            )

    def _set_masters(self, changes: Sequence[Tap]) -> None:
        if not changes:
            return
        from pyroute2 import IPRoute  # noqa: PLC0415  (its import takes seconds on a slow host)
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

        with IPRoute() as route:
            for tap in changes:
                try:
                    master = 0
                    if tap.bridge:
                        master = int((self._net / tap.bridge / "ifindex").read_text())
                    route.link("set", index=tap.index, master=master)
                    if tap.bridge:
                        route.link("set", index=tap.index, state="up")
                except (NetlinkError, OSError) as error:
                    where = f"onto {tap.bridge}" if tap.bridge else "off its bridge"
                    raise DeviceError(f"The tap {tap.name} cannot be taken {where}: {error}.") from error
