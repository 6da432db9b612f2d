"""What replication asks of a hypervisor about one domain."""

from __future__ import annotations

import enum
from array import array
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.stream.libxc import PAGE_BYTES, TscInfo

__all__ = [
    "MAX_TYPE_BATCH",
    "PAGE_BYTES",
    "SUPERPAGE_ORDER",
    "CpuPolicy",
    "Domain",
    "DomainInfo",
    "HypervisorError",
    "IoState",
    "MappedFrames",
    "SpecialFrame",
    "TscInfo",
]

#: The most frames one question for frame types may name (Xen answers E2BIG to more).
MAX_TYPE_BATCH = 1024
#: 2 MiB: the larger extent that Xen's page tables and dom0's privileges allow everywhere.
SUPERPAGE_ORDER = 9


class HypervisorError(Exception):
    """The hypervisor refused something. ``operation``, ``domid`` and ``errno_name`` are for programs."""

    def __init__(
        self, sentence: str, *, operation: str, domid: int | None = None, errno_name: str = ""
    ) -> None:
        super().__init__(sentence)
        self.operation = operation
        self.domid = domid
        self.errno_name = errno_name


class IoState(enum.Enum):
    """How far the I/O requests of a domain's vCPUs are, all together; only a domain without one can be copied."""

    NONE = "no vCPU waits for a device model"
    ANSWERED = "a vCPU has yet to run to take its answer"
    ASKED = "a device model has yet to answer"


class DomainInfo(NamedTuple):
    """A domain as the hypervisor describes it; ``pages`` counts its 4 KiB pages, ``max_pages`` what it may have.

    ``hvm`` is true for PVH as well. ``shutdown_reason`` is a word, empty while ``shutdown`` is false.
    """

    domid: int
    pages: int
    paused: bool
    shutdown: bool
    dying: bool
    hvm: bool
    shutdown_reason: str = ""
    max_pages: int = 0

    @property
    def suspended(self) -> bool:
        """Whether it is shut down with the reason "suspend", as libxl does before it saves."""
        return self.shutdown_reason == "suspend"


class CpuPolicy(NamedTuple):
    """What CPU a guest sees, as Xen serialises it: CPUID leaves of 24 bytes and MSR entries of 16 bytes."""

    leaves: bytes
    msrs: bytes


class SpecialFrame(NamedTuple):
    """A frame that belongs to the host and not to the guest's state, so the copies' may differ."""

    gfn: int
    owner: str
    reason: str


class MappedFrames(NamedTuple):
    """Guest frames mapped one after the other: frame ``i`` is ``view[i * 4096:(i + 1) * 4096]``.

    ``failed`` has the numbers of the frames that could not be mapped; their part of ``view`` must not be touched.
    """

    view: memoryview
    failed: list[int]


class Domain(Protocol):
    """One domain. Every method may raise HypervisorError."""

    @property
    def domid(self) -> int:
        """The domain's number on this host."""

    @property
    def own_pauses(self) -> int:
        """How many of the domain's pauses are ours to undo (Xen counts them)."""

    def pause(self) -> None:
        """Stop the domain's vCPUs; counts up."""

    def unpause(self) -> None:
        """Undo one of our own pauses; raises when none is ours."""

    def adopt_pause(self) -> None:
        """Count a pause that a tool left for us (``xl save -p``, ``xl restore -p``) as our own."""

    def io_state(self) -> IoState:
        """Tell whether a vCPU has sent a request to a device model and not taken the answer yet."""

    def suspend_unseen(self) -> None:
        """Have Xen stop each vCPU as soon as it has taken the answers to its I/O requests, and nobody told of it.

        That is a shutdown with the reason "suspend", to be undone by ``resume_unseen``; a domain that is paused gets there when
        it runs again.
        """

    def resume_unseen(self) -> None:
        """Undo ``suspend_unseen``, whether it has stopped the domain or not; harmless without one."""

    def info(self) -> DomainInfo:
        """Return what the hypervisor says about the domain now."""

    def nr_frames(self) -> int:
        """Return the highest mapped guest frame number plus one; it may change at any time."""

    def pv_drivers_active(self) -> bool:
        """Tell whether the guest has set up PV drivers, which pausing alone cannot stop."""

    def log_dirty_on(self) -> None:
        """Start logging the frames the guest writes."""

    def log_dirty_off(self) -> None:
        """Stop logging; harmless when it is off."""

    def saved_by_others(self) -> bool:
        """Tell whether another program saves or migrates the domain now: its log is not ours to stop."""

    def clean_dirty(self, final: bool) -> DirtyBitmap:
        """Return the frames written since the last clean and forget them.

        ``final`` also reports the frames the hypervisor itself has mapped. The size is asked anew every time, and
        rounded up to whole bytes. The bitmap may be changed in place; it is good until the next clean or close.
        """

    def mark_dirty(self, gfn: int) -> None:
        """Log a frame as if the guest had written it."""

    def frame_types(self, gfns: array[int]) -> bytes:
        """Return one type per frame, 0 for ordinary memory (0xf: no frame there); at most MAX_TYPE_BATCH."""

    def map_frames(self, gfns: array[int], *, writable: bool) -> AbstractContextManager[MappedFrames]:
        """Map frames for the duration of a ``with`` block."""

    def get_context(self) -> bytes:
        """Return the state of the vCPUs and of the devices inside the hypervisor."""

    def set_context(self, context: bytes) -> None:
        """Set what ``get_context`` of the other copy returned."""

    def special_frames(self) -> dict[int, SpecialFrame]:
        """Return the frames that belong to this host, by frame number."""

    # What a save and a restore need beyond checkpoints of a running pair.

    @property
    def xen_version(self) -> tuple[int, int]:
        """Major and minor number of the running Xen."""

    def suspend(self) -> None:
        """Shut the domain down with the reason "suspend", as libxl does for a guest without PV drivers."""

    def resume(self) -> None:
        """Let a suspended domain run on."""

    def get_tsc(self) -> TscInfo:
        """Return how the guest's time stamp counter goes on."""

    def set_tsc(self, tsc: TscInfo) -> None:
        """Let the guest's time stamp counter go on like the other copy's."""

    def get_cpu_policy(self) -> CpuPolicy:
        """Return what CPU the guest sees."""

    def set_cpu_policy(self, policy: CpuPolicy) -> None:
        """Give a guest that has not run yet the CPU it saw elsewhere; an empty part is left as it is."""

    def get_param(self, index: int) -> int:
        """Return an HVM parameter."""

    def set_param(self, index: int, value: int) -> None:
        """Set an HVM parameter; some can be set only once, or only to the same value again."""

    def populate(self, extents: array[int], order: int = 0) -> int:
        """Give the domain memory at each of ``extents``, 2**order frames long; returns how many it got.

        Fewer than asked for is no error: the host may have no whole superpage left, or the domain's limit is reached.
        """

    def depopulate(self, gfns: array[int]) -> None:
        """Take single frames away from the domain."""

    def seed_grant_table(self, store: tuple[int, int], console: tuple[int, int]) -> None:
        """Let (domain, frame) of the xenstore and of the console ring be reached by grants, as a new guest expects."""

    def close(self) -> None:
        """Give memory of this program back; the domain stays as it is."""
