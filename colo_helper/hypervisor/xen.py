"""A Xen domain, by ctypes on libxenctrl, libxenforeignmemory and libxenguest."""

from __future__ import annotations

import ctypes as c
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

from bitarray import bitarray

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
from colo_helper.hypervisor.io_requests import IoRequests
from colo_helper.hypervisor.libraries import XenLibraries, failure
from colo_helper.hypervisor.savers import other_savers
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.stream.libxc import CPUID_LEAF_BYTES, MSR_ENTRY_BYTES

#: bytes.translate table: bits 28..31 of a frame's type word, seen from its byte 3.
_UPPER_HALF = bytes(byte >> (x.TYPE_SHIFT - 24) for byte in range(256))


class XenDomain:
    """One domain of the running Xen; see ``interface.Domain``. Closing it leaves the libraries open."""

    def __init__(self, libraries: XenLibraries, domid: int) -> None:
        self._lib = libraries
        self._xc = libraries.ctrl
        self._h = libraries.ctrl_handle
        self._domid = domid
        self._own_pauses = 0
        self._buffer = x.HypercallBuffer.unused()
        self._buffer_pages = 0
        self._io: IoRequests | None = None
        self.info()

    @property
    def domid(self) -> int:
        """See Domain."""
        return self._domid

    @property
    def own_pauses(self) -> int:
        """See Domain."""
        return self._own_pauses

    def _check(self, result: int, operation: str, doing: str) -> int:
        if result < 0:
            raise failure(operation, doing, self._domid)
        return result

    def pause(self) -> None:
        """See Domain."""
        self._check(self._xc.xc_domain_pause(self._h, self._domid), "xc_domain_pause", "pause")
        self._own_pauses += 1

    def unpause(self) -> None:
        """See Domain."""
        if self._own_pauses == 0:
            raise HypervisorError(
                f"Domain {self._domid} was to be unpaused, but none of its pauses is ours.",
                operation="xc_domain_unpause",
                domid=self._domid,
            )
        self._check(self._xc.xc_domain_unpause(self._h, self._domid), "xc_domain_unpause", "unpause")
        self._own_pauses -= 1

    def adopt_pause(self) -> None:
        """See Domain."""
        self._own_pauses += 1

    def suspend_unseen(self) -> None:
        """See Domain. Xen tells the suspend event channel instead of everybody who waits for domains to end, such as xl.

        Source: XEN_DOMCTL_subscribe and __domain_finalise_shutdown in xen/common/domain.c, RELEASE-4.17.7 and 4.20.3.
        """
        self._told_of_suspend(x.NOBODYS_PORT)
        self.suspend()

    def resume_unseen(self) -> None:
        """See Domain."""
        result = self._lib.guest.xc_domain_resume(
            self._h, self._domid, 0
        )  # 0: without asking whether it is suspended
        self._check(result, "xc_domain_resume", "resume")
        self._told_of_suspend(0)

    def _told_of_suspend(self, port: int) -> None:
        result = self._xc.xc_domain_subscribe_for_suspend(self._h, self._domid, port)
        self._check(result, "xc_domain_subscribe_for_suspend", "say who is told of a suspend of")

    def io_state(self) -> IoState:
        """See Domain."""
        if self._io is None:
            self._io = IoRequests(self._lib, self._domid)
        return self._io.state()

    def info(self) -> DomainInfo:
        """See Domain. Uses getinfolist: getinfo is gone since 4.18, getinfo_single is not there before."""
        data = x.DomainInfoStruct()
        found = self._xc.xc_domain_getinfolist(self._h, self._domid, 1, c.byref(data))
        self._check(found, "xc_domain_getinfolist", "describe")
        if found != 1 or data.domain != self._domid:
            raise HypervisorError(
                f"Domain {self._domid} does not exist any more.",
                operation="xc_domain_getinfolist",
                domid=self._domid,
                errno_name="ESRCH",
            )
        return DomainInfo(
            domid=self._domid,
            pages=data.tot_pages,
            paused=bool(data.flags & x.FLAG_PAUSED),
            shutdown=bool(data.flags & x.FLAG_SHUTDOWN),
            dying=bool(data.flags & x.FLAG_DYING),
            hvm=bool(data.flags & x.FLAG_HVM),
            shutdown_reason=x.shutdown_reason(data.flags),
            max_pages=data.max_pages,
        )

    def nr_frames(self) -> int:
        """See Domain."""
        frames = c.c_uint64(0)
        result = self._xc.xc_domain_nr_gpfns(self._h, self._domid, c.byref(frames))
        self._check(result, "xc_domain_nr_gpfns", "tell the size of")
        return frames.value

    def get_param(self, index: int) -> int:
        """See Domain."""
        value = c.c_uint64(0)
        result = self._xc.xc_hvm_param_get(self._h, self._domid, index, c.byref(value))
        self._check(result, "xc_hvm_param_get", f"read HVM parameter {index} of")
        return value.value

    def pv_drivers_active(self) -> bool:
        """See Domain. The guest's PV drivers set the callback parameter; without them it stays 0."""
        return self.get_param(x.PARAM_CALLBACK_IRQ) != 0

    def _shadow(self, operation: int) -> int:
        result: int = self._xc.xc_shadow_control(self._h, self._domid, operation, None, 0)
        return result

    def log_dirty_on(self) -> None:
        """See Domain. ENABLE fails when video RAM tracking has it half on: then OFF and once more.

        Refused while somebody else saves the domain, whose log must not be taken away.
        """
        if others := other_savers(self._domid):
            raise HypervisorError(
                f"Domain {self._domid} is being saved or migrated by another program (process {others[0]}).",
                operation="xc_shadow_control",
                domid=self._domid,
                errno_name="EBUSY",
            )
        if self._shadow(x.SHADOW_ENABLE_LOGDIRTY) == 0:
            return
        self.log_dirty_off()
        self._check(self._shadow(x.SHADOW_ENABLE_LOGDIRTY), "xc_shadow_control", "log the dirty frames of")

    def log_dirty_off(self) -> None:
        """See Domain."""
        self._check(self._shadow(x.SHADOW_OFF), "xc_shadow_control", "stop logging the dirty frames of")

    def saved_by_others(self) -> bool:
        """See Domain."""
        return bool(other_savers(self._domid))

    def _need_buffer(self, pages: int) -> int:
        """Make the hypercall buffer at least so many pages long; returns its address."""
        if pages > self._buffer_pages:
            self._free_buffer()
            address = self._xc.xc__hypercall_buffer_alloc_pages(self._h, c.byref(self._buffer), pages)
            if not address:
                raise failure(
                    "xc__hypercall_buffer_alloc_pages", f"give {pages} pages for the bitmap of", self._domid
                )
            self._buffer_pages = pages
        address = self._buffer.hbuf
        assert address is not None
        return int(address)

    def _free_buffer(self) -> None:
        if self._buffer_pages:
            self._xc.xc__hypercall_buffer_free_pages(self._h, c.byref(self._buffer), self._buffer_pages)
            self._buffer, self._buffer_pages = x.HypercallBuffer.unused(), 0

    def clean_dirty(self, final: bool) -> DirtyBitmap:
        """See Domain. A size too small would lose bits in the hypervisor, so it is asked at every clean."""
        frames = self.nr_frames()
        length = (frames + 7) // 8
        address = self._need_buffer((length + PAGE_BYTES - 1) // PAGE_BYTES)
        stats = x.ShadowStats()
        mode = x.LOGDIRTY_FINAL if final else 0
        done = self._xc.xc_logdirty_control(
            self._h, self._domid, x.SHADOW_CLEAN, c.byref(self._buffer), frames, mode, c.byref(stats)
        )
        self._check(done, "xc_logdirty_control CLEAN", "read the dirty frames of")
        if done != frames:
            raise HypervisorError(
                f"Xen cleaned {done} frames of domain {self._domid} instead of {frames}; the rest may be lost.",
                operation="xc_logdirty_control CLEAN",
                domid=self._domid,
            )
        # Not a copy: the bits lie where the hypervisor wrote them.
        return DirtyBitmap(bitarray(buffer=(c.c_char * length).from_address(address), endian="little"))

    def mark_dirty(self, gfn: int) -> None:
        """See Domain. By the call with which device models tell what they wrote."""
        lib = self._lib
        result = lib.device_model.xendevicemodel_modified_memory(lib.device_model_handle, self._domid, gfn, 1)
        self._check(result, "xendevicemodel_modified_memory", f"log frame {gfn:#x} of")

    def frame_types(self, gfns: array[int]) -> bytes:
        """See Domain."""
        if len(gfns) > MAX_TYPE_BATCH:
            raise ValueError(f"{len(gfns)} frame types asked at once; Xen answers at most {MAX_TYPE_BATCH}.")
        inout = (c.c_uint64 * len(gfns)).from_buffer_copy(gfns)
        result = self._xc.xc_get_pfn_type_batch(self._h, self._domid, len(gfns), inout)
        self._check(result, "xc_get_pfn_type_batch", f"tell the types of {len(gfns)} frames of")
        # Byte 3 of each little-endian u64 holds the type in its upper half.
        return bytes(inout)[3::8].translate(_UPPER_HALF)

    @contextmanager
    def map_frames(self, gfns: array[int], *, writable: bool) -> Iterator[MappedFrames]:
        """See Domain."""
        count = len(gfns)
        numbers = (c.c_uint64 * count).from_buffer_copy(gfns)
        errors = (c.c_int * count)()
        prot = x.PROT_READ | (x.PROT_WRITE if writable else 0)
        foreign = self._lib.foreign
        handle = self._lib.foreign_handle
        address = foreign.xenforeignmemory_map(handle, self._domid, prot, count, numbers, errors)
        if not address:
            raise failure("xenforeignmemory_map", f"map {count} frames of", self._domid)
        failed = []
        if bytes(errors).strip(b"\0"):
            failed = [gfn for gfn, error in zip(gfns, errors, strict=True) if error]
        view = memoryview((c.c_char * (count * PAGE_BYTES)).from_address(address)).cast("B")
        try:
            yield MappedFrames(view, failed)
        finally:
            view.release()
            foreign.xenforeignmemory_unmap(handle, address, count)

    def get_context(self) -> bytes:
        """See Domain."""
        call = self._xc.xc_domain_hvm_getcontext
        size = self._check(
            call(self._h, self._domid, None, 0), "xc_domain_hvm_getcontext", "size the context of"
        )
        buffer = c.create_string_buffer(size)
        size = self._check(
            call(self._h, self._domid, buffer, size), "xc_domain_hvm_getcontext", "read the context of"
        )
        return buffer.raw[:size]

    def set_context(self, context: bytes) -> None:
        """See Domain."""
        buffer = c.create_string_buffer(context, len(context))
        result = self._xc.xc_domain_hvm_setcontext(self._h, self._domid, buffer, len(context))
        self._check(result, "xc_domain_hvm_setcontext", "set the context of")

    def special_frames(self) -> dict[int, SpecialFrame]:
        """See Domain."""
        found: dict[int, SpecialFrame] = {}
        for param, owner, reason in x.SPECIAL_PARAMS:
            gfn = self.get_param(param)
            if gfn:
                found.setdefault(gfn, SpecialFrame(gfn, owner, reason))
        base = self.get_param(x.PARAM_IOREQ_SERVER_PFN)
        if base:
            for gfn in range(base, base + self.get_param(x.PARAM_NR_IOREQ_SERVER_PAGES)):
                found.setdefault(gfn, SpecialFrame(gfn, *x.IOREQ_SERVER))
        return found

    # ------------------------------------------------------------------------------- for a save and a restore

    @property
    def xen_version(self) -> tuple[int, int]:
        """See Domain."""
        major, minor = self._lib.release.split(".")
        return int(major), int(minor)

    def suspend(self) -> None:
        """See Domain."""
        result = self._xc.xc_domain_shutdown(self._h, self._domid, x.SHUTDOWN_SUSPEND)
        self._check(result, "xc_domain_shutdown", "suspend")

    def resume(self) -> None:
        """See Domain. Fast: without PV drivers nothing of the guest has to know."""
        result = self._lib.guest.xc_domain_resume(self._h, self._domid, 1)
        self._check(result, "xc_domain_resume", "resume")

    def set_param(self, index: int, value: int) -> None:
        """See Domain."""
        result = self._xc.xc_hvm_param_set(self._h, self._domid, index, value)
        self._check(result, "xc_hvm_param_set", f"set HVM parameter {index} to {value:#x} of")

    def get_tsc(self) -> TscInfo:
        """See Domain."""
        mode, khz, incarnation, elapsed = c.c_uint32(), c.c_uint32(), c.c_uint32(), c.c_uint64()
        result = self._xc.xc_domain_get_tsc_info(
            self._h, self._domid, c.byref(mode), c.byref(elapsed), c.byref(khz), c.byref(incarnation)
        )
        self._check(result, "xc_domain_get_tsc_info", "tell the time stamp counter of")
        return TscInfo(mode.value, khz.value, elapsed.value, incarnation.value)

    def set_tsc(self, tsc: TscInfo) -> None:
        """See Domain."""
        result = self._xc.xc_domain_set_tsc_info(
            self._h, self._domid, tsc.mode, tsc.elapsed_ns, tsc.khz, tsc.incarnation
        )
        self._check(result, "xc_domain_set_tsc_info", "set the time stamp counter of")

    def get_cpu_policy(self) -> CpuPolicy:
        """See Domain."""
        guest = self._lib.guest
        nr_leaves, nr_msrs = c.c_uint32(), c.c_uint32()
        result = guest.xc_cpu_policy_get_size(self._h, c.byref(nr_leaves), c.byref(nr_msrs))
        self._check(result, "xc_cpu_policy_get_size", "size the CPU policy of")
        policy = guest.xc_cpu_policy_init()
        if not policy:
            raise failure("xc_cpu_policy_init", "give memory for the CPU policy of", self._domid)
        try:
            result = guest.xc_cpu_policy_get_domain(self._h, self._domid, policy)
            self._check(result, "xc_cpu_policy_get_domain", "tell the CPU policy of")
            leaves = c.create_string_buffer(nr_leaves.value * CPUID_LEAF_BYTES)
            msrs = c.create_string_buffer(nr_msrs.value * MSR_ENTRY_BYTES)
            result = guest.xc_cpu_policy_serialise(
                self._h, policy, leaves, c.byref(nr_leaves), msrs, c.byref(nr_msrs)
            )
            self._check(result, "xc_cpu_policy_serialise", "write down the CPU policy of")
        finally:
            guest.xc_cpu_policy_destroy(policy)
        return CpuPolicy(
            leaves.raw[: nr_leaves.value * CPUID_LEAF_BYTES], msrs.raw[: nr_msrs.value * MSR_ENTRY_BYTES]
        )

    def set_cpu_policy(self, policy: CpuPolicy) -> None:
        """See Domain."""
        nr_leaves, nr_msrs = len(policy.leaves) // CPUID_LEAF_BYTES, len(policy.msrs) // MSR_ENTRY_BYTES
        leaf, subleaf, msr = c.c_uint32(0xFFFFFFFF), c.c_uint32(0xFFFFFFFF), c.c_uint32(0xFFFFFFFF)
        result = self._lib.guest.xc_set_domain_cpu_policy(
            self._h,
            self._domid,
            nr_leaves,
            policy.leaves or None,
            nr_msrs,
            policy.msrs or None,
            c.byref(leaf),
            c.byref(subleaf),
            c.byref(msr),
        )
        where = f"leaf {leaf.value:#x}, subleaf {subleaf.value:#x}, MSR {msr.value:#x}"
        self._check(result, "xc_set_domain_cpu_policy", f"give the saved CPU ({where} does not fit) to")

    def populate(self, extents: array[int], order: int = 0) -> int:
        """See Domain."""
        frames = (c.c_uint64 * len(extents)).from_buffer_copy(extents)
        done = self._xc.xc_domain_populate_physmap(self._h, self._domid, len(extents), order, 0, frames)
        return self._check(
            done, "xc_domain_populate_physmap", f"give {len(extents)} extents of order {order} to"
        )

    def depopulate(self, gfns: array[int]) -> None:
        """See Domain."""
        frames = (c.c_uint64 * len(gfns)).from_buffer_copy(gfns)
        result = self._xc.xc_domain_decrease_reservation_exact(self._h, self._domid, len(gfns), 0, frames)
        self._check(result, "xc_domain_decrease_reservation_exact", f"take {len(gfns)} frames from")

    def seed_grant_table(self, store: tuple[int, int], console: tuple[int, int]) -> None:
        """See Domain."""
        (store_domid, store_gfn), (console_domid, console_gfn) = store, console
        result = self._lib.guest.xc_dom_gnttab_seed(
            self._h, self._domid, True, console_gfn, store_gfn, console_domid, store_domid
        )
        self._check(result, "xc_dom_gnttab_seed", "seed the grant table of")

    def close(self) -> None:
        """See Domain."""
        self._free_buffer()
        if self._io:
            self._io.close()
            self._io = None
