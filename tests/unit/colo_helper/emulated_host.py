"""A host without Xen: emulated domains by name, and a toolstack that builds one from a first copy."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from colo_helper.devices.emulated import EmulatedDevices, EmulatedFilters, EmulatedNics
from colo_helper.helper import argv
from colo_helper.helper.argv import NO_FD, RestoreRequest, SaveRequest
from colo_helper.helper.callout import HelperProcess, served_bits
from colo_helper.helper.errors import ParentLostError
from colo_helper.helper.fds import Stop
from colo_helper.helper.main import serve
from colo_helper.helper.parent import PipeParent
from colo_helper.helper.policy import TARGET_DOWNTIME_MS
from colo_helper.hypervisor import abi
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES, SpecialFrame
from colo_helper.replication.guest import Guest, Mark
from colo_helper.replication.host import HostError
from colo_helper.replication.moved import MovesFile
from colo_helper.stream.walk import Pages, walk_xl

RING = 4000
RING_FRAME = SpecialFrame(RING, "xenstore ring", "Each host's xenstored keeps its own indexes in this page.")


@dataclass
class EmulatedRestore:
    host: EmulatedHost
    vm: str
    data: bytearray = field(default_factory=bytearray)

    def write(self, data: bytes) -> None:
        if self.host.refuse_restore:
            raise HostError("'xl restore -p' ended with status 3: scripted.")
        self.data += data

    def finish(self) -> int:
        domain = EmulatedDomain(self.host.next_domid, pause_count=1)
        stream = io.BytesIO(self.data)

        def read_exact(length: int) -> bytes:
            piece = stream.read(length)
            if len(piece) != length:
                raise EOFError
            return piece

        for found in walk_xl(read_exact):
            if isinstance(found, Pages):
                for at, gfn in enumerate(found.gfns):
                    domain.memory[gfn] = bytearray(found.data[at * PAGE_BYTES : (at + 1) * PAGE_BYTES])
        assert not stream.read(1), "something follows the end of the first copy"
        domain.memory[RING] = bytearray(b"\1" * PAGE_BYTES)
        domain.specials = {RING: RING_FRAME}
        domain.params = {abi.PARAM_STORE_PFN: RING}
        self.host.add(self.vm, domain)
        return domain.domid

    def abandon(self) -> None:
        self.host.domains.pop(self.vm, None)


class ThreadHelper:
    """The save helper in a thread of this process, on an emulated domain; looks like its process to the callout."""

    pid = 0

    def __init__(
        self, domain: EmulatedDomain, request: SaveRequest | RestoreRequest, stream_fd: int, back_fd: int
    ) -> None:
        invocation = argv.parse(argv.build(request, stream_fd, back_fd, served_bits(request)))
        to_helper, answers = os.pipe()
        messages, from_helper = os.pipe()
        self.stdin, self.stdout = os.fdopen(answers, "wb", 0), os.fdopen(messages, "rb", 0)
        self._stop = Stop()
        self._status = 255
        parent = PipeParent(to_helper, from_helper, invocation)

        def run() -> None:
            try:
                self._status = serve(invocation, parent, self._stop, lambda _domid: domain, _no_stock)
            except ParentLostError:
                self._status = 254
            finally:
                for fd in {to_helper, from_helper, stream_fd, back_fd} - {NO_FD}:
                    os.close(fd)
                self._stop.close()

        self._thread = threading.Thread(target=run, daemon=True, name="helper")
        self._thread.start()

    def terminate(self) -> None:
        if self._thread.is_alive():
            self._stop.ask()

    def kill(self) -> None:
        self.terminate()

    def wait(self) -> int:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the helper hangs"
        return self._status


def _no_stock(_parent: PipeParent, sentence: str) -> None:
    raise AssertionError(sentence)


@dataclass
class EmulatedHost:
    """See Host. ``prepare`` may change a guest before it is used."""

    release: str = "4.17"
    next_domid: int = 7
    domains: dict[str, EmulatedDomain] = field(default_factory=dict)
    devices: dict[int, EmulatedDevices] = field(default_factory=dict)
    nics: dict[int, EmulatedNics] = field(default_factory=dict)
    filters: dict[int, EmulatedFilters] = field(default_factory=dict)
    destroyed: list[int] = field(default_factory=list)
    refuse_restore: bool = False
    #: Whether it is being shut down.
    shuts_down: bool = False
    #: Where marks are kept for whoever comes after a crash.
    run_dir: Path | None = None
    prepare: Callable[[EmulatedDomain, EmulatedDevices], None] | None = None

    def add(self, vm: str, domain: EmulatedDomain) -> None:
        self.domains[vm] = domain
        self.devices.setdefault(domain.domid, EmulatedDevices())
        self.nics.setdefault(domain.domid, EmulatedNics())

    def find(self, vm: str) -> int | None:
        domain = self.domains.get(vm)
        return domain.domid if domain else None

    def open_guest(self, domid: int) -> Guest:
        domain = next(domain for domain in self.domains.values() if domain.domid == domid)
        if self.prepare:
            self.prepare(domain, self.devices[domid])
        held, torn = (Mark(self.run_dir / name if self.run_dir else None) for name in ("held", "torn"))
        moved = MovesFile(self.run_dir / "moved.json" if self.run_dir else None, domid)
        filters = self.filters.setdefault(domid, EmulatedFilters())
        return Guest(
            domain, self.devices[domid], self.nics[domid], filters, held=held, torn=torn, moved=moved
        )

    def configuration(self, vm: str) -> bytes:
        return json.dumps({"c_info": {"name": vm}}).encode()

    def device_model_entries(self, _domid: int) -> list[tuple[bytes, bytes]]:
        return [(b"physmap/0/size", b"1000")]

    def restore(self, vm: str) -> EmulatedRestore:
        return EmulatedRestore(self, vm)

    def start_helper(
        self,
        request: SaveRequest | RestoreRequest,
        stream_fd: int,
        back_fd: int,
        downtime_ms: int = TARGET_DOWNTIME_MS,
    ) -> HelperProcess:
        assert downtime_ms > 0
        domain = next(domain for domain in self.domains.values() if domain.domid == request.domid)
        return HelperProcess(
            ThreadHelper(domain, request, os.dup(stream_fd), NO_FD if back_fd == NO_FD else os.dup(back_fd)),
            "colo-save-helper",
        )

    def going_down(self) -> bool:
        return self.shuts_down

    def destroy(self, domid: int) -> None:
        self.destroyed.append(domid)
        self.domains = {vm: domain for vm, domain in self.domains.items() if domain.domid != domid}


def running_guest(domid: int = 3, pages: int = 64) -> EmulatedDomain:
    """A guest with memory of its own, and a ring that belongs to its host."""
    domain = EmulatedDomain(domid)
    for gfn in range(pages):
        domain.guest_write(gfn, b"page %d" % gfn)
    domain.memory[RING] = bytearray(b"\2" * PAGE_BYTES)
    domain.specials = {RING: RING_FRAME}
    domain.params = {abi.PARAM_STORE_PFN: RING}
    return domain
