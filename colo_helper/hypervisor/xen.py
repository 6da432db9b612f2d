"""A Xen domain, by ctypes on libxenctrl and libxenforeignmemory.

The handles must not be used by a child process. They are opened with close-on-exec, their buffers are not copied to
children (MADV_DONTFORK), and ``subprocess`` executes another program at once (vfork), so starting ``xl`` beside open
handles is safe; forking without exec is not.
"""

from __future__ import annotations

import ctypes as c
import errno as errno_module
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from colo_helper.hypervisor import abi as x
from colo_helper.hypervisor.interface import (
    MAX_TYPE_BATCH,
    PAGE_BYTES,
    DomainInfo,
    HypervisorError,
    MappedFrames,
    SpecialFrame,
)
from colo_helper.memory.bitmap import DirtyBitmap

#: bytes.translate table: bits 28..31 of a frame's type word, seen from its byte 3.
_UPPER_HALF = bytes(byte >> (x.TYPE_SHIFT - 24) for byte in range(256))


@dataclass(slots=True)
class XenLibraries:
    """The two libraries of the running release, opened and bound, with one handle of each."""

    release: str
    ctrl: c.CDLL
    ctrl_handle: int
    foreign: c.CDLL
    foreign_handle: int

    def close(self) -> None:
        """Give both handles back."""
        self.foreign.xenforeignmemory_close(self.foreign_handle)
        self.ctrl.xc_interface_close(self.ctrl_handle)


def _failure(operation: str, doing: str, domid: int | None = None) -> HypervisorError:
    code = c.get_errno()
    name = errno_module.errorcode.get(code, str(code))
    of = "" if domid is None else f" domain {domid}"
    return HypervisorError(
        f"Xen refused to {doing}{of}: {name} ({operation}).",
        operation=operation,
        domid=domid,
        errno_name=name,
    )


def _load(abi: x.Abi) -> c.CDLL:
    library = c.CDLL(abi.xenctrl_soname, use_errno=True)
    x.bind(library, abi.xenctrl)
    return library


def running_release() -> str:
    """Return the release of the running hypervisor, such as ``4.17``, by xc_version of any libxenctrl we know."""
    for abi in x.ABIS.values():
        try:
            library = _load(abi)
        except OSError:
            continue  # a release that is not installed; the next may be
        handle = library.xc_interface_open(None, None, 0)
        if not handle:
            raise _failure("xc_interface_open", "open its control interface (is this dom0, and are we root?)")
        version = library.xc_version(handle, 0, None)
        library.xc_interface_close(handle)
        if version < 0:
            raise _failure("xc_version", "tell its version")
        return x.release_of(version)
    names = ", ".join(abi.xenctrl_soname for abi in x.ABIS.values())
    raise HypervisorError(f"No Xen library we know is installed ({names}).", operation="dlopen")


def open_libraries() -> XenLibraries:
    """Open the libraries of the running release; raises HypervisorError with the reason."""
    try:
        abi = x.abi_of(running_release())
        x.check_sizes(abi)
        ctrl = _load(abi)
        foreign = c.CDLL(abi.foreign_memory_soname, use_errno=True)
        x.bind(foreign, abi.foreign_memory)
    except x.UnknownReleaseError as error:
        raise HypervisorError(str(error), operation="xc_version") from error
    except OSError as error:
        raise HypervisorError(f"A Xen library cannot be loaded: {error}.", operation="dlopen") from error
    ctrl_handle = ctrl.xc_interface_open(None, None, 0)
    if not ctrl_handle:
        raise _failure("xc_interface_open", "open its control interface")
    foreign_handle = foreign.xenforeignmemory_open(None, 0)
    if not foreign_handle:
        raise _failure("xenforeignmemory_open", "open its foreign memory interface")
    return XenLibraries(abi.release, ctrl, ctrl_handle, foreign, foreign_handle)


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
            raise _failure(operation, doing, self._domid)
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
        )

    def nr_frames(self) -> int:
        """See Domain."""
        frames = c.c_uint64(0)
        result = self._xc.xc_domain_nr_gpfns(self._h, self._domid, c.byref(frames))
        self._check(result, "xc_domain_nr_gpfns", "tell the size of")
        return frames.value

    def _param(self, index: int) -> int:
        value = c.c_uint64(0)
        result = self._xc.xc_hvm_param_get(self._h, self._domid, index, c.byref(value))
        self._check(result, "xc_hvm_param_get", f"read HVM parameter {index} of")
        return value.value

    def pv_drivers_active(self) -> bool:
        """See Domain. The guest's PV drivers set the callback parameter; without them it stays 0."""
        return self._param(x.PARAM_CALLBACK_IRQ) != 0

    def _shadow(self, operation: int) -> int:
        result: int = self._xc.xc_shadow_control(self._h, self._domid, operation, None, 0)
        return result

    def log_dirty_on(self) -> None:
        """See Domain. ENABLE fails when video RAM tracking has it half on: then OFF and once more."""
        if self._shadow(x.SHADOW_ENABLE_LOGDIRTY) == 0:
            return
        self.log_dirty_off()
        self._check(self._shadow(x.SHADOW_ENABLE_LOGDIRTY), "xc_shadow_control", "log the dirty frames of")

    def log_dirty_off(self) -> None:
        """See Domain."""
        self._check(self._shadow(x.SHADOW_OFF), "xc_shadow_control", "stop logging the dirty frames of")

    def _need_buffer(self, pages: int) -> int:
        """Make the hypercall buffer at least so many pages long; returns its address."""
        if pages > self._buffer_pages:
            self._free_buffer()
            address = self._xc.xc__hypercall_buffer_alloc_pages(self._h, c.byref(self._buffer), pages)
            if not address:
                raise _failure(
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
        return DirtyBitmap.from_bytes(c.string_at(address, length), frames)

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
            raise _failure("xenforeignmemory_map", f"map {count} frames of", self._domid)
        failed = [gfn for gfn, error in zip(gfns, errors, strict=True) if error] if any(errors) else []
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
            gfn = self._param(param)
            if gfn:
                found.setdefault(gfn, SpecialFrame(gfn, owner, reason))
        base = self._param(x.PARAM_IOREQ_SERVER_PFN)
        if base:
            for gfn in range(base, base + self._param(x.PARAM_NR_IOREQ_SERVER_PAGES)):
                found.setdefault(gfn, SpecialFrame(gfn, *x.IOREQ_SERVER))
        return found

    def close(self) -> None:
        """See Domain."""
        self._free_buffer()
