"""The C interface of the Xen libraries, one table per Xen release.

Source: tools/include/xenctrl.h and xenforeignmemory.h of the releases named; struct sizes were compiled from the
4.17.7 headers and compared with 4.20.3's. libxenctrl's soname names its release, the others have stable ABIs.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

# Shadow operations and the mode of CLEAN (xen/include/public/domctl.h).
SHADOW_OFF = 0
SHADOW_ENABLE_LOGDIRTY = 2
SHADOW_CLEAN = 11
LOGDIRTY_FINAL = 1

# xc_domaininfo_t.flags
FLAG_DYING = 1 << 0
FLAG_HVM = 1 << 1
FLAG_SHUTDOWN = 1 << 2
FLAG_PAUSED = 1 << 3
#: The reason of a shutdown stands in bits 16..23.
SHUTDOWN_SHIFT = 16
SHUTDOWN_SUSPEND = 2
#: Names of the reasons, by number (xen/include/public/sched.h).
_SHUTDOWN_REASONS = ("poweroff", "reboot", "suspend", "crash", "watchdog", "soft_reset")

#: No domain has so many event channels: who is told by this one that a domain is suspended is nobody.
NOBODYS_PORT = 0x7FFF_FFFF

# XENMEM_acquire_resource (xen/include/public/memory.h): the request page of an ioreq server, one of at most
# MAX_NR_IOREQ_SERVERS (xen/include/xen/ioreq.h).
RESOURCE_IOREQ_SERVER = 0
IOREQ_SERVER_FRAME = 1
MAX_IOREQ_SERVERS = 8

PROT_READ = 1
PROT_WRITE = 2

#: A frame's type stands in bits 28..31 (XEN_DOMCTL_PFINFO_LTAB_SHIFT).
TYPE_SHIFT = 28

# HVM parameters (xen/include/public/hvm/params.h).
PARAM_CALLBACK_IRQ = 0
PARAM_STORE_PFN = 1
PARAM_IOREQ_PFN = 5
PARAM_BUFIOREQ_PFN = 6
PARAM_STORE_EVTCHN = 2
PARAM_PAE_ENABLED = 4
PARAM_VIRIDIAN = 9
PARAM_IDENT_PT = 12
PARAM_CONSOLE_PFN = 17
PARAM_CONSOLE_EVTCHN = 18
PARAM_ACPI_IOPORTS_LOCATION = 19
PARAM_PAGING_RING_PFN = 27
PARAM_MONITOR_RING_PFN = 28
PARAM_SHARING_RING_PFN = 29
PARAM_IOREQ_SERVER_PFN = 32
PARAM_NR_IOREQ_SERVER_PAGES = 33
PARAM_VM_GENERATION_ID_ADDR = 34
PARAM_X87_FIP_WIDTH = 36
PARAM_VM86_TSS_SIZED = 37
PARAM_MCA_CAP = 38

#: The parameters that a saved guest takes along, in the order of Xen's own writer; those that are 0 are left out.
SAVED_PARAMS = (
    PARAM_STORE_PFN,
    PARAM_IOREQ_PFN,
    PARAM_BUFIOREQ_PFN,
    PARAM_PAGING_RING_PFN,
    PARAM_MONITOR_RING_PFN,
    PARAM_SHARING_RING_PFN,
    PARAM_VM86_TSS_SIZED,
    PARAM_CONSOLE_PFN,
    PARAM_ACPI_IOPORTS_LOCATION,
    PARAM_VIRIDIAN,
    PARAM_IDENT_PT,
    PARAM_VM_GENERATION_ID_ADDR,
    PARAM_IOREQ_SERVER_PFN,
    PARAM_NR_IOREQ_SERVER_PAGES,
    PARAM_X87_FIP_WIDTH,
    PARAM_MCA_CAP,
)

#: Parameters that name a frame which belongs to the host: (parameter, owner, reason its content may differ).
SPECIAL_PARAMS: tuple[tuple[int, str, str], ...] = (
    (PARAM_STORE_PFN, "xenstore ring", "Each host's xenstored keeps its own indexes in this page."),
    (PARAM_CONSOLE_PFN, "console ring", "Each host's console daemon keeps its own indexes in this page."),
    (
        PARAM_IOREQ_PFN,
        "ioreq page",
        "Requests between the vCPUs and this host's device model pass through it.",
    ),
    (
        PARAM_BUFIOREQ_PFN,
        "buffered ioreq page",
        "Buffered requests to this host's device model pass through it.",
    ),
    (PARAM_PAGING_RING_PFN, "paging ring", "A pager of this host may use it."),
    (PARAM_MONITOR_RING_PFN, "monitor ring", "A monitor of this host may use it."),
    (PARAM_SHARING_RING_PFN, "sharing ring", "A memory-sharing daemon of this host may use it."),
)

#: Owner and reason of the range that PARAM_IOREQ_SERVER_PFN and PARAM_NR_IOREQ_SERVER_PAGES name.
IOREQ_SERVER = ("ioreq server page", "It is lent to this host's device model for requests.")


def shutdown_reason(flags: int) -> str:
    """Return why a domain with these flags has shut down, or an empty string when it has not."""
    if not flags & FLAG_SHUTDOWN:
        return ""
    number = flags >> SHUTDOWN_SHIFT & 0xFF
    return _SHUTDOWN_REASONS[number] if number < len(_SHUTDOWN_REASONS) else f"reason {number}"


class DomainInfoStruct(c.Structure):
    """``xc_domaininfo_t`` as xc_domain_getinfolist fills it (domctl.h)."""

    _fields_: ClassVar = [
        ("domain", c.c_uint16),
        ("pad1", c.c_uint16),
        ("flags", c.c_uint32),
        ("tot_pages", c.c_uint64),
        ("max_pages", c.c_uint64),
        ("outstanding_pages", c.c_uint64),
        ("shr_pages", c.c_uint64),
        ("paged_pages", c.c_uint64),
        ("shared_info_frame", c.c_uint64),
        ("cpu_time", c.c_uint64),
        ("nr_online_vcpus", c.c_uint32),
        ("max_vcpu_id", c.c_uint32),
        ("ssidref", c.c_uint32),
        ("handle", c.c_uint8 * 16),
        ("cpupool", c.c_uint32),
        ("gpaddr_bits", c.c_uint8),
        ("pad2", c.c_uint8 * 7),
        ("arch_config", c.c_uint32 * 2),
    ]


class HypercallBuffer(c.Structure):
    """``xc_hypercall_buffer_t``; start with ``HypercallBuffer.unused()``."""

    _fields_: ClassVar = [
        ("hbuf", c.c_void_p),
        ("param_shadow", c.c_void_p),
        ("dir", c.c_int),
        ("ubuf", c.c_void_p),
        ("sz", c.c_size_t),
    ]

    @classmethod
    def unused(cls) -> HypercallBuffer:
        """Return a buffer as DECLARE_HYPERCALL_BUFFER initialises it (ubuf is all ones)."""
        return cls(None, None, 0, c.c_void_p(-1).value, 0)


class ShadowStats(c.Structure):
    """``xc_shadow_op_stats_t``."""

    _fields_: ClassVar = [("fault_count", c.c_uint32), ("dirty_count", c.c_uint32)]


Signature = tuple[Any, list[Any]]

_H, _DOM, _INT, _UINT, _ULONG, _PTR = c.c_void_p, c.c_uint32, c.c_int, c.c_uint, c.c_ulong, c.c_void_p

_XENCTRL: Mapping[str, Signature] = {
    "xc_interface_open": (_PTR, [_PTR, _PTR, _UINT]),
    "xc_interface_close": (_INT, [_H]),
    "xc_version": (_INT, [_H, _INT, _PTR]),
    "xc_domain_getinfolist": (_INT, [_H, _DOM, _UINT, c.POINTER(DomainInfoStruct)]),
    "xc_domain_nr_gpfns": (_INT, [_H, _DOM, c.POINTER(c.c_uint64)]),
    "xc_domain_pause": (_INT, [_H, _DOM]),
    "xc_domain_unpause": (_INT, [_H, _DOM]),
    "xc_shadow_control": (_INT, [_H, _DOM, _UINT, c.POINTER(c.c_uint), _UINT]),
    "xc_logdirty_control": (
        c.c_longlong,
        [_H, _DOM, _UINT, c.POINTER(HypercallBuffer), _ULONG, _UINT, c.POINTER(ShadowStats)],
    ),
    "xc__hypercall_buffer_alloc_pages": (_PTR, [_H, c.POINTER(HypercallBuffer), _INT]),
    "xc__hypercall_buffer_free_pages": (None, [_H, c.POINTER(HypercallBuffer), _INT]),
    "xc_get_pfn_type_batch": (_INT, [_H, _DOM, _UINT, c.POINTER(c.c_uint64)]),
    "xc_domain_hvm_getcontext": (_INT, [_H, _DOM, _PTR, c.c_uint32]),
    "xc_domain_hvm_setcontext": (_INT, [_H, _DOM, _PTR, c.c_uint32]),
    "xc_hvm_param_get": (_INT, [_H, _DOM, c.c_uint32, c.POINTER(c.c_uint64)]),
    "xc_hvm_param_set": (_INT, [_H, _DOM, c.c_uint32, c.c_uint64]),
    "xc_domain_shutdown": (_INT, [_H, _DOM, _INT]),
    "xc_domain_subscribe_for_suspend": (_INT, [_H, _DOM, c.c_uint32]),
    # The nanoseconds stand before the frequency.
    "xc_domain_get_tsc_info": (
        _INT,
        [
            _H,
            _DOM,
            c.POINTER(c.c_uint32),
            c.POINTER(c.c_uint64),
            c.POINTER(c.c_uint32),
            c.POINTER(c.c_uint32),
        ],
    ),
    "xc_domain_set_tsc_info": (_INT, [_H, _DOM, c.c_uint32, c.c_uint64, c.c_uint32, c.c_uint32]),
    "xc_domain_populate_physmap": (_INT, [_H, _DOM, _ULONG, _UINT, _UINT, c.POINTER(c.c_uint64)]),
    "xc_domain_decrease_reservation_exact": (_INT, [_H, _DOM, _ULONG, _UINT, c.POINTER(c.c_uint64)]),
}

#: libxenguest has no stable interface either; it is opened only by a save or a restore.
_XENGUEST: Mapping[str, Signature] = {
    "xc_domain_resume": (_INT, [_H, _DOM, _INT]),
    "xc_dom_gnttab_seed": (_INT, [_H, _DOM, c.c_bool, c.c_uint64, c.c_uint64, _DOM, _DOM]),
    "xc_cpu_policy_init": (_PTR, []),
    "xc_cpu_policy_destroy": (None, [_PTR]),
    "xc_cpu_policy_get_domain": (_INT, [_H, _DOM, _PTR]),
    "xc_cpu_policy_get_size": (_INT, [_H, c.POINTER(c.c_uint32), c.POINTER(c.c_uint32)]),
    "xc_cpu_policy_serialise": (
        _INT,
        [_H, _PTR, _PTR, c.POINTER(c.c_uint32), _PTR, c.POINTER(c.c_uint32)],
    ),
    "xc_set_domain_cpu_policy": (
        _INT,
        [_H, _DOM, c.c_uint32, _PTR, c.c_uint32, _PTR, *([c.POINTER(c.c_uint32)] * 3)],
    ),
}

_FOREIGN_MEMORY: Mapping[str, Signature] = {
    "xenforeignmemory_open": (_PTR, [_PTR, _UINT]),
    "xenforeignmemory_close": (_INT, [_H]),
    "xenforeignmemory_map": (_PTR, [_H, _DOM, _INT, c.c_size_t, c.POINTER(c.c_uint64), c.POINTER(c.c_int)]),
    "xenforeignmemory_unmap": (_INT, [_H, _PTR, c.c_size_t]),
    "xenforeignmemory_map_resource": (
        _PTR,
        [_H, c.c_uint16, _UINT, _UINT, _ULONG, _ULONG, c.POINTER(c.c_void_p), _INT, _INT],
    ),
    "xenforeignmemory_unmap_resource": (_INT, [_H, _PTR]),
}

#: xendevicemodel.h, a stable ABI.
_DEVICE_MODEL: Mapping[str, Signature] = {
    "xendevicemodel_open": (_PTR, [_PTR, _UINT]),
    "xendevicemodel_close": (_INT, [_H]),
    "xendevicemodel_modified_memory": (_INT, [_H, _DOM, c.c_uint64, c.c_uint32]),
}


class Abi(NamedTuple):
    """Everything that depends on the Xen release. Sizes are in bytes."""

    release: str
    xenctrl_soname: str
    xenctrl: Mapping[str, Signature]
    xenguest_soname: str
    xenguest: Mapping[str, Signature]
    foreign_memory_soname: str
    foreign_memory: Mapping[str, Signature]
    device_model_soname: str
    device_model: Mapping[str, Signature]
    domain_info_bytes: int
    hypercall_buffer_bytes: int


def _abi(release: str) -> Abi:
    return Abi(
        release=release,
        xenctrl_soname=f"libxenctrl.so.{release}",
        xenctrl=_XENCTRL,
        xenguest_soname=f"libxenguest.so.{release}",
        xenguest=_XENGUEST,
        foreign_memory_soname="libxenforeignmemory.so.1",
        foreign_memory=_FOREIGN_MEMORY,
        device_model_soname="libxendevicemodel.so.1",
        device_model=_DEVICE_MODEL,
        domain_info_bytes=112,
        hypercall_buffer_bytes=40,
    )


#: The releases whose headers were compared with the tables above. 4.18 and 4.19 were not looked at.
ABIS: Mapping[str, Abi] = {release: _abi(release) for release in ("4.17", "4.20")}


class UnknownReleaseError(Exception):
    """The running Xen is one whose C interface is not in our tables."""


def abi_of(release: str) -> Abi:
    """Return the table of a Xen release such as ``4.17``; raises UnknownReleaseError."""
    try:
        return ABIS[release]
    except KeyError:
        known = ", ".join(ABIS)
        raise UnknownReleaseError(f"This host runs Xen {release}; only {known} are known to work.") from None


def release_of(version: int) -> str:
    """Return the release that ``xc_version(XENVER_version)`` means: major in bits 16.., minor below."""
    return f"{version >> 16}.{version & 0xFFFF}"


def check_sizes(abi: Abi) -> None:
    """Compare our structures with the release's; raises UnknownReleaseError when one does not fit."""
    for struct, expected in (
        (DomainInfoStruct, abi.domain_info_bytes),
        (HypercallBuffer, abi.hypercall_buffer_bytes),
    ):
        if c.sizeof(struct) != expected:
            raise UnknownReleaseError(
                f"{struct.__name__} has {c.sizeof(struct)} bytes here and {expected} in Xen {abi.release}."
            )


def bind(library: c.CDLL, signatures: Mapping[str, Signature]) -> None:
    """Give every function of a table its argument and result types."""
    for name, (restype, argtypes) in signatures.items():
        function = getattr(library, name)
        function.restype = restype
        function.argtypes = argtypes
