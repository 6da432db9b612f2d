"""Hashing a domain's memory, for the comparison of two copies."""

from __future__ import annotations

from array import array

from colo_helper.hypervisor.frames import Window
from colo_helper.hypervisor.interface import MAX_TYPE_BATCH, PAGE_BYTES, Domain
from colo_helper.memory.hashes import HashSet

#: Frames mapped at a time: 1 MiB of address space, 1 MiB of the peer's patience.
MAP_BATCH = 256


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


def hash_window(domain: Domain, window: Window) -> HashSet:
    """Return the hashes of the present frames of a window; holds one batch of pages at a time."""
    hashes = HashSet()
    everything = array("Q", range(window.start, window.start + window.length))
    found = present(domain, everything)
    for start in range(0, len(found), MAP_BATCH):
        batch = found[start : start + MAP_BATCH]
        with domain.map_frames(batch, writable=False) as mapped:
            missing = set(mapped.failed)
            for index, gfn in enumerate(batch):
                if gfn not in missing:
                    hashes.add(gfn, mapped.view[index * PAGE_BYTES : (index + 1) * PAGE_BYTES])
    return hashes
