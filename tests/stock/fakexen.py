"""The fake domain seen from outside: the test is the guest that writes its memory, and the libxl that suspends it.

The files and their layout are described in shim/fakexen.h. A domain's directory should lie in memory (/dev/shm).
"""

from __future__ import annotations

import ctypes as c
import fcntl
import hashlib
import mmap
import os
import random
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

PAGE = 4096
HOLE, RAM, SPECIAL, BROKEN = range(4)
SHUTDOWN_SUSPEND = 2

# HVM layout of 4.17: RAM from 0 with the VGA hole, video RAM and the special pages below 4 GiB, more RAM above it.
VGA_HOLE = range(0xA0, 0xC0)
VIDEO_RAM = range(0xF0000, 0xF0100)  # 1 MiB instead of 8 or 16: a test copies it at every save
IOREQ_SERVER_PAGES = range(0xFEFF0, 0xFEFF8)
SPECIAL_PAGES = range(0xFEFF8, 0xFF000)
STORE_GFN, IDENT_PT_GFN, CONSOLE_GFN = 0xFEFFC, 0xFEFFE, 0xFEFFF
SHARED_INFO_GFN = 0xFEE10  # a frame of Xen's that is no RAM; type XTAB although it can be mapped
LOWEST_HOLE_END = 0x100000
RING_GFNS = frozenset({STORE_GFN, CONSOLE_GFN})
#: What each host uses for itself: rings and pages of its device model. The guest does not write there.
HOST_GFNS = frozenset({*IOREQ_SERVER_PAGES, *SPECIAL_PAGES})

PARAM_STORE_PFN, PARAM_STORE_EVTCHN, PARAM_CONSOLE_PFN, PARAM_CONSOLE_EVTCHN = 1, 2, 17, 18
DEFAULT_PARAMS = {
    PARAM_STORE_PFN: STORE_GFN,
    PARAM_CONSOLE_PFN: CONSOLE_GFN,
    12: IDENT_PT_GFN << 12,
    19: 1,  # ACPI_IOPORTS_LOCATION
    27: 0xFEFF8,
    28: 0xFEFF9,
    29: 0xFEFFA,
    32: IOREQ_SERVER_PAGES.start,
    33: len(IOREQ_SERVER_PAGES),
    34: 0xFC000000,  # VM_GENERATION_ID_ADDR
    36: 0,
    37: 0xFEFF800000000080,  # VM86_TSS_SIZED
}
MAX_PARAMS, MAX_LEAVES, MAX_MSRS, MAX_CONTEXT = 39, 64, 8, 32768


class _Leaf(c.Structure):
    _fields_: ClassVar = [(name, c.c_uint32) for name in ("leaf", "subleaf", "a", "b", "c", "d")]


class _Msr(c.Structure):
    _fields_: ClassVar = [("index", c.c_uint32), ("flags", c.c_uint32), ("value", c.c_uint64)]


class _State(c.Structure):
    """``struct fake_domain``; the shim refuses a state of another size."""

    _fields_: ClassVar = [
        ("magic", c.c_char * 8),
        ("layout_bytes", c.c_uint32),
        ("domid", c.c_uint32),
        ("hvm", c.c_uint32),
        ("pause_count", c.c_uint32),
        ("shutdown", c.c_uint32),
        ("shutdown_reason", c.c_uint32),
        ("log_dirty", c.c_uint32),
        ("destroyed", c.c_uint32),
        ("frame_limit", c.c_uint64),
        ("max_pages", c.c_uint64),
        ("tot_pages", c.c_uint64),
        ("max_mapped_gfn", c.c_uint64),
        ("dirty_count", c.c_uint64),
        ("tsc_nsec", c.c_uint64),
        ("tsc_mode", c.c_uint32),
        ("tsc_khz", c.c_uint32),
        ("tsc_incarnation", c.c_uint32),
        ("nr_leaves", c.c_uint32),
        ("nr_msrs", c.c_uint32),
        ("context_bytes", c.c_uint32),
        ("params", c.c_uint64 * MAX_PARAMS),
        ("leaves", _Leaf * MAX_LEAVES),
        ("msrs", _Msr * MAX_MSRS),
        ("context", c.c_uint8 * MAX_CONTEXT),
    ]


def hvm_context(body: bytes) -> bytes:
    """Return a blob of the shape Xen checks: HEADER (type 1), one CPU record (2) with the body, END (0)."""
    header = struct.pack("<HHI24x", 1, 0, 24)
    return header + struct.pack("<HHI", 2, 0, len(body)) + body + struct.pack("<HHI", 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Operation:
    """One hypercall or mapping out of the log; ``result`` is negative errno when it failed."""

    name: str
    args: dict[str, int | str]
    result: int


def operations(log: Path) -> list[Operation]:
    """Read the log of one helper (see ``FakeDomain.env``)."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        left, result = line.rsplit(" = ", 1)
        name, *words = left.split()
        pairs = (word.split("=", 1) for word in words)
        args = {key: int(value) if value.lstrip("-").isdigit() else value for key, value in pairs}
        found.append(Operation(name, args, int(result)))
    return found


class FakeDomain:
    """One domain, mapped into this process too. ``create`` makes its files, an instance opens them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._state_file = (path / "state").open("r+b")
        self._maps = [self._map("state"), self._map("p2m"), self._map("dirty"), self._map("memory")]
        state, self.p2m, self.dirty, self.memory = self._maps
        self.state = _State.from_buffer(state)

    def _map(self, name: str) -> mmap.mmap:
        with (self.path / name).open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(cls, path: Path, domid: int, max_pages: int, frame_limit: int = LOWEST_HOLE_END) -> FakeDomain:
        """Make a domain as libxl makes it before it starts a helper: no frame, no parameter, not running."""
        path.mkdir(parents=True)
        sizes = {
            "state": c.sizeof(_State),
            "p2m": frame_limit,
            "dirty": (frame_limit + 7) // 8,
            "memory": frame_limit * PAGE,
            "grant": PAGE,
        }
        for name, size in sizes.items():
            with (path / name).open("wb") as file:
                file.truncate(size)
        domain = cls(path)
        state = domain.state
        state.magic = b"FAKEXEN1"
        state.layout_bytes = c.sizeof(_State)
        state.domid, state.hvm, state.pause_count = domid, 1, 1
        state.frame_limit, state.max_pages = frame_limit, max_pages
        return domain

    @classmethod
    def create_guest(cls, path: Path, domid: int, ram_pages: int, seed: int = 1) -> FakeDomain:
        """Make a running HVM guest with random memory, parameters, context, TSC and policies."""
        low = range(min(ram_pages, VIDEO_RAM.start))
        high = range(LOWEST_HOLE_END, LOWEST_HOLE_END + ram_pages - len(low))
        frame_limit = high.stop + 4096
        domain = cls.create(path, domid, ram_pages + 4096, frame_limit)
        generator = random.Random(seed)
        for gfns in (
            range(VGA_HOLE.start),
            range(VGA_HOLE.stop, low.stop),
            VIDEO_RAM,
            IOREQ_SERVER_PAGES,
            SPECIAL_PAGES,
            high,
        ):
            domain.populate(gfns)
            for start in range(gfns.start, gfns.stop, 4096):
                count = min(4096, gfns.stop - start)
                domain.memory[start * PAGE : (start + count) * PAGE] = generator.randbytes(count * PAGE)
        domain.p2m[SHARED_INFO_GFN] = SPECIAL
        domain.set_params(DEFAULT_PARAMS)
        domain.set_cpu(seed)
        domain.state.pause_count = 0
        return domain

    def close(self) -> None:
        """Unmap everything."""
        del self.state
        for mapped in self._maps:
            mapped.close()
        self._state_file.close()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the shim (flock) and other threads of ours out."""
        with self._lock:
            fcntl.flock(self._state_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._state_file, fcntl.LOCK_UN)

    def env(self, library_path: str, log: Path | None = None, faults: Iterable[str] = ()) -> dict[str, str]:
        """Return the environment of a helper that works on this domain.

        A fault is ``"OPERATION:N:ERRNO"``, ``"OPERATION:N+:ERRNO"`` (and all later ones) or ``"OPERATION:N:sig15"``.
        """
        env = {**os.environ, "LD_LIBRARY_PATH": library_path, "FAKEXEN_DIR": str(self.path)}
        env.pop("FAKEXEN_LOG", None)
        if log is not None:
            env["FAKEXEN_LOG"] = str(log)
        if faults:
            env["FAKEXEN_FAULTS"] = ",".join(faults)
        return env

    # What the guest does.

    def write(self, gfn: int, data: bytes, offset: int = 0) -> None:
        """Write into one frame as the guest: it becomes dirty when Xen logs."""
        if self.p2m[gfn] != RAM or offset + len(data) > PAGE:
            raise ValueError(f"The guest has no {len(data)} bytes of RAM at gfn {gfn:#x} + {offset}.")
        with self.locked():
            start = gfn * PAGE + offset
            self.memory[start : start + len(data)] = data
            if self.state.log_dirty and not self.dirty[gfn // 8] >> gfn % 8 & 1:
                self.dirty[gfn // 8] |= 1 << gfn % 8
                self.state.dirty_count += 1

    def populate(self, gfns: range) -> None:
        """Add frames of RAM, as a guest that balloons up or a toolstack that builds it."""
        if not gfns:
            return
        with self.locked():
            self.p2m[gfns.start : gfns.stop] = bytes([RAM]) * len(gfns)
            self.state.tot_pages += len(gfns)
            self.state.max_mapped_gfn = max(self.state.max_mapped_gfn, gfns.stop - 1)
            if self.state.log_dirty:
                for gfn in gfns:
                    self.dirty[gfn // 8] |= 1 << gfn % 8
                self.state.dirty_count += len(gfns)

    def set_params(self, params: dict[int, int]) -> None:
        """Set HVM parameters."""
        with self.locked():
            for index, value in params.items():
                self.state.params[index] = value

    def set_cpu(self, seed: int) -> None:
        """Give the vCPU another context and TSC, as one that has run. The policies are fixed."""
        generator = random.Random(seed)
        with self.locked():
            context = hvm_context(generator.randbytes(4000))
            c.memmove(self.state.context, context, len(context))
            self.state.context_bytes = len(context)
            self.state.tsc_mode, self.state.tsc_khz = 0, 2_400_000
            self.state.tsc_nsec = generator.randrange(1, 1 << 50)
            self.state.tsc_incarnation = seed & 0xFF
            # As Xen would serialise it: leaves up to the highest one, hypervisor leaves, extended leaves.
            none = 0xFFFFFFFF
            leaves = [
                (0, none, 1, 0x756E6547, 0x6C65746E, 0x49656E69),
                (1, none, 0x306C3, 0x10800, 0x1FBAE3FF & ~(1 << 27), 0xBFEBFBFF),
                (0x40000000, none, 0, 0, 0, 0),
                (0x40000100, none, 0, 0, 0, 0),
                (0x80000000, none, 0x80000001, 0, 0, 0),
                (0x80000001, none, 0, 0, 0x21, 0x2C100800),
            ]
            for at, leaf in enumerate(leaves):
                self.state.leaves[at] = _Leaf(*leaf)
            self.state.nr_leaves = len(leaves)
            self.state.msrs[0], self.state.msrs[1] = _Msr(0xCE, 0, 0), _Msr(0x10A, 0, 0)
            self.state.nr_msrs = 2

    # What libxl does.

    def suspend(self) -> None:
        """Suspend the guest: the state a helper looks for after its suspend callback."""
        with self.locked():
            self.state.shutdown, self.state.shutdown_reason = 1, SHUTDOWN_SUSPEND

    def resume(self) -> None:
        """Let the guest run again."""
        with self.locked():
            self.state.shutdown = self.state.shutdown_reason = 0

    def enable_log_dirty(self) -> None:
        """Switch log-dirty on from outside, as libxl does on a COLO secondary."""
        with self.locked():
            self.state.log_dirty, self.state.dirty_count = 1, 0
            self.dirty[:] = bytes(len(self.dirty))

    # What a test looks at.

    @property
    def log_dirty(self) -> bool:
        """Whether Xen logs dirty frames."""
        return bool(self.state.log_dirty)

    @property
    def params(self) -> dict[int, int]:
        """All HVM parameters that are not 0."""
        return {index: value for index, value in enumerate(self.state.params) if value}

    @property
    def context(self) -> bytes:
        """The HVM context."""
        return bytes(self.state.context[: self.state.context_bytes])

    @property
    def tsc(self) -> tuple[int, int, int, int]:
        """Mode, kHz, nanoseconds and incarnation."""
        return (self.state.tsc_mode, self.state.tsc_khz, self.state.tsc_nsec, self.state.tsc_incarnation)

    @property
    def policy(self) -> tuple[list[bytes], list[bytes]]:
        """CPUID leaves and MSRs."""
        leaves = [bytes(leaf) for leaf in self.state.leaves[: self.state.nr_leaves]]
        return leaves, [bytes(msr) for msr in self.state.msrs[: self.state.nr_msrs]]

    @property
    def grants(self) -> list[tuple[int, int, int]]:
        """The first entries of the grant table: flags, domid, frame. 0 is the console's, 1 xenstore's."""
        data = (self.path / "grant").read_bytes()
        return [struct.unpack_from("<HHI", data, 8 * index) for index in range(2)]

    def gfns(self) -> list[int]:
        """All frames of RAM."""
        p2m = self.p2m[:]
        return [gfn for gfn in range(self.state.max_mapped_gfn + 1) if p2m[gfn] == RAM]

    def guest_gfns(self) -> list[int]:
        """All frames of RAM that the guest may write."""
        return [gfn for gfn in self.gfns() if gfn not in HOST_GFNS]

    def read(self, gfn: int) -> bytes:
        """The content of one frame."""
        return self.memory[gfn * PAGE : (gfn + 1) * PAGE]

    def pages(self, ignore: frozenset[int] = RING_GFNS) -> dict[int, bytes]:
        """A hash of every frame of RAM but the ring pages, which each host fills itself."""
        view = memoryview(self.memory)
        try:
            return {
                gfn: hashlib.blake2b(view[gfn * PAGE : (gfn + 1) * PAGE], digest_size=8).digest()
                for gfn in self.gfns()
                if gfn not in ignore
            }
        finally:
            view.release()


def differing(left: dict[int, bytes], right: dict[int, bytes]) -> list[int]:
    """The frames that two ``pages()`` do not agree on, also those that only one has."""
    return sorted(gfn for gfn in left.keys() | right.keys() if left.get(gfn) != right.get(gfn))
