"""Savers and restorers of a guest of a few pages, each alone on the fault bench, with a parent that keeps libxl's order."""

from __future__ import annotations

import os
import select
from array import array
from dataclasses import dataclass, field

import pytest

from colo_helper.helper.argv import FLAG_BASELINE, FLAG_LIVE, NO_FD, RestoreRequest, SaveRequest, StreamType
from colo_helper.hypervisor import abi
from colo_helper.hypervisor.interface import PAGE_BYTES, CpuPolicy, SpecialFrame, TscInfo
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import pack_bitmap
from colo_helper.stream.dirty_list import pack_dirty_list
from colo_helper.stream.libxc import RecordType, pack_record
from tests.unit.colo_helper.fault_bench import (
    BUFIOREQ,
    CONSOLE,
    FRAMES,
    IOREQ,
    RINGS,
    STORE,
    STREAM,
    Bench,
    BenchDomain,
    BenchParent,
    BenchServer,
    OpenFds,
    Run,
    attach,
    drained,
    memfd,
    pipe_with,
)
from tests.unit.colo_helper.helper_pair import Side

STOPPED = "The helper was told to stop (SIGTERM)."
RAM = 40
EPOCHS = 3
#: What stands for libxl's records behind a checkpoint; the parent reads it, and a helper that reads ahead breaks it.
LIBXL = b"libxl's part of a checkpoint    "
#: What the secondary writes while it runs after each checkpoint, and so what B names before the next one.
OWN_WRITES = ((3, 31), (5, 6), (7,))


# ------------------------------------------------------------------------------------------------------ the savers


@dataclass(frozen=True)
class Mode:
    """A way to save, and how the parent ends it in order: by the callback ``last``, the EPOCHS-th time."""

    name: str
    stream_type: StreamType
    flags: int
    last: str = ""

    @property
    def colo(self) -> bool:
        return self.stream_type is StreamType.COLO


PLAIN_LIVE = Mode("plain-live", StreamType.PLAIN, FLAG_LIVE)
PLAIN = Mode("plain", StreamType.PLAIN, 0)
REMUS = Mode("remus", StreamType.REMUS, FLAG_LIVE, "checkpoint")
COLO = Mode("colo", StreamType.COLO, FLAG_LIVE, "wait_checkpoint")
BASELINE = Mode("colo-baseline", StreamType.COLO, FLAG_BASELINE, "wait_checkpoint")
MODES = (PLAIN_LIVE, PLAIN, REMUS, COLO, BASELINE)
CHECKPOINTED = (REMUS, COLO, BASELINE)
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
checkpointed = pytest.mark.parametrize("mode", CHECKPOINTED, ids=lambda mode: mode.name)


def guest() -> BenchDomain:
    domain = BenchDomain(3, size_frames=FRAMES, max_pages=2 * FRAMES)
    for gfn in range(RAM):
        domain.guest_write(gfn, b"page %d" % gfn)
    for gfn in RINGS:
        domain.guest_write(gfn, b"\7" * PAGE_BYTES)
    domain.params = {
        abi.PARAM_STORE_PFN: STORE,
        abi.PARAM_CONSOLE_PFN: CONSOLE,
        abi.PARAM_IOREQ_PFN: IOREQ,
        abi.PARAM_BUFIOREQ_PFN: BUFIOREQ,
    }
    domain.specials = {gfn: SpecialFrame(gfn, "ring", "belongs to the host") for gfn in RINGS}
    domain.cpu_policy = CpuPolicy(bytes(range(24)) * 3, bytes(range(16)) * 2)
    return domain


def b_records(mode: Mode) -> list[bytes]:
    """B before the second and the third checkpoint, once in our form and once in upstream's.

    With a baseline the parent says before that what may differ from the start: nothing.
    """
    first, second = (
        pack_record(RecordType.COLO_DIRTY_BITMAP, pack_bitmap(DirtyBitmap.from_gfns(gfns, FRAMES)))
        for gfns in ((), OWN_WRITES[0])
    )
    later = [second, pack_dirty_list(array("Q", OWN_WRITES[1]))]
    return [first, *later] if mode is BASELINE else later


@dataclass
class Saving:
    """One saver to be run. ``stream_fd`` and ``back_fd`` None: a file, and a pipe with the right B in it."""

    mode: Mode
    bench: Bench = field(default_factory=Bench)
    answers: dict[tuple[str, int], int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    stream_fd: int | None = None
    back_fd: int | None = None
    #: Whether the parent adds its part to each checkpoint.
    with_libxl: bool = True
    #: The source after each checkpoint.
    states: list[object] = field(default_factory=list)

    def run(self) -> Run:
        mode, bench = self.mode, self.bench
        attach(bench)
        domain = guest()
        domain.faults = dict(self.faults)
        if mode is BASELINE:
            domain.pause_count, domain.log_dirty, domain.was_on = 1, True, True
            domain.dirty = {STORE}  # the mark of whoever turned it on
        parent = BenchParent("saver", domain, dict(self.answers))
        if mode.last:
            parent.answers.setdefault((mode.last, EPOCHS), 0)
        with OpenFds():
            is_file = self.stream_fd is None
            stream_fd = memfd() if self.stream_fd is None else self.stream_fd
            own_stream_fd = os.dup(stream_fd)
            back_fd = pipe_with(b"".join(b_records(mode))) if self.back_fd is None else self.back_fd
            parent.script = self._script(domain, own_stream_fd)
            request = SaveRequest(3, mode.flags, mode.stream_type)
            side = Side(parent, request, stream_fd, back_fd, BenchServer)
            bench.side.set_result(side)
            side.join()
            stream = os.pread(own_stream_fd, 1 << 24, 0) if is_file else b""
            if bench.peer_fd != NO_FD and self.stream_fd is not None:
                stream = drained(bench.peer_fd)
            os.close(own_stream_fd)
            bench.close_peer()
        return Run(side, bench, domain, parent, stream)

    def _script(self, domain, stream_fd):
        def suspend():
            epoch = len(self.states) + 1
            domain.context = b"context %d" % epoch
            domain.tsc = TscInfo(1, 2_100_000, 1000 * epoch, epoch)
            domain.params[abi.PARAM_IDENT_PT] = 0x100 * epoch
            domain.guest_write(epoch, b"written in epoch %d" % epoch)
            return 1

        def checkpoint():
            self.states.append(domain.state())
            try:
                self.bench.move(STREAM, os.write(stream_fd, LIBXL) if self.with_libxl else 0)
            except BrokenPipeError:
                return 0
            return 1

        return {"suspend": suspend, "checkpoint": checkpoint}


# ---------------------------------------------------------------------------------------------------- the restorers


def empty_target(max_pages: int = 2 * FRAMES) -> BenchDomain:
    return BenchDomain(9, size_frames=None, max_pages=max_pages)


def equal_target() -> BenchDomain:
    """A copy that was made before: equal to the guest at its start, paused, with rings of its own."""
    source, target = guest(), empty_target()
    target.memory = {gfn: bytearray(page) for gfn, page in source.memory.items()}
    target.params, target.specials = dict(source.params), source.specials
    target.memory[STORE][:4] = b"mine"
    target.pause_count = 1
    target.log_dirty, target.dirty = True, {STORE}
    return target


@dataclass
class Restoring:
    """One restorer to be run on an image."""

    mode: Mode
    image: bytes = b""
    bench: Bench = field(default_factory=Bench)
    answers: dict[tuple[str, int], int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    stream_fd: int | None = None
    back_fd: int | None = None
    #: The copy when the parent is asked about each checkpoint: as the one before has left it.
    states: list[object] = field(default_factory=list)
    #: How much the journal had at the last of these.
    journal_at: int = 0

    def run(self) -> Run:
        mode, bench = self.mode, self.bench
        attach(bench)
        target = equal_target() if mode is BASELINE else empty_target()
        target.faults = dict(self.faults)
        parent = BenchParent("restorer", target, dict(self.answers))
        with OpenFds():
            stream_fd = memfd(self.image) if self.stream_fd is None else self.stream_fd
            own_stream_fd = os.dup(stream_fd)
            drain_fd, back_fd = -1, self.back_fd
            if back_fd is None:
                drain_fd, back_fd = os.pipe()
            parent.script = self._script(target, parent, own_stream_fd)
            request = RestoreRequest(9, 5, 6, stream_type=mode.stream_type)
            side = Side(parent, request, stream_fd, back_fd, BenchServer)
            bench.side.set_result(side)
            side.join()
            back = b""
            if drain_fd != NO_FD:
                back = drained(drain_fd)
                os.close(drain_fd)
            os.close(own_stream_fd)
            bench.close_peer()
        return Run(side, bench, target, parent, self.image, back)

    def _script(self, target, parent, stream_fd):
        def checkpoint():
            self.states.append(target.state())
            self.journal_at = len(target.journal)
            self.bench.pieces.append((self.bench.moved[STREAM], len(LIBXL)))
            if not select.select([stream_fd], [], [], 0)[0]:
                return 2
            came = os.read(stream_fd, len(LIBXL))
            self.bench.move(STREAM, len(came))
            assert LIBXL.startswith(came), f"somebody has read too far: {came!r}"
            return 1 if came == LIBXL else 2

        def postcopy():
            target.log_dirty = True
            return 1

        def wait_checkpoint():
            for gfn in OWN_WRITES[parent.called.count("wait_checkpoint") - 1]:
                target.guest_write(gfn, b"the secondary's own")
            return 1

        return {"checkpoint": checkpoint, "postcopy": postcopy, "wait_checkpoint": wait_checkpoint}
