"""What replication asks of a hypervisor about one domain."""

from __future__ import annotations

from array import array
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.hashes import PAGE_BYTES

__all__ = [
    "MAX_TYPE_BATCH",
    "PAGE_BYTES",
    "Domain",
    "DomainInfo",
    "HypervisorError",
    "MappedFrames",
    "SpecialFrame",
]

#: The most frames one question for frame types may name (Xen answers E2BIG to more).
MAX_TYPE_BATCH = 1024


class HypervisorError(Exception):
    """The hypervisor refused something. ``operation``, ``domid`` and ``errno_name`` are for programs."""

    def __init__(
        self, sentence: str, *, operation: str, domid: int | None = None, errno_name: str = ""
    ) -> None:
        super().__init__(sentence)
        self.operation = operation
        self.domid = domid
        self.errno_name = errno_name


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """A domain as the hypervisor describes it; ``pages`` counts its 4 KiB pages."""

    domid: int
    pages: int
    paused: bool
    shutdown: bool
    dying: bool
    hvm: bool


@dataclass(frozen=True, slots=True)
class SpecialFrame:
    """A frame that belongs to the host and not to the guest's state, so the copies' may differ."""

    gfn: int
    owner: str
    reason: str


@dataclass(slots=True)
class MappedFrames:
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

    def clean_dirty(self, final: bool) -> DirtyBitmap:
        """Return the frames written since the last clean and forget them.

        ``final`` also reports the frames the hypervisor itself has mapped. The size is asked anew every time.
        """

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

    def close(self) -> None:
        """Give memory of this program back; the domain stays as it is."""
