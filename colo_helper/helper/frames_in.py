"""Frames on their way in: populated where they are not there yet, and filled straight from where they come."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Container, Sequence

from bitarray import bitarray

from colo_helper.helper.errors import HelperError
from colo_helper.hypervisor.frames import FOUR_GIB_GFN
from colo_helper.hypervisor.interface import MAX_TYPE_BATCH, PAGE_BYTES, SUPERPAGE_ORDER, Domain
from colo_helper.stream.libxc import NORMAL, NOT_PRESENT, PageEntries, StreamError

_SUPERPAGE_FRAMES = 1 << SUPERPAGE_ORDER
_MAP_FRAMES = 1024
_ABSENT = frozenset({NOT_PRESENT})

#: Fills a view of guest memory, page after page in the order of the frames.
Fill = Callable[[memoryview], None]


class FrameReader:
    """Writes frames into a domain. ``limit`` is the first frame number that the domain cannot have.

    An HVM guest has its RAM from 0 with a hole below 4 GiB that is smaller than 4 GiB, and what belongs to its devices in
    that hole; so no frame of it lies beyond its allowed pages and 4 GiB. The stream's frame numbers are held against that
    before any memory is taken for them.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        info = domain.info()
        self.limit = info.max_pages + FOUR_GIB_GFN
        self._populated = bitarray(self.limit, endian="little")
        #: A domain that has memory at the start: which frames is asked as they come up.
        self._known: bitarray | None = bitarray(self.limit, endian="little") if info.pages else None
        self.superpages = 0

    def check(self, entries: PageEntries) -> None:
        """Raise StreamError when a frame is beyond what the domain can have."""
        highest = max(entries.gfns)
        if highest >= self.limit:
            raise StreamError(
                f"Frame {highest:#x} is named; domain {self._domain.domid} ends at {self.limit:#x}."
            )

    def apply(self, entries: PageEntries, fill: Fill, spare: Container[int] = ()) -> None:
        """Populate and fill the frames of one record; those in ``spare`` keep what they have.

        ``fill`` is called for the pages in order, for several at a time.
        """
        self.check(entries)
        if self._known is not None:
            self._ask(entries.gfns, self._known)
        self._populate(entries.populated_gfns)
        if NOT_PRESENT in entries.types:
            self._remove(entries)
        with_content = entries.content_gfns
        for start in range(0, len(with_content), _MAP_FRAMES):
            self._fill(with_content[start : start + _MAP_FRAMES], fill, spare)

    def clear(self, gfn: int) -> None:
        """Zero one frame, if it is there: a ring that nobody has used yet."""
        if gfn < self.limit and self._populated[gfn]:
            self._fill(array("Q", [gfn]), _zero, ())

    def _fill(self, gfns: array[int], fill: Fill, spare: Container[int]) -> None:
        with self._domain.map_frames(gfns, writable=True) as mapped:
            if mapped.failed:
                raise HelperError(
                    f"Frame {mapped.failed[0]:#x} of domain {self._domain.domid} cannot be mapped to be filled.",
                    errno.EFAULT,
                )
            kept = [index for index, gfn in enumerate(gfns) if gfn in spare] if spare else []
            start = 0
            for index in kept:
                fill(mapped.view[start * PAGE_BYTES : index * PAGE_BYTES])
                fill(memoryview(bytearray(PAGE_BYTES)))  # comes, but is not wanted
                start = index + 1
            fill(mapped.view[start * PAGE_BYTES :])

    def _ask(self, gfns: Sequence[int], known: bitarray) -> None:
        unknown = array("Q", (gfn for gfn in gfns if not known[gfn]))
        for start in range(0, len(unknown), MAX_TYPE_BATCH):
            batch = unknown[start : start + MAX_TYPE_BATCH]
            for gfn, kind in zip(batch, self._domain.frame_types(batch), strict=True):
                known[gfn] = 1
                self._populated[gfn] = kind == NORMAL

    def _populate(self, gfns: array[int]) -> None:
        populated = self._populated
        if not gfns:
            return
        first, end = gfns[0], gfns[-1] + 1
        whole_range = end - first == len(gfns)  # nearly always, while a guest is built
        missing = gfns
        if not whole_range or populated.count(1, first, end):
            missing = array("Q", (gfn for gfn in gfns if not populated[gfn]))
        if not missing:
            return
        if len(missing) >= _SUPERPAGE_FRAMES:
            missing = self._populate_superpages(missing)
        if missing:
            done = self._domain.populate(missing)
            if done != len(missing):
                raise HelperError(
                    f"Domain {self._domain.domid} got {done} of {len(missing)} frames; the host's memory or the domain's "
                    "limit is used up.",
                    errno.ENOMEM,
                )
            for gfn in missing:
                populated[gfn] = 1

    def _populate_superpages(self, missing: array[int]) -> array[int]:
        """Populate every whole, aligned 2 MiB in ``missing`` (ascending) at once; returns what is left."""
        starts, rest = _superpages(missing)
        if not starts:
            return missing
        done = self._domain.populate(starts, SUPERPAGE_ORDER)
        self.superpages += done
        for start in starts[:done]:
            self._populated[start : start + _SUPERPAGE_FRAMES] = 1
        for start in starts[done:]:  # the host has no more 2 MiB in one piece
            rest.extend(range(start, start + _SUPERPAGE_FRAMES))
        return rest

    def _remove(self, entries: PageEntries) -> None:
        """The guest has given frames back on the other side: take them away here as well."""
        absent = entries.of_types(_ABSENT)
        if not self._populated.count(1, min(absent), max(absent) + 1):
            return  # holes on both sides, nearly always
        # Each once: a record may name a frame twice, and the hypervisor would refuse the second.
        gone = array("Q", (gfn for gfn in dict.fromkeys(absent) if self._populated[gfn]))
        if gone:
            self._domain.depopulate(gone)
            for gfn in gone:
                self._populated[gfn] = 0


def _zero(view: memoryview) -> None:
    view[:] = bytes(len(view))


def _superpages(gfns: array[int]) -> tuple[array[int], array[int]]:
    """Return the starts of whole, aligned superpages among ascending frame numbers, and the numbers beside them."""
    starts, rest = array("Q"), array("Q")
    at = 0
    while at < len(gfns):
        end = at + _SUPERPAGE_FRAMES
        first = gfns[at]
        if (
            first % _SUPERPAGE_FRAMES == 0
            and end <= len(gfns)
            and gfns[end - 1] == first + _SUPERPAGE_FRAMES - 1
        ):
            starts.append(first)
            at = end
        else:
            rest.append(first)
            at += 1
    return starts, rest
