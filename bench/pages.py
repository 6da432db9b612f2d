"""The page pipeline of the save helper on an emulated domain, against copying the same bytes once.

The domain's memory is one piece, and mapping a batch of it is a view of that piece, as it is with Xen. So what is timed is
the helper's own work on every page: batches, types, entries, records, and the kernel's part of the pipe.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.tables import machine, medians, seconds, table
from colo_helper.helper.argv import RestoreRequest, SaveRequest
from colo_helper.helper.fds import Fd, Stop
from colo_helper.helper.messages import Callback, Level
from colo_helper.helper.restore import Restorer
from colo_helper.helper.save import Saver
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES, DomainInfo, MappedFrames

GUEST_MIB = 512
PAGES = GUEST_MIB * 256
_PIECE_BYTES = 4 << 20
#: Moves memory to or from a descriptor.
Transfer = Callable[[bytearray, int], None]


@dataclass
class FlatDomain(EmulatedDomain):
    """An emulated domain whose RAM is one piece from frame 0, all of it there or none yet."""

    ram: bytearray = field(default_factory=bytearray)
    populated: int = 0

    def info(self) -> DomainInfo:
        """See Domain."""
        return DomainInfo(
            self.domid, self.populated, paused=True, shutdown=True, dying=False, hvm=True,
            shutdown_reason="suspend", max_pages=len(self.ram) // PAGE_BYTES,
        )  # fmt: skip

    def nr_frames(self) -> int:
        """See Domain."""
        return max(1, self.populated)

    def frame_types(self, gfns: array[int]) -> bytes:
        """See Domain: everything asked for here is there."""
        return bytes(len(gfns))

    def populate(self, extents: array[int], order: int = 0) -> int:
        """See Domain."""
        self.populated += len(extents) << order
        return len(extents)

    @contextmanager
    def map_frames(self, gfns: array[int], *, writable: bool) -> Iterator[MappedFrames]:
        """See Domain; only frames that follow each other can be mapped."""
        assert gfns[-1] - gfns[0] + 1 == len(gfns), writable
        with memoryview(self.ram) as view:
            yield MappedFrames(view[gfns[0] * PAGE_BYTES : (gfns[-1] + 1) * PAGE_BYTES], [])


class _Parent:
    """Says yes to everything."""

    def log(self, level: Level, text: str, errnoval: int | None = None) -> None: ...

    def progress(self, what: str, done: int, total: int, context: str = "") -> None: ...

    def serves(self, callback: Callback) -> bool:
        return callback is not Callback.STATIC_DATA_DONE

    def ask(self, callback: Callback, *_arguments: int) -> int:
        return int(callback is Callback.SUSPEND)

    def tell(self, callback: Callback, *arguments: int) -> None: ...


def _save(ram: bytearray, fd: int) -> None:
    domain = FlatDomain(1, ram=ram, populated=PAGES, context=b"context")
    stream = Fd(fd, "the stream", Stop(), writing=True)
    Saver(domain, SaveRequest(1), _Parent(), stream, None).run()
    stream.close()


def _restore(ram: bytearray, fd: int) -> None:
    domain = FlatDomain(2, ram=ram, context=b"")
    stream = Fd(fd, "the stream", Stop(), writing=False)
    Restorer(domain, RestoreRequest(2, 5, 6), _Parent(), stream, None, Path(tempfile.gettempdir())).run()


def _read_plainly(ram: bytearray, fd: int) -> None:
    target, at = memoryview(ram), 0
    while got := os.readv(fd, [target[at : at + _PIECE_BYTES]]):
        at += got


def _write_plainly(ram: bytearray, fd: int) -> None:
    source, at = memoryview(ram), 0
    while at < len(ram):
        at += os.write(fd, source[at : at + _PIECE_BYTES])


def to_null(ram: bytearray) -> float:
    """Save to where nobody reads: all of the saver's work but the kernel's copy."""
    fd = os.open(os.devnull, os.O_WRONLY)
    try:
        return seconds(lambda: _save(ram, fd))
    finally:
        os.close(fd)


def through_pipe(ram: bytearray, write: Transfer, read: Transfer) -> float:
    """Return how long it takes until another process has all of ``ram`` in memory that it had touched before."""
    data_read, data_write = os.pipe()
    word_read, word_write = os.pipe()
    fcntl.fcntl(data_write, fcntl.F_SETPIPE_SZ, 1 << 20)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(data_write)
            target = bytearray(b"\1") * len(ram)
            os.write(word_write, b"r")  # ready
            read(target, data_read)
            os.write(word_write, b"d")  # done
            status = int(target != ram)
        finally:
            os._exit(status)
    os.close(data_read)
    assert os.read(word_read, 1) == b"r"

    def both() -> None:
        write(ram, data_write)
        os.close(data_write)
        assert os.read(word_read, 1) == b"d"

    taken = seconds(both)
    _, status = os.waitpid(pid, 0)
    os.close(word_read)
    os.close(word_write)
    assert status == 0, "the other process failed, or has other pages"
    return taken


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="of which the median is taken")
    runs = parser.parse_args().runs
    ram = bytearray(os.urandom(1 << 20)) * GUEST_MIB
    target = memoryview(bytearray(len(ram)))

    def memcpy() -> float:
        def copy() -> None:
            target[:] = ram

        return seconds(copy)

    ways = {
        "memcpy": memcpy,
        "save to /dev/null": lambda: to_null(ram),
        "the bytes alone over a pipe": lambda: through_pipe(ram, _write_plainly, _read_plainly),
        "save to restore over a pipe": lambda: through_pipe(ram, _save, _restore),
    }
    times = dict(zip(ways, medians(runs, *ways.values()), strict=True))
    rows = [
        (way, f"{GUEST_MIB / taken:,.0f}", f"{PAGES / taken:,.0f}", f"{taken / times['memcpy']:.2f}")
        for way, taken in times.items()
    ]
    print(f"{GUEST_MIB} MiB of a guest, {machine()}, medians of {runs}.\n")
    print(table(("way", "MiB/s", "pages/s", "times memcpy"), rows))


if __name__ == "__main__":
    main()
