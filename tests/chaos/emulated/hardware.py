"""The two hosts' hardware, without the replicators: domains, device models, taps and filters, and guests that answer.

All of it lives in the world's process. A frozen host's guests say nothing, its device models move nothing, and it answers
no replicator; a host without power has nothing of all that.
"""

from __future__ import annotations

import socket
import struct
import uuid
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo_helper.devices.emulated import EmulatedDevices, EmulatedNics
from colo_helper.devices.interface import DeviceError
from colo_helper.hypervisor import abi
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES, SpecialFrame
from colo_helper.traffic.framing import FrameReader, RawFrame, pack
from tests.unit.colo_helper.proxy.frames import udp

VM = "h1"
#: The frame in which a guest keeps the token of what it said last.
TOKEN_FRAME = 1
#: A guest is small, so that it is quickly copied: its pages, and one that belongs to its host.
_PAGES = 24
_RING = _PAGES
_RING_FRAME = SpecialFrame(
    _RING, "xenstore ring", "Each host's xenstored keeps its own indexes in this page."
)
_TOKEN = struct.Struct("<Q")
_WORD = b"token %016d"
#: What a guest says, up to its word.
_SPEECH = udp(_WORD % 0)[: -len(_WORD % 0)]
#: What changes nothing is no step of an epoch.
QUESTIONS = frozenset(
    (
        *("info", "nr_frames", "io_state", "pv_drivers_active", "saved_by_others", "special_frames"),
        *("frame_types", "get_param", "taps", "writable_disks", "ended", "find", "why", "read"),
    )
)


@dataclass
class DeviceModelNet:
    """The network side of one device model: filters, if there are any, between the guest and its tap."""

    on: bool = False
    #: The device model's ends: from the network, to the guest, from the guest, to the network.
    ends: list[socket.socket] = field(default_factory=list)
    reader: FrameReader = field(default_factory=FrameReader)

    def attach(self) -> list[socket.socket]:
        """Put filters there, switched off; returns the replicator's ends."""
        self.detach()
        pairs = [socket.socketpair() for _ in range(4)]
        self.ends = [theirs for _, theirs in pairs]
        for end in self.ends:
            end.setblocking(False)
        return [ours for ours, _ in pairs]

    def detach(self) -> None:
        """Take them away; packets pass by themselves."""
        self.on = False
        for end in self.ends:
            end.close()
        self.ends.clear()
        self.reader = FrameReader()

    def from_guest(self, frame: RawFrame) -> bool:
        """Take what the guest says; tells whether it passes to the network by itself.

        What a filter cannot give to its other end is lost.
        """
        if not self.on:
            return True
        try:
            self.ends[2].sendall(pack(frame))
        except OSError:
            return False
        return False

    def to_network(self) -> list[RawFrame]:
        """Return what the replicator has let go since the last look."""
        frames: list[RawFrame] = []
        while self.ends:
            try:
                data = self.ends[3].recv(1 << 18)
            except OSError:  # there is nothing, or nobody
                break
            if not data:
                break
            frames += self.reader.feed(data)
        return frames


@dataclass
class Machine:
    """One host. ``serve`` answers its replicator; raises what a real one would."""

    name: str
    index: int
    directory: Path
    powered: bool = True
    frozen: bool = False
    #: The next thing that the save helper asks for is the last.
    helper_killed: bool = False
    domains: dict[int, EmulatedDomain] = field(default_factory=dict)
    devices: dict[int, EmulatedDevices] = field(default_factory=dict)
    nics: dict[int, EmulatedNics] = field(default_factory=dict)
    nets: dict[int, DeviceModelNet] = field(default_factory=dict)
    #: Domains whose device model was killed.
    headless: set[int] = field(default_factory=set)
    next_domid: int = 3

    def boot(self) -> None:
        """Start the host anew, with nothing on it."""
        for net in self.nets.values():
            net.detach()
        for things in (self.domains, self.devices, self.nics, self.nets, self.headless):
            things.clear()
        run = self.directory / "run"
        run.mkdir(exist_ok=True)
        for path in run.iterdir():
            path.unlink()
        (self.directory / "boot_id").write_text(str(uuid.uuid4()))
        self.powered, self.frozen, self.helper_killed = True, False, False

    @property
    def lives(self) -> bool:
        """Whether anything happens on it now."""
        return self.powered and not self.frozen

    def start_vm(self) -> None:
        """Start the VM as the toolstack does."""
        domain = _domain(self.next_domid)
        for gfn in range(_PAGES):
            domain.guest_write(gfn, b"page %d" % gfn)
        self._add(domain)

    def find(self, _vm: str = VM) -> int | None:
        """Return the number of the VM's domain, or None."""
        return next(iter(self.domains), None)

    def build(self, pages: dict[int, bytes]) -> int:
        """Build a copy, paused and on the bridge, as ``xl restore -p`` does."""
        domain = _domain(self.next_domid)
        domain.pause_count = 1
        domain.memory |= {gfn: bytearray(page) for gfn, page in pages.items() if gfn != _RING}
        return self._add(domain)

    def destroy(self, domid: int) -> None:
        """Destroy a domain; harmless when it is gone."""
        if net := self.nets.pop(domid, None):
            net.detach()
        for things in (self.domains, self.devices, self.nics):
            things.pop(domid, None)
        self.headless.discard(domid)

    def _add(self, domain: EmulatedDomain) -> int:
        domid = domain.domid
        self.next_domid += 1
        self.domains[domid], self.devices[domid] = domain, EmulatedDevices()
        self.nics[domid], self.nets[domid] = EmulatedNics(), DeviceModelNet()
        return domid

    def replicator_died(self) -> None:
        """Nothing of the domains is put in order for it, but nobody has a say in their pauses by libxc any more."""
        for domain in self.domains.values():
            domain.own_pauses = 0

    # ---------------------------------------------------------------------------------------- for the replicator

    def serve(self, group: str, domid: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """Carry out what a replicator asks of the hypervisor, a device model, taps or the toolstack."""
        if group == "host":
            return getattr(self, method)(*arguments)
        if method == "ended":
            return domid in self.headless or domid not in self.devices
        if group in ("dev", "flt") and domid in self.headless:
            raise DeviceError(f"The device model of domain {domid} does not answer.")
        kinds: dict[str, Any] = {
            "dom": self.domains,
            "dev": self.devices,
            "nics": self.nics,
            "flt": self.nets,
        }
        things = kinds[group]
        if domid not in things:
            if group == "dom":
                raise EmulatedDomain(domid, gone=True)._refusal(method, "ESRCH")
            raise DeviceError(f"There is no device model of domain {domid}.")
        thing: Any = things[domid]
        match method:
            case "map":
                with thing.map_frames(arguments[0], writable=False) as mapped:
                    return bytes(mapped.view), mapped.failed
            case "unmap":
                return self._write_back(thing, *arguments)
            case "switch_on" | "switch_off":
                thing.on = method == "switch_on"
                return None
        return getattr(thing, method)(*arguments)

    @staticmethod
    def _write_back(domain: EmulatedDomain, gfns: array[int], data: bytes) -> None:
        for at, gfn in enumerate(gfns):
            if gfn in domain.memory:
                domain.memory[gfn][:] = data[at * PAGE_BYTES : (at + 1) * PAGE_BYTES]

    # ------------------------------------------------------------------------------------------------- the guests

    def speak(self, next_token: Callable[[int], int]) -> list[int]:
        """Let every guest that runs say something; returns what passes to the network without us.

        A guest notes what it says in its memory first. ``next_token`` is given what it said before.
        """
        heard = []
        for domid, domain in self.domains.items():
            if not (domain.running and self.devices[domid].running and domid not in self.headless):
                continue
            token = next_token(token_of(domain))
            domain.guest_write(TOKEN_FRAME, _TOKEN.pack(token))
            if self.nets[domid].from_guest(RawFrame(_SPEECH + _WORD % token, 0)) and self.bridged(domid):
                heard.append(token)
        return heard

    def let_go(self) -> list[int]:
        """Return what the replicator has let go, if it reaches the bridge."""
        heard = []
        for domid, net in self.nets.items():
            frames = net.to_network()
            if frames and self.bridged(domid) and domid not in self.headless:
                heard += [int(frame.data[-16:]) for frame in frames if frame.data[-22:-16] == _WORD[:6]]
        return heard

    def bridged(self, domid: int) -> bool:
        """Whether a domain is on the network."""
        return any(tap.bridge for tap in self.nics[domid].taps())


def _domain(domid: int) -> EmulatedDomain:
    domain = EmulatedDomain(domid, size_frames=_PAGES + 8)
    domain.memory[_RING] = bytearray(b"%d" % domid).ljust(PAGE_BYTES, b"\0")
    domain.specials = {_RING: _RING_FRAME}
    domain.params = {abi.PARAM_STORE_PFN: _RING}
    return domain


def token_of(domain: EmulatedDomain) -> int:
    """Return what a guest said last, as its memory has it; 0 before anything."""
    page = domain.memory.get(TOKEN_FRAME)
    value: int = _TOKEN.unpack_from(page)[0] if page else 0
    return value if value < 1 << 40 else 0
