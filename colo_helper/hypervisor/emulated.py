"""A deterministic domain in memory, behind the same interface as Xen's, for tests and for scale."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from colo_helper.hypervisor import abi as x
from colo_helper.hypervisor.interface import (
    MAX_TYPE_BATCH,
    PAGE_BYTES,
    CpuPolicy,
    DomainInfo,
    HypervisorError,
    IoState,
    MappedFrames,
    SpecialFrame,
    TscInfo,
)
from colo_helper.memory.bitmap import DirtyBitmap

_HOLE = 0xF
_TSC = TscInfo(0, 2_000_000, 0, 0)
_NO_POLICY = CpuPolicy(b"", b"")


@dataclass
class EmulatedDomain:
    """A domain whose memory is a dictionary of pages.

    ``faults`` maps an operation's name to how many more times it succeeds before it fails once.
    ``journal`` records the operations, but for the questions that change nothing; those can fail as well.
    ``mapped_now`` counts the mappings that are open. ``size_frames`` None: as large as its highest frame, so a new
    domain has none, as in Xen.
    """

    domid: int
    size_frames: int | None = 4096
    memory: dict[int, bytearray] = field(default_factory=dict)
    context: bytes = b"context 0"
    specials: dict[int, SpecialFrame] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    pause_count: int = 0
    log_dirty: bool = False
    dirty: set[int] = field(default_factory=set)
    journal: list[str] = field(default_factory=list)
    pv_drivers: bool = False
    own_pauses: int = 0
    hvm: bool = True
    suspended: bool = False
    #: Why it has ended by itself ("reboot", "crash"), empty while it has not.
    ended: str = ""
    gone: bool = False
    others: bool = False
    max_pages: int = 1 << 16
    tsc: TscInfo = _TSC
    cpu_policy: CpuPolicy = _NO_POLICY
    params: dict[int, int] = field(default_factory=dict)
    grants: tuple[tuple[int, int], tuple[int, int]] | None = None
    superpages: bool = True
    xen_version: tuple[int, int] = (4, 17)
    mapped_now: int = 0
    #: So many times it is caught with an I/O request when it is paused.
    io_requests: int = 0
    #: Whether its device model answers none of them.
    io_hangs: bool = False
    #: Whether Xen is to stop it between two requests.
    suspending: bool = False
    _io_asked: bool = True

    def _step(self, operation: str) -> None:
        self.journal.append(operation)
        self._attempt(operation)

    def _attempt(self, operation: str) -> None:
        left = self.faults.get(operation)
        if left is None:
            return
        if left > 0:
            self.faults[operation] = left - 1
            return
        del self.faults[operation]
        raise self._refusal(operation, "EIO")

    def _refusal(self, operation: str, errno_name: str) -> HypervisorError:
        return HypervisorError(
            f"Xen refused to {operation} domain {self.domid}: {errno_name} (scripted).",
            operation=operation,
            domid=self.domid,
            errno_name=errno_name,
        )

    def guest_write(self, gfn: int, data: bytes) -> None:
        """Do what a running guest does: write the start of a page, and have it logged."""
        page = self.memory.setdefault(gfn, bytearray(PAGE_BYTES))
        page[: len(data)] = data
        if self.log_dirty:
            self.dirty.add(gfn)

    @property
    def running(self) -> bool:
        """Whether its vCPUs run."""
        return self.pause_count == 0 and not self.suspended and not self.ended

    def pause(self) -> None:
        """See Domain."""
        self._step("pause")
        self.pause_count += 1
        self.own_pauses += 1

    def unpause(self) -> None:
        """See Domain."""
        self._step("unpause")
        if self.own_pauses == 0:
            raise HypervisorError(
                f"Domain {self.domid} was to be unpaused, but none of its pauses is ours.",
                operation="unpause",
            )
        self.own_pauses -= 1
        self.pause_count -= 1
        if not self.pause_count and self.suspending and not self.io_hangs:
            self.io_requests, self.suspended = 0, True
        elif not self.pause_count and self.io_requests:
            self.io_requests, self._io_asked = self.io_requests - 1, True

    def adopt_pause(self) -> None:
        """See Domain."""
        self.own_pauses += 1

    def suspend_unseen(self) -> None:
        """See Domain."""
        self._step("suspend_unseen")
        self.suspending = True

    def resume_unseen(self) -> None:
        """See Domain."""
        self._step("resume_unseen")
        self.suspending = self.suspended = False

    def io_state(self) -> IoState:
        """See Domain. Its device model answers between the first look and the next."""
        self._attempt("io_state")
        if not self.io_requests or not self.pause_count:
            return IoState.NONE
        asked, self._io_asked = self._io_asked, False
        return IoState.ASKED if asked else IoState.ANSWERED

    def info(self) -> DomainInfo:
        """See Domain."""
        self._attempt("info")
        if self.gone:
            raise self._refusal("describe", "ESRCH")
        return DomainInfo(
            self.domid,
            len(self.memory),
            paused=self.pause_count > 0,
            shutdown=self.suspended or bool(self.ended),
            dying=False,
            hvm=self.hvm,
            shutdown_reason="suspend" if self.suspended else self.ended,
            max_pages=self.max_pages,
        )

    def nr_frames(self) -> int:
        """See Domain."""
        self._attempt("nr_frames")
        return max(self.memory, default=0) + 1 if self.size_frames is None else self.size_frames

    def pv_drivers_active(self) -> bool:
        """See Domain."""
        return self.pv_drivers

    def log_dirty_on(self) -> None:
        """See Domain."""
        self._step("log_dirty_on")
        self.log_dirty = True

    def log_dirty_off(self) -> None:
        """See Domain."""
        self._step("log_dirty_off")
        self.log_dirty = False
        self.dirty.clear()

    def saved_by_others(self) -> bool:
        """See Domain."""
        return self.others

    def clean_dirty(self, final: bool) -> DirtyBitmap:
        """See Domain."""
        self._step("clean_final" if final else "clean")
        bitmap = DirtyBitmap.empty(-(-self.nr_frames() // 8) * 8)
        for gfn in self.dirty:
            bitmap.mark(gfn)
        self.dirty.clear()
        return bitmap

    def mark_dirty(self, gfn: int) -> None:
        """See Domain."""
        self._attempt("mark_dirty")
        if self.log_dirty:
            self.dirty.add(gfn)

    def frame_types(self, gfns: array[int]) -> bytes:
        """See Domain."""
        self._attempt("frame_types")
        if len(gfns) > MAX_TYPE_BATCH:
            raise ValueError(f"{len(gfns)} frame types asked at once.")
        return bytes(0 if gfn in self.memory else _HOLE for gfn in gfns)

    @contextmanager
    def map_frames(self, gfns: array[int], *, writable: bool) -> Iterator[MappedFrames]:
        """See Domain. Like foreign mappings, these writes are not logged dirty, and are there whatever follows."""
        self._step("map_writable" if writable else "map")
        failed = [gfn for gfn in gfns if gfn not in self.memory]
        buffer = bytearray(b"".join(self.memory.get(gfn, bytes(PAGE_BYTES)) for gfn in gfns))
        self.mapped_now += 1
        try:
            with memoryview(buffer) as view:
                yield MappedFrames(view, failed)
        finally:
            self.mapped_now -= 1
            if writable:
                for index, gfn in enumerate(gfns):
                    if gfn in self.memory:
                        self.memory[gfn][:] = buffer[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]

    def get_context(self) -> bytes:
        """See Domain."""
        self._step("get_context")
        return self.context

    def set_context(self, context: bytes) -> None:
        """See Domain."""
        self._step("set_context")
        self.context = context

    def special_frames(self) -> dict[int, SpecialFrame]:
        """See Domain."""
        self._attempt("special_frames")
        return self.specials

    def suspend(self) -> None:
        """See Domain."""
        self._step("suspend")
        self.suspended = True

    def resume(self) -> None:
        """See Domain."""
        self._step("resume")
        self.suspended = False

    def get_tsc(self) -> TscInfo:
        """See Domain."""
        self._step("get_tsc")
        return self.tsc

    def set_tsc(self, tsc: TscInfo) -> None:
        """See Domain."""
        self._step("set_tsc")
        self.tsc = tsc

    def get_cpu_policy(self) -> CpuPolicy:
        """See Domain."""
        self._step("get_cpu_policy")
        return self.cpu_policy

    def set_cpu_policy(self, policy: CpuPolicy) -> None:
        """See Domain."""
        self._step("set_cpu_policy")
        self.cpu_policy = policy

    def get_param(self, index: int) -> int:
        """See Domain."""
        self._attempt("get_param")
        return self.params.get(index, 0)

    def set_param(self, index: int, value: int) -> None:
        """See Domain. Some parameters of Xen's can be set once only, or to the same value again."""
        self._step("set_param")
        once = (x.PARAM_VIRIDIAN, x.PARAM_IOREQ_PFN, x.PARAM_BUFIOREQ_PFN, x.PARAM_IOREQ_SERVER_PFN)
        if index in once and self.params.get(index, value) != value:
            raise HypervisorError(
                f"HVM parameter {index} is set already.", operation="set_param", errno_name="EEXIST"
            )
        self.params[index] = value

    def populate(self, extents: array[int], order: int = 0) -> int:
        """See Domain."""
        self._step("populate")
        if order and not self.superpages:
            return 0
        frames = 1 << order
        for done, start in enumerate(extents):
            if len(self.memory) + frames > self.max_pages:
                return done
            for gfn in range(start, start + frames):
                self.memory[gfn] = bytearray(PAGE_BYTES)
        return len(extents)

    def depopulate(self, gfns: array[int]) -> None:
        """See Domain."""
        self._step("depopulate")
        for gfn in gfns:
            if self.memory.pop(gfn, None) is None:
                raise self._refusal("depopulate", "EINVAL")

    def seed_grant_table(self, store: tuple[int, int], console: tuple[int, int]) -> None:
        """See Domain."""
        self._step("seed_grant_table")
        self.grants = (store, console)

    def close(self) -> None:
        """See Domain."""
        self.journal.append("close")
