"""A host without Xen: emulated domains by name, and a first copy of bytes through them."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from colo_helper.devices.emulated import EmulatedDevices, EmulatedNics
from colo_helper.helper import argv
from colo_helper.helper.argv import RestoreRequest, SaveRequest
from colo_helper.helper.callout import HelperProcess, served_bits
from colo_helper.helper.errors import ParentLostError
from colo_helper.helper.fds import Stop
from colo_helper.helper.main import serve
from colo_helper.helper.parent import PipeParent
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES, SpecialFrame
from colo_helper.replication.guest import Guest
from colo_helper.replication.host import COPY_CHUNK_BYTES, HostError

RING = 4000
RING_FRAME = SpecialFrame(RING, "xenstore ring", "Each host's xenstored keeps its own indexes in this page.")


@dataclass
class EmulatedSave:
    """The pages of a domain as (gfn, page) records; leaves it paused once, as xl does."""

    domain: EmulatedDomain
    fail_after: int | None = None
    data: bytes = b""
    position: int = 0
    failed: bool = False

    def __post_init__(self) -> None:
        self.domain.pause_count += 1
        self.data = b"".join(
            struct.pack("<Q", gfn) + page for gfn, page in sorted(self.domain.memory.items())
        )

    def read(self) -> bytes:
        if self.fail_after is not None and self.position >= self.fail_after:
            if not self.failed:
                self.domain.pause_count -= 1  # libxl resumes a domain whose save failed
            self.failed = True
            raise HostError("'xl save -p' failed with status 1: scripted.")
        chunk = self.data[self.position : self.position + COPY_CHUNK_BYTES // 16]
        self.position += len(chunk)
        return chunk

    def abandon(self) -> None:
        while self.read():
            continue


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
        record = 8 + PAGE_BYTES
        for at in range(0, len(self.data), record):
            (gfn,) = struct.unpack_from("<Q", self.data, at)
            domain.memory[gfn] = bytearray(self.data[at + 8 : at + record])
        domain.memory[RING] = bytearray(b"\1" * PAGE_BYTES)
        domain.specials = {RING: RING_FRAME}
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
                for fd in (to_helper, from_helper, stream_fd, back_fd):
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
    destroyed: list[int] = field(default_factory=list)
    refuse_restore: bool = False
    save_fails_after: int | None = None
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
        return Guest(domain, self.devices[domid], self.nics[domid])

    def save(self, vm: str) -> EmulatedSave:
        return EmulatedSave(self.domains[vm], self.save_fails_after)

    def restore(self, vm: str) -> EmulatedRestore:
        return EmulatedRestore(self, vm)

    def start_helper(
        self, request: SaveRequest | RestoreRequest, stream_fd: int, back_fd: int
    ) -> HelperProcess:
        domain = next(domain for domain in self.domains.values() if domain.domid == request.domid)
        return HelperProcess(
            ThreadHelper(domain, request, os.dup(stream_fd), os.dup(back_fd)), "colo-save-helper"
        )

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
    return domain
