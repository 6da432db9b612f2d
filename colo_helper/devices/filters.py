"""A device model's network filters, which take a guest's packets out of it and put packets into it.

QEMU's filter-mirror and filter-redirector do no more than to move frames to and from chardevs, and they can be added to a
running NIC. Each chardev is one end of a socket pair that we hand over by QMP, so nothing is left in a file system, and QEMU
sees the end of a program that ended. Source: QEMU's docs/system/devices/net and net/filter-mirror.c, 7.2.

A filter's queue is named from the network's side of QEMU: "tx" goes to the guest, "rx" comes from it. What a redirector reads
from its chardev goes on behind itself, so one object can take everything out and put in what we decide.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from colo_helper.devices.interface import DeviceError, FilteredNic

_PREFIX = "colo-"
#: What waits in a socket, in bytes: about as much as a ring of 256 packets of 1,500 bytes.
_BUFFER_BYTES = 512 << 10
_LOOK_S = 0.001


class Qmp(Protocol):
    """What the filters need of a device model's QMP connection."""

    def command(self, name: str, **arguments: object) -> Any:  # noqa: ANN401
        """Run one command; raises DeviceError."""

    def hand_over(self, end: socket.socket, name: str) -> None:
        """Give the device model a file descriptor under a name; raises DeviceError."""


@dataclass
class QmpFilters:
    """See interface.Filters."""

    qmp: Qmp
    _nics: list[FilteredNic] = field(default_factory=list)

    def attach(self, *, mirror: bool) -> list[FilteredNic]:
        """See Filters."""
        self.detach()
        try:
            for netdev in self._netdevs():
                self._nics.append(self._attach(netdev, mirror=mirror))
        except BaseException:
            with suppress(DeviceError):  # what led here says more
                self.detach()
            raise
        return list(self._nics)

    def _netdevs(self) -> list[str]:
        """Return the names of the back-ends of all NICs, in the order of the machine's devices."""
        found = []
        for device in self.qmp.command("qom-list", path="/machine/peripheral"):
            path = f"/machine/peripheral/{device['name']}"
            if device["type"].startswith("child<") and any(
                one["name"] == "netdev" for one in self.qmp.command("qom-list", path=path)
            ):
                netdev = self.qmp.command("qom-get", path=path, property="netdev")
                if netdev:
                    found.append(str(netdev))
        return sorted(found)

    def _attach(self, netdev: str, *, mirror: bool) -> FilteredNic:
        nic = FilteredNic(
            netdev,
            from_network=socket_chardev(self.qmp, f"{_PREFIX}{netdev}-from-network"),
            to_guest=None if mirror else socket_chardev(self.qmp, f"{_PREFIX}{netdev}-to-guest"),
            from_guest=socket_chardev(self.qmp, f"{_PREFIX}{netdev}-from-guest"),
            to_network=socket_chardev(self.qmp, f"{_PREFIX}{netdev}-to-network"),
        )
        inward = {"outdev": f"{_PREFIX}{netdev}-from-network"}
        if not mirror:
            inward["indev"] = f"{_PREFIX}{netdev}-to-guest"
        outward = {"outdev": f"{_PREFIX}{netdev}-from-guest", "indev": f"{_PREFIX}{netdev}-to-network"}
        self._object(f"{netdev}-in", "filter-mirror" if mirror else "filter-redirector", "tx", netdev, inward)
        self._object(f"{netdev}-out", "filter-redirector", "rx", netdev, outward)
        return nic

    def _object(self, name: str, kind: str, queue: str, netdev: str, chardevs: dict[str, str]) -> None:
        self.qmp.command(
            "object-add",
            **{
                "qom-type": kind,
                "id": f"{_PREFIX}{name}",
                "netdev": netdev,
                "queue": queue,
                "status": "off",
                "vnet_hdr_support": True,  # the length of the vnet header stands before each frame, 0 without one
                **chardevs,
            },
        )

    def switch(self, *, on: bool) -> None:
        """See Filters. A filter that is off lets packets pass by; what is written to its chardev it still reads (7.2)."""
        for name in self._objects():
            self.qmp.command(
                "qom-set", path=f"/objects/{name}", property="status", value="on" if on else "off"
            )

    def detach(self) -> None:
        """See Filters."""
        try:
            self._remove()
        except DeviceError:
            # A device model that waits for us to read answers nobody. One whose chardevs have ended does.
            self._close()
            self._remove()
        finally:
            self._close()

    def _close(self) -> None:
        for nic in self._nics:
            nic.close()
        self._nics.clear()

    def _remove(self) -> None:
        for name in self._objects():
            self.qmp.command("object-del", id=name)
        for entry in self.qmp.command("query-chardev"):
            if entry["label"].startswith(_PREFIX):
                self.qmp.command("chardev-remove", id=entry["label"])

    def _objects(self) -> list[str]:
        """Return the names of our objects; where objects are is not there before the first one was made."""
        if all(entry["name"] != "objects" for entry in self.qmp.command("qom-list", path="/")):
            return []
        names = [str(entry["name"]) for entry in self.qmp.command("qom-list", path="/objects")]
        return [name for name in names if name.startswith(_PREFIX)]


def socket_chardev(qmp: Qmp, label: str) -> socket.socket:
    """Add a chardev whose other end is ours, which does not block; raises DeviceError."""
    ours, theirs = socket.socketpair()
    with theirs:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        ours.setblocking(False)
        try:
            qmp.hand_over(theirs, label)
            address = {"type": "fd", "data": {"str": label}}
            qmp.command(
                "chardev-add",
                id=label,
                backend={"type": "socket", "data": {"addr": address, "server": False}},
            )
        except BaseException:
            ours.close()
            raise
    return ours


def wait_until_taken(end: socket.socket, within_s: float) -> bool:
    """Wait until the other end of a socket has read all that was written; tells whether it has. A closed one has."""
    deadline = time.monotonic() + within_s
    while end.fileno() >= 0 and struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))[0]:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)  # nobody is told when a socket was read
    return True
