"""Our save helper against Debian's, on this machine, over the same fake domain and the same libxenctrl.

No hypervisor is involved: mapping a frame is an mmap and a hypercall a function call, so what is compared is the helpers'
own work: finding frames, moving bytes, talking to the parent. Both are started anew for every figure, and Python's start
counts. The guest stands idle; its memory is random.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.tables import LEAST_RUNS, machine, seconds, table
from tests.stock.fakexen import FakeDomain
from tests.stock.harness import OURS, STOCK, Side, working_directory
from tests.stock.packages import Stock, StockError, stock
from tests.stock.solo import restore, save

FRAMES_PER_MIB = 256
SIZES_MIB = (4, 128, 1024)  # the smallest shows what every run costs
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Figures:
    """One run of a helper: seconds on the clock, and of the helper's CPU time."""

    wall_s: float
    cpu_s: float


def measured(run: Callable[[], Side]) -> Figures:
    """Run one helper and take its figures; it must do what it was asked."""

    def act() -> None:
        side = run()
        assert side.result.succeeded, side.lines

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s = seconds(act)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Figures(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def save_to_null(stock_tools: Stock, which: str, guest: FakeDomain) -> Figures:
    """Save into /dev/null, which takes the bytes without looking at them."""
    guest.resume()
    with open(os.devnull, "wb") as null:
        return measured(lambda: save(stock_tools, which, guest, null.fileno()))


def save_to_pipe(stock_tools: Stock, which: str, guest: FakeDomain) -> Figures:
    """Save into a pipe that is read as fast as it can be."""
    guest.resume()
    read_fd, write_fd = os.pipe()

    def drain() -> None:
        buffer = bytearray(_READ_BYTES)
        while os.readv(read_fd, [buffer]):
            pass
        os.close(read_fd)

    reader = threading.Thread(target=drain)
    reader.start()
    figures = measured(lambda: save(stock_tools, which, guest, write_fd))
    os.close(write_fd)
    reader.join()
    return figures


def restore_from_file(stock_tools: Stock, which: str, image: Path, guest: FakeDomain) -> Figures:
    """Restore an image that lies in memory into a domain that has none."""
    state = guest.state
    with working_directory() as directory, image.open("rb") as file:
        domain = FakeDomain.create(directory / "copy", 4, state.max_pages, state.frame_limit)
        return measured(lambda: restore(stock_tools, which, domain, file.fileno()))


def rows_of(stock_tools: Stock, mib: int, runs: int) -> list[list[object]]:
    """Measure a guest of one size: both helpers take turns, and a first turn warms up."""
    with working_directory() as directory:
        guest = FakeDomain.create_guest(directory / "guest", 3, mib * FRAMES_PER_MIB)
        image = directory / "image"
        with image.open("wb") as file:
            assert save(stock_tools, STOCK, guest, file.fileno()).result.succeeded
        cases: dict[str, Callable[[str], Figures]] = {
            "save to /dev/null": lambda which: save_to_null(stock_tools, which, guest),
            "save to a pipe": lambda which: save_to_pipe(stock_tools, which, guest),
            "restore": lambda which: restore_from_file(stock_tools, which, image, guest),
        }
        rows: list[list[object]] = []
        for name, case in cases.items():
            turns = [(case(OURS), case(STOCK)) for _ in range(runs + 1)][1:]
            ours, theirs = (
                Figures(median(f.wall_s for f in side), median(f.cpu_s for f in side))
                for side in zip(*turns, strict=True)
            )
            rows.append(
                [
                    f"{mib} MiB, {name}",
                    f"{ours.wall_s:.3f}",
                    f"{theirs.wall_s:.3f}",
                    f"{ours.wall_s / theirs.wall_s:.2f}",
                    f"{ours.cpu_s:.3f}",
                    f"{theirs.cpu_s:.3f}",
                    f"{ours.cpu_s / theirs.cpu_s:.2f}",
                ]
            )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--mib", type=int, nargs="+", default=SIZES_MIB, help="sizes of the guest")
    arguments = parser.parse_args()
    if arguments.runs < LEAST_RUNS:
        parser.error(f"at least {LEAST_RUNS} runs are needed for a median")
    try:
        tools = stock()
    except StockError as error:
        sys.exit(str(error))
    rows = [row for mib in arguments.mib for row in rows_of(tools, mib, arguments.runs)]
    print(f"Save helper, {machine()}, medians of {arguments.runs}; seconds, and ours/stock.\n")
    print(table(("guest", "ours", "stock", "ratio", "ours CPU", "stock CPU", "ratio"), rows))


if __name__ == "__main__":
    main()
