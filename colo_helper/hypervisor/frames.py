"""Where to look first for a domain's frames, so that not every hole is asked for."""

from __future__ import annotations

from typing import NamedTuple

#: The frame number of 4 GiB: an HVM guest's RAM goes on above it, its device memory lies below it.
FOUR_GIB_GFN = 1 << 20


class Window(NamedTuple):
    """``length`` frames from frame number ``start``."""

    start: int
    length: int


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
