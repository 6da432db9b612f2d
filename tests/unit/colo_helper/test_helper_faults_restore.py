"""Everything that can go wrong for a restorer, at every point where it can.

From the first complete checkpoint on the copy stays as the last one has left it, until the parent has said yes to the next.
A primary that is gone makes it take over; a failure on this host does not. The points come from runs without a fault.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest

from colo_helper.helper import spool
from colo_helper.helper.argv import NO_FD
from colo_helper.hypervisor.interface import PAGE_BYTES
from colo_helper.stream.libxc import RecordType, pack_record
from tests.unit.colo_helper.fault_bench import (
    BASELINE,
    CHECKPOINTED,
    COLO,
    CONSOLE,
    EPOCHS,
    FRAMES,
    LIBXL,
    MODES,
    OWN_WRITES,
    PLAIN_LIVE,
    REMUS,
    STORE,
    STREAM,
    Bench,
    Mode,
    Point,
    Restoring,
    Run,
    Saving,
    inside,
    prepare,
)

every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
checkpointed = pytest.mark.parametrize("mode", CHECKPOINTED, ids=lambda mode: mode.name)
STOPPED = "The helper was told to stop (SIGTERM)."
#: Operations after which the copy is no longer what it was.
CHANGING = {"map_writable", "populate", "depopulate", "set_context", "set_tsc", "set_param", "set_cpu_policy"}


@pytest.fixture(autouse=True)
def on_the_bench(monkeypatch):
    prepare(monkeypatch)


@dataclass(frozen=True)
class Image:
    """What a saver of one mode has written, and what the copy is after each of its checkpoints.

    ``ends`` are the places behind each checkpoint and libxl's part of it. ``untouched[k]`` is the copy when it waits for
    checkpoint k + 1, ``taken_over[k]`` when it has taken over from checkpoint k; nothing is known of k = 0.
    """

    data: bytes
    ends: list[int]
    places: list[int]
    untouched: list[object]
    taken_over: list[object]
    seen: list[Point]

    @property
    def helpers_places(self) -> list[int]:
        """The places that the helper itself reads up to: not inside of libxl's part."""
        return [
            place for place in self.places if not any(end - len(LIBXL) < place < end for end in self.ends)
        ]

    def complete(self, place: int) -> int:
        """How many checkpoints are complete when the stream ends here."""
        return sum(end <= place for end in self.ends)


@cache
def image(mode: Mode) -> Image:
    saving = Saving(mode)
    data = saving.run().stream
    assert data.count(LIBXL) == len(saving.states) == (EPOCHS if mode.last else 0)
    ends = [at + len(LIBXL) for at in range(len(data)) if data.startswith(LIBXL, at)]
    restoring = Restoring(mode, data)
    run = restoring.run()
    assert (run.completed, run.side.broken, run.parent.errors) == ((0, 0), "", []), run
    assert run.bench.moved[STREAM] == len(data), "all of it has been read"
    taken_over: list[object] = [None]
    for k, end in enumerate(ends):
        there = Restoring(mode, data[:end]).run()
        assert there.completed == (0, 0)
        taken_over.append(there.domain.state())
        assert_is_checkpoint(mode, there, saving.states[k], k)
    places = list(inside(run.bench.pieces, len(data)))
    assert len(places) > 100
    return Image(data, ends, places, restoring.states, taken_over, run.bench.seen)


def assert_is_checkpoint(mode: Mode, run: Run, source: object, k: int) -> None:
    """The copy is the guest of checkpoint k + 1, and in COLO what it has done itself since."""
    memory, context, tsc, params = source
    if mode.colo:
        memory = dict(memory)
        for gfn in OWN_WRITES[k]:
            memory[gfn] = b"the secondary's own" + memory[gfn][len(b"the secondary's own") :]
    got = run.domain.state()
    assert got[0] == memory
    assert (got[1], got[2]) == (context, tsc)
    assert {index: got[3].get(index) for index in params} == params
    assert (run.domain.grants is None) is (mode is BASELINE)


def assert_ended(run: Run, where: object) -> None:
    note = f"{where}: {run}"
    assert (run.side.status, run.side.error, run.side.broken) == (0, None, ""), note
    assert run.domain.mapped_now == 0, note
    assert run.domain.journal[-1] == "close", note
    assert run.parent.called[-1] == "restore_results", note


def assert_failed(run: Run, where: object, completed: tuple[int, int], words: str) -> None:
    assert_ended(run, where)
    note = f"{where}: {run}"
    assert run.completed == completed, note
    assert any(number == completed[1] and words in text for number, text in run.parent.errors), note


def assert_took_over(run: Run, where: object, mode: Mode, k: int) -> None:
    assert_ended(run, where)
    note = f"{where}: {run}"
    assert (run.completed, run.parent.errors) == ((0, 0), []), note
    assert any("Failover" in line for line in run.parent.lines), note
    assert run.domain.state() == image(mode).taken_over[k], note
    assert run.parent.results[-1] == (STORE, CONSOLE), note


def asked(seen: list[Point], *kinds: str) -> list[Point]:
    found = [point for point in seen if point.what.split()[0] in kinds]
    assert found
    return found


# ------------------------------------------------------------------------------------------ the stream is cut short


@every_mode
def test_the_stream_ends(mode):
    whole = image(mode)
    for place in whole.places:
        run = Restoring(mode, whole.data[:place]).run()
        k = whole.complete(place)
        if k:
            assert_took_over(run, f"after {place} bytes", mode, k)
        else:
            libxls_part = run.parent.called.count("checkpoint")
            words, number = ("it answered 2", errno.EIO) if libxls_part else ("The stream ended", errno.EPIPE)
            assert_failed(run, f"after {place} bytes", (-1, number), words)
            assert run.domain.grants is None, "half a guest is not made runnable"


@checkpointed
def test_the_stream_breaks(mode):
    """As it does when the connection is reset: that is no end in order, but the primary is as lost."""
    whole = image(mode)

    for place in whole.helpers_places[1::3]:
        run = Restoring(mode, whole.data, Bench(Point(STREAM, place), Bench.reset_stream)).run()
        assert run.bench.fired, place
        if k := whole.complete(place):
            assert_took_over(run, f"after {place} bytes", mode, k)
        else:
            assert_failed(
                run, f"after {place} bytes", (-1, errno.ECONNRESET), "The stream broke while reading"
            )


@pytest.mark.parametrize("mode", [COLO, BASELINE], ids=lambda mode: mode.name)
def test_nobody_reads_the_back_channel(mode):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    run = Restoring(mode, image(mode).data, back_fd=write_fd).run()
    assert_took_over(run, "at the first list", mode, 1)


@pytest.mark.parametrize("mode", [COLO, BASELINE], ids=lambda mode: mode.name)
def test_no_back_channel(mode):
    run = Restoring(mode, image(mode).data, back_fd=NO_FD).run()
    assert_failed(run, "none", (-1, errno.EINVAL), "COLO needs a back channel")


# ------------------------------------------------------------------------------------------------ nonsense in the stream


@dataclass(frozen=True)
class Found:
    """A record in an image."""

    at: int
    kind: int
    body: bytes


def records(data: bytes) -> Iterator[Found]:
    at = 40
    while at < len(data):
        if data.startswith(LIBXL, at):
            at += len(LIBXL)
            continue
        kind, length = struct.unpack_from("<II", data, at)
        yield Found(at, kind, data[at + 8 : at + 8 + length])
        at += 8 + length + -length % 8


def header(kind: int, length: int) -> bytes:
    return struct.pack("<II", kind, length)


def entries(body: bytes, change: Callable[[list[int]], list[int]], count: int | None = None) -> bytes:
    """PAGE_DATA with other entries; the pages stay."""
    (claimed,) = struct.unpack_from("<I", body)
    numbers = list(struct.unpack_from(f"<{claimed}Q", body, 8))
    numbers = change(numbers)
    pages = body[8 + 8 * claimed :]
    return (
        struct.pack("<II", claimed if count is None else count, 0)
        + struct.pack(f"<{len(numbers)}Q", *numbers)
        + pages
    )


def page_faults(found: Found) -> Iterator[tuple[str, bytes, str]]:
    kind, body = found.kind, found.body
    yield "no pages", pack_record(kind, bytes(8)), "has no pages"
    yield "no count", pack_record(kind, b"\1\0\0\0"), "too few for its count"
    yield "128 MiB", header(kind, 128 << 20) + body, "PAGE_DATA record has 134217728 bytes"
    yield "too many pages", pack_record(kind, entries(body, lambda n: n, 1 << 20)), "claims 1048576 pages"
    yield "one page too many", header(kind, len(body) + PAGE_BYTES) + body, "of them with content, take"
    yield (
        "one page too few",
        pack_record(kind, body[: 8 + 8 * body[0]]),
        "of them with content, take" if len(body) > PAGE_BYTES else "",
    )
    yield (
        "beyond the domain",
        pack_record(kind, entries(body, lambda n: [(1 << 20) + 2 * FRAMES, *n[1:]])),
        "is named",
    )
    yield (
        "far beyond",
        pack_record(kind, entries(body, lambda n: [*n[:-1], n[-1] | (1 << 52) - 1])),
        "is named",
    )
    yield (
        "reserved",
        pack_record(kind, entries(body, lambda n: [n[0] | 1 << 52, *n[1:]])),
        "has reserved bits",
    )
    for nibble in (5, 6, 7, 8):
        wrong = entries(body, lambda n, nibble=nibble: [n[0] & (1 << 52) - 1 | nibble << 60, *n[1:]])
        yield f"type {nibble}", pack_record(kind, wrong), "has the invalid type"


def small_faults(found: Found) -> Iterator[tuple[str, bytes, str]]:
    kind, body = found.kind, found.body
    if kind == RecordType.X86_TSC_INFO:
        yield "a long TSC", pack_record(kind, body + bytes(8)), "A TSC record has 32 bytes"
        yield "no TSC", pack_record(kind), "A TSC record has 0 bytes"
    elif kind == RecordType.HVM_PARAMS:
        yield "no count", pack_record(kind), "too few for its count"
        yield "more params", pack_record(kind, b"\xff" + body[1:]), "claims 255 parameters"
        yield "fewer params", pack_record(kind, body[:-16]), "parameters"
        yield (
            "no such param",
            pack_record(kind, body[:8] + struct.pack("<Q", 1 << 32 | 1) + body[16:]),
            "0x100000001",
        )
    elif kind == RecordType.HVM_CONTEXT:
        yield "no context", b"", "The state of the CPUs has not come."
        yield "an empty context", pack_record(kind), "The state of the CPUs has not come."
        yield "a vast context", header(kind, (4 << 20) + 8) + body, "more than the 4194304 it may have"
    elif kind in (RecordType.X86_CPUID_POLICY, RecordType.X86_MSR_POLICY):
        yield "half a policy", pack_record(kind, body[:-8]), "not a multiple of"
        yield "no policy", pack_record(kind), "not a multiple of"
    elif kind == RecordType.COLO_OFFER:
        yield "half an offer", pack_record(kind, body[:4]), "An offer has 4 bytes"
    else:
        assert kind in (RecordType.STATIC_DATA_END, RecordType.CHECKPOINT, RecordType.END)
        yield "not empty", pack_record(kind, bytes(8)), "it must have none"


def inserted(kept: bool, version3: bool, checkpoint: bool) -> Iterator[tuple[str, bytes, str]]:
    """Records that cannot stand in front of this one. ``kept``: in a later checkpoint; ``checkpoint``: ... may end one."""
    yield "a PV record", pack_record(0x02, bytes(8)), "A record of the unknown type 0x2"
    yield "an unknown one", pack_record(0x7F), "A record of the unknown type 0x7f"
    yield "a vast unknown one", header(0x8000_7777, 5 << 20), "claims 5242880 bytes"
    yield "a list", pack_record(RecordType.CHECKPOINT_DIRTY_PFN_LIST, bytes(8)), "belongs on the back channel"
    yield "a bitmap", pack_record(RecordType.COLO_DIRTY_BITMAP, bytes(8)), "belongs on the back channel"
    yield (
        "a verification",
        pack_record(RecordType.VERIFY),
        "cannot be part of" if kept else "to be compared with",
    )
    yield "a toolstack record", pack_record(RecordType.TOOLSTACK, bytes(8)), "TOOLSTACK cannot be"
    yield "an overlong one", header(RecordType.HVM_CONTEXT, 0xFFFFFFFF), "a record has at most"
    if version3:
        again = "cannot be part of a checkpoint" if kept else "STATIC_DATA_END came a second time"
        yield "STATIC_DATA_END", pack_record(RecordType.STATIC_DATA_END), again
        where = "cannot be part of a checkpoint" if kept else "came where it must not"
        yield "a policy", pack_record(RecordType.X86_CPUID_POLICY, bytes(24)), where
    if kept:
        yield "an offer", pack_record(RecordType.COLO_OFFER, bytes(8)), "cannot be part of a checkpoint"
    if checkpoint:
        yield "CHECKPOINT", pack_record(RecordType.CHECKPOINT), "The state of the CPUs has not come"


@every_mode
def test_nonsense_in_the_stream(mode):
    whole = image(mode)
    cases = 0
    static_done = context = False
    for found in records(whole.data):
        k = whole.complete(found.at)
        faults = list(page_faults(found) if found.kind == RecordType.PAGE_DATA else small_faults(found))
        end = found.at + 8 + len(found.body) + -len(found.body) % 8
        for what, data, words in faults:
            if words:
                refused(mode, whole.data[: found.at] + data + whole.data[end:], (found, what), k, words)
                cases += 1
        context = context and found.at not in whole.ends
        for what, data, words in inserted(k > 0, static_done, not context and mode.last != ""):
            refused(mode, whole.data[: found.at] + data + whole.data[found.at :], (found, what), k, words)
            cases += 1
        static_done = static_done or found.kind == RecordType.STATIC_DATA_END
        context = context or found.kind == RecordType.HVM_CONTEXT
    assert cases > 100


def refused(mode: Mode, data: bytes, where: object, k: int, words: str) -> None:
    run = Restoring(mode, data).run()
    assert_failed(run, str(where)[:200], (-1, errno.EINVAL), words)
    assert run.parent.called.count("checkpoint") == k, (
        f"{where}: the parent was asked before all of it had been checked"
    )
    if k:
        assert run.domain.state() == image(mode).untouched[k], f"{where}: the copy is not what it was"


HEADERS = {
    "no marker": (0, b"\0", "its marker is missing"),
    "another ident": (8, b"LIBX", "its marker is missing"),
    "revision 4": (15, b"\4", "The image is of revision 4"),
    "big endian": (17, b"\1", "big endian"),
    "PV": (24, b"\1", "The image is of a PV guest"),
    "an unknown guest": (24, b"\7", "the unknown type 7"),
    "large pages": (28, b"\x15", "pages of 2^21 bytes"),
}


@every_mode
@pytest.mark.parametrize(("at", "data", "words"), HEADERS.values(), ids=HEADERS)
def test_headers_of_another_image(mode, at, data, words):
    whole = image(mode).data
    run = Restoring(mode, whole[:at] + data + whole[at + len(data) :]).run()
    assert_failed(run, words, (-1, errno.EINVAL), words)
    assert run.domain.journal == ["close"]


def test_a_policy_in_an_image_of_revision_2():
    whole = image(PLAIN_LIVE).data
    run = Restoring(PLAIN_LIVE, whole[:15] + b"\2" + whole[16:]).run()
    assert_failed(run, "revision 2", (-1, errno.EINVAL), "X86_CPUID_POLICY came where it must not")


@every_mode
def test_a_frame_that_is_given_back_twice(mode):
    """Odd, but not wrong; the hypervisor would refuse the second time."""
    whole = image(mode)
    gone = struct.pack("<IIQQ", 2, 0, *[12 | 0xF << 60] * 2)
    last = [found for found in records(whole.data) if found.kind == RecordType.X86_TSC_INFO][-1]
    run = Restoring(
        mode, whole.data[: last.at] + pack_record(RecordType.PAGE_DATA, gone) + whole.data[last.at :]
    ).run()
    assert run.completed == (0, 0), run
    assert run.domain.journal.count("depopulate") == 1
    assert 12 not in run.domain.memory


def test_a_checkpoint_in_a_plain_image():
    whole = image(PLAIN_LIVE).data
    run = Restoring(PLAIN_LIVE, whole[:-8] + pack_record(RecordType.CHECKPOINT) + LIBXL).run()
    assert_failed(run, "at the end", (-1, errno.EINVAL), "A checkpoint came in a plain image")
    assert run.domain.grants is None


@checkpointed
def test_more_frames_than_the_domain_may_have(mode):
    """The hypervisor refuses them: that is a failure of this host."""
    whole = image(mode)
    first = next(
        found
        for found in records(whole.data)
        if found.kind == RecordType.PAGE_DATA and found.at > whole.ends[0]
    )
    many = range(1000, 1000 + 2 * FRAMES)
    data = (
        struct.pack("<II", len(many), 0)
        + struct.pack(f"<{len(many)}Q", *many)
        + bytes(PAGE_BYTES * len(many))
    )
    run = Restoring(
        mode, whole.data[: first.at] + pack_record(RecordType.PAGE_DATA, data) + whole.data[first.at :]
    ).run()
    assert_failed(run, "too many", (-1, errno.ENOMEM), "the host's memory or the domain's limit is used up")


# ------------------------------------------------------------------------------------------------------ this host fails


def assert_as_it_was(mode: Mode, restoring: Restoring, run: Run, where: object) -> None:
    """Unless something of a checkpoint had begun to be applied, the copy is what the last one left."""
    k = len(restoring.states) - 1
    changed = CHANGING & set(run.domain.journal[restoring.journal_at : -1])
    if k >= 1 and not changed:
        assert run.domain.state() == image(mode).untouched[k], f"{where}: the copy is not what it was"


@every_mode
def test_an_operation_of_the_hypervisor_fails(mode):
    whole = image(mode)
    for point in asked(whole.seen, "op"):
        operation = point.what.split()[1]
        restoring = Restoring(mode, whole.data, faults={operation: point.nth - 1})
        run = restoring.run()
        assert_failed(run, point, (-1, errno.EIO), f"Xen refused to {operation} domain 9")
        if operation not in CHANGING:
            assert_as_it_was(mode, restoring, run, point)
        if operation == "clean":
            assert run.domain.state() == whole.taken_over[point.nth], point


def test_results_are_told_when_not_even_the_domain_can_be_described():
    run = Restoring(PLAIN_LIVE, image(PLAIN_LIVE).data, faults={"info": 0}).run()
    assert (run.parent.called, run.parent.results, run.completed) == (
        ["restore_results"],
        [(0, 0)],
        (-1, errno.EIO),
    )


class FullDisk:
    """A temporary file that takes ``room`` bytes, and may not give them back."""

    room = 0
    reads_fail = False

    def __init__(self, max_size, dir):  # noqa: A002
        self.data, self.at = bytearray(), 0

    def write(self, piece):
        if len(self.data) + len(piece) > type(self).room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.data += piece

    def seek(self, offset):
        self.at = offset

    def readinto(self, view):
        if type(self).reads_fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view[:] = self.data[self.at : self.at + len(view)]
        self.at += len(view)
        return len(view)

    def close(self):
        pass


@checkpointed
def test_no_room_to_keep_a_checkpoint(monkeypatch, mode):
    whole = image(mode)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", FullDisk)
    kept = [
        found
        for found in records(whole.data)
        if found.kind == RecordType.PAGE_DATA and found.at >= whole.ends[0]
    ]
    assert len(kept) >= 2
    most = max(len(found.body) for found in kept) // PAGE_BYTES
    for room in range(most):
        monkeypatch.setattr(FullDisk, "room", room * PAGE_BYTES)
        restoring = Restoring(mode, whole.data)
        run = restoring.run()
        assert_failed(
            run, f"room for {room} pages", (-1, errno.ENOSPC), "cannot be kept in /var/tmp: No space left"
        )
        assert run.domain.state() == whole.untouched[len(restoring.states)], room


@checkpointed
def test_a_kept_checkpoint_cannot_be_read_back(monkeypatch, mode):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", FullDisk)
    monkeypatch.setattr(FullDisk, "room", 1 << 20)
    monkeypatch.setattr(FullDisk, "reads_fail", True)
    run = Restoring(mode, image(mode).data).run()
    assert_failed(
        run, "reading", (-1, errno.EIO), "that was kept in /var/tmp cannot be read back: Input/output error"
    )


def test_a_spool_directory_that_is_not_there(monkeypatch):
    monkeypatch.setattr(spool, "MEMORY_BYTES", 1)
    monkeypatch.setenv("COLO_SAVE_HELPER_SPOOL", "/nowhere")
    run = Restoring(REMUS, image(REMUS).data).run()
    assert_failed(
        run, "/nowhere", (-1, errno.ENOENT), "cannot be kept in /nowhere: No such file or directory"
    )
    assert run.domain.state() == image(REMUS).untouched[1]


# ---------------------------------------------------------------------------------------------------------- SIGTERM


@every_mode
def test_sigterm_at_every_step(mode):
    whole = image(mode)
    seen = asked(whole.seen, "op", "ask", "read", "write")
    # When its end has been read, the domain is completed, or it takes over; both are short, and better than nothing.
    decided = max(at for at, point in enumerate(seen) if point.what == f"read {STREAM}") + 1
    for at, point in enumerate(seen[:-1]):
        restoring = Restoring(mode, whole.data, Bench(point, Bench.stop))
        run = restoring.run()
        assert run.bench.fired, point
        if at >= decided:
            assert (run.completed, run.domain.grants is None) == ((0, 0), mode is BASELINE), point
            continue
        assert_failed(run, point, (-1, errno.EINTR), STOPPED)
        assert_as_it_was(mode, restoring, run, point)


@every_mode
def test_sigterm_at_every_kind_of_place_in_the_stream(mode):
    whole = image(mode)
    for place in whole.helpers_places[1:]:
        run = Restoring(mode, whole.data, Bench(Point(STREAM, place), Bench.stop)).run()
        assert run.bench.fired, place
        assert_failed(run, f"after {place} bytes", (-1, errno.EINTR), STOPPED)
        # At the end of libxl's part its parent is still to say that it has come.
        if k := whole.complete(place - 1):
            assert run.domain.state() == whole.untouched[k], place


@pytest.mark.parametrize("action", [Bench.stop, Bench.lose_parent])
@checkpointed
def test_sigterm_and_a_lost_parent_while_idle(mode, action):
    """The copy waits for its next checkpoint, however long that takes."""
    whole = image(mode)
    for k, end in enumerate(whole.ends[:-1], start=1):
        bench = Bench(Point(f"wait {STREAM}", 1), action)
        read_fd, bench.peer_fd = os.pipe()
        fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.write(bench.peer_fd, whole.data[:end])
        run = Restoring(mode, bench=bench, stream_fd=read_fd).run()
        assert bench.fired
        assert run.domain.state() == whole.untouched[k]
        if action is Bench.stop:
            assert_failed(run, k, (-1, errno.EINTR), STOPPED)
        else:
            assert run.lost_parent, run


# -------------------------------------------------------------------------------------------------------- the parent


@every_mode
def test_the_parent_says_something_else(mode):
    whole = image(mode)
    for point in asked(whole.seen, "ask")[:-1]:
        name = point.what.split()[1]
        for answer in (0, 2, -1, 7):
            where = f"{answer} to {point}"
            if name == "static_data_done" and answer == 0:
                continue
            restoring = Restoring(mode, whole.data, answers={(name, point.nth): answer})
            run = restoring.run()
            k = len(restoring.states)
            if name == "static_data_done":
                assert_failed(run, where, (-1, errno.EIO), "could not complete the domain's static data")
            elif answer != 2:
                words = (
                    "could not complete the checkpoint"
                    if name == "checkpoint"
                    else f"{name} failed with {answer}"
                )
                assert_failed(run, where, (-1, errno.EIO), words)
                if name == "checkpoint" and k > 1:
                    assert run.domain.state() == whole.untouched[k - 1], where
            elif name == "checkpoint" and k == 1:
                assert_failed(run, where, (-1, errno.EIO), "it answered 2")
            elif name in ("checkpoint", "suspend"):
                assert_took_over(run, where, mode, k - (name == "checkpoint"))
            else:
                assert_ended(run, where)
                assert run.completed == (0, 0), where
                assert any(f"The parent lost the primary ({name})" in line for line in run.parent.lines)
            calls = [called for called in run.parent.called if called != "restore_results"]
            assert name == "static_data_done" or calls[-1] == name, f"{where}: it went on"


@every_mode
def test_the_parent_vanishes(mode):
    whole = image(mode)
    for point in asked(whole.seen, "ask", "tell"):
        run = Restoring(mode, whole.data, Bench(point, Bench.lose_parent)).run()
        assert run.bench.fired, point
        assert run.lost_parent, f"{point}: {run}"
        assert run.domain.mapped_now == 0, point
        assert run.domain.journal[-1] == "close", point


# ------------------------------------------------------------------------------------------------------------ sockets


@every_mode
def test_sockets_in_place_of_pipes(mode):
    """Of the saver only a small image fits into one; the restorer gets each."""
    whole = image(mode)
    near, far = socket.socketpair()
    back_near, back_far = socket.socketpair()
    with far, back_far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        far.setblocking(False)
        assert far.send(whole.data) == len(whole.data)
        far.shutdown(socket.SHUT_WR)
        run = Restoring(mode, whole.data, stream_fd=near.detach(), back_fd=back_near.detach()).run()
    assert run.completed == (0, 0), run
    assert run.domain.state() == Restoring(mode, whole.data).run().domain.state()
