"""The back channel: a secondary's dirty frames as a packed bitmap, against upstream's list of 8 bytes a frame.

Both ways begin with the bitmap that Xen gave the secondary and end with the primary's bitmap united with it. The list is
packed and read by this project's own code, which leaves the loops to C as well; upstream's is C throughout.
"""

from __future__ import annotations

import argparse
import time
from random import Random

from bench.tables import machine, medians, seconds, table
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import Encoding, pack_bitmap, unpack_bitmap
from colo_helper.stream.dirty_list import pack_dirty_list, parse_dirty_list

FRAMES_PER_GIB = 1 << 18
GUESTS_GIB = (4, 64)
SHARES = (0.001, 0.01, 0.1)
#: Frames that are dirtied together, on average: a guest's writes are not scattered.
RUN_FRAMES = 16
#: Bytes a second of a link of 1 Gbit/s, for the last column.
LINK = 125_000_000


def dirty_bitmap(frames: int, share: float, clustered: bool, rng: Random) -> DirtyBitmap:
    """Return a bitmap with about this share of its frames dirty."""
    wanted = int(frames * share)
    if not clustered:
        return DirtyBitmap.from_gfns(rng.sample(range(frames), wanted), frames)
    bitmap = DirtyBitmap.empty(frames)
    done = 0
    while done < wanted:
        length = min(wanted - done, 1 + int(rng.expovariate(1 / RUN_FRAMES)))
        start = rng.randrange(frames - length)
        bitmap.bits[start : start + length] = 1
        done += length
    return bitmap


def compare(gib: int, share: float, clustered: bool, runs: int) -> list[object]:
    """Return one row of the table: bytes, CPU time, and the time with a link between the two."""
    rng = Random(f"{gib} {share} {clustered}")
    frames = gib * FRAMES_PER_GIB
    a, b = (dirty_bitmap(frames, share, clustered, rng) for _ in range(2))
    union = DirtyBitmap(a.bits | b.bits)

    def ours() -> float:
        dirty = a.copy()
        taken = seconds(lambda: dirty.unite(unpack_bitmap(pack_bitmap(b), frames)), time.process_time)
        assert dirty == union
        return taken

    def theirs() -> float:
        dirty = a.copy()

        def merge() -> None:
            gfns = parse_dirty_list(memoryview(pack_dirty_list(b.gfns()))[8:], frames)
            dirty.bits[gfns.tolist()] = 1

        taken = seconds(merge, time.process_time)
        assert dirty == union
        return taken

    packed, listed = pack_bitmap(b), pack_dirty_list(b.gfns())
    our_s, their_s = medians(runs, ours, theirs)
    return [
        f"{gib} GiB, {share:.1%} {'clustered' if clustered else 'uniform'}",
        Encoding(packed[1]).name.lower(),
        f"{len(packed):,}",
        f"{len(listed):,}",
        f"{len(listed) / len(packed):.1f}",
        f"{our_s * 1000:.2f}",
        f"{their_s * 1000:.2f}",
        f"{their_s / our_s:.1f}",
        f"{(their_s + len(listed) / LINK) / (our_s + len(packed) / LINK):.1f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="of which the median is taken")
    runs = parser.parse_args().runs
    rows = [
        compare(gib, share, clustered, runs)
        for gib in GUESTS_GIB
        for share in SHARES
        for clustered in (True, False)
    ]
    print(f"Back channel, {machine()}, medians of {runs}; CPU time to pack, unpack and unite.\n")
    header = ("dirty", "as", "bytes", "list", "list/ours", "ms", "list ms", "list/ours", "and 1 Gbit/s")
    print(table(header, rows))


if __name__ == "__main__":
    main()
