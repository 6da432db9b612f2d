"""A domain's network taps on the host's bridge.

libxl makes two interfaces for each emulated NIC: ``vifD.N-emu`` carries the device model's packets, ``vifD.N`` those of
a PV driver. libxl's hotplug script puts both on the bridge.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from colo_helper.devices.interface import DeviceError, Tap

_NET = Path("/sys/class/net")
_IP_TIMEOUT_S = 30.0


def tap_names(domid: int, interfaces: Sequence[str]) -> list[str]:
    """Return those of the host's interfaces that belong to a domain's NICs, sorted."""
    pattern = re.compile(rf"vif{domid}\.\d+(-emu)?")
    return sorted(name for name in interfaces if pattern.fullmatch(name))


class HostNics:
    """See Nics. Reads by sysfs, changes by iproute2."""

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
        return Tap(name, bridge)

    def isolate(self) -> list[Tap]:
        """See Nics."""
        before = self.taps()
        self._set_masters([Tap(tap.name, "") for tap in before if tap.bridge])
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
        """Change all bridges in one run of `ip -batch` (iproute2, which Xen's own hotplug scripts need).

        Not by a netlink library: importing one takes longer than everything else of a take-over.
        """
        lines = [
            f"link set dev {tap.name} master {tap.bridge} up"
            if tap.bridge
            else f"link set dev {tap.name} nomaster"
            for tap in changes
        ]
        if not lines:
            return
        try:
            done = subprocess.run(
                ["ip", "-batch", "-"],
                input="\n".join(lines) + "\n",
                capture_output=True,
                text=True,
                check=False,
                timeout=_IP_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(f"The taps of domain {self._domid} cannot be moved: {error}.") from error
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise DeviceError(
                f"The taps of domain {self._domid} cannot be moved ({'; '.join(lines)}): {said}."
            )
