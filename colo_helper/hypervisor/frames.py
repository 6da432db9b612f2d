"""Finding and reading a domain's present frames without asking for every hole."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from colo_helper.hypervisor.interface import MAX_TYPE_BATCH, PAGE_BYTES, Domain
from colo_helper.memory.hashes import HashSet

#: The frame number of 4 GiB: an HVM guest's RAM goes on above it, its device memory lies below it.
FOUR_GIB_GFN = 1 << 20
#: Frames mapped at a time: 1 MiB of address space, 1 MiB of the peer's patience.
MAP_BATCH = 256


@dataclass(frozen=True, slots=True)
class Window:
    """``count`` frames from frame number ``start``."""

    start: int
    count: int


def search_order(nr_frames: int, pages: int, window_frames: int) -> list[Window]:
    """Return windows that cover all frames once, the likely full ones first.

    An HVM guest has RAM from frame 0, then video RAM and special pages just below 4 GiB, then the rest of its RAM
    above 4 GiB. ``pages`` is how many it has. With 4 GiB or less almost all of the space between is holes, so a walk
    in this order meets the last page long before it has seen all windows.
    """
    below = min(nr_frames, FOUR_GIB_GFN)
    likely = min(below, pages)

    def split(start: int, end: int) -> list[Window]:
        return [Window(at, min(window_frames, end - at)) for at in range(start, end, window_frames)]

    return split(0, likely) + split(likely, below)[::-1] + split(below, nr_frames)


def present(domain: Domain, gfns: array[int]) -> array[int]:
    """Return those of ``gfns`` that are ordinary memory of the guest, in the same order."""
    found = array("Q")
    for start in range(0, len(gfns), MAX_TYPE_BATCH):
        batch = gfns[start : start + MAX_TYPE_BATCH]
        types = domain.frame_types(batch)
        here = types.count(0)
        if here == len(batch):
            found.extend(batch)
        elif here:  # all holes is what a walk over a small guest mostly meets
            found.extend(gfn for gfn, kind in zip(batch, types, strict=True) if kind == 0)
    return found


def batches(gfns: array[int], size: int = MAP_BATCH) -> Iterator[array[int]]:
    """Yield ``gfns`` in parts of at most ``size``."""
    for start in range(0, len(gfns), size):
        yield gfns[start : start + size]


def hash_window(domain: Domain, window: Window) -> HashSet:
    """Return the hashes of the present frames of a window; holds one batch of pages at a time."""
    hashes = HashSet()
    everything = array("Q", range(window.start, window.start + window.count))
    for batch in batches(present(domain, everything)):
        with domain.map_frames(batch, writable=False) as mapped:
            missing = set(mapped.failed)
            for index, gfn in enumerate(batch):
                if gfn not in missing:
                    hashes.add(gfn, mapped.view[index * PAGE_BYTES : (index + 1) * PAGE_BYTES])
    return hashes
