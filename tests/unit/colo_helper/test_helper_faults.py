"""Everything that can go wrong for a saver, at every point where it can: the guest is never worse off for it.

After each of them log-dirty is off in Xen and in the device model, no page is mapped any more, no descriptor is open, the
guest's memory is as it was, and the parent knows what has happened. The points come from a run in which nothing failed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from array import array

import pytest

from colo_helper.helper import fds
from colo_helper.helper.argv import NO_FD
from colo_helper.helper.main import SILENCE_VARIABLE
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import pack_bitmap
from colo_helper.stream.dirty_list import pack_dirty_list
from colo_helper.stream.libxc import RecordType, pack_record, record_header
from tests.unit.colo_helper.fault_bench import (
    BACK,
    FRAMES,
    STREAM,
    Bench,
    Point,
    Run,
    inside,
    pipe_with,
    prepare,
)
from tests.unit.colo_helper.fault_runs import (
    BASELINE,
    CHECKPOINTED,
    COLO,
    EPOCHS,
    MODES,
    PLAIN_LIVE,
    STOPPED,
    Mode,
    Saving,
    b_records,
    every_mode,
)

every_colo = pytest.mark.parametrize("mode", [COLO, BASELINE], ids=lambda mode: mode.name)


@pytest.fixture(autouse=True)
def on_the_bench(monkeypatch):
    prepare(monkeypatch)


def assert_put_back(run: Run, where: object, *, off_failed: bool = False) -> None:
    """The guest is as it would be without a save; unless Xen refused even to log no more: then it may still do so.

    A saver that has not begun leaves the log of a baseline on, as it was.
    """
    note = f"{where}: {run}"
    qemu = [name for name in run.parent.called if name.startswith("qemu_logdirty")]
    assert qemu in ([], ["qemu_logdirty_on", "qemu_logdirty_off"]), note
    assert run.domain.log_dirty is (run.domain.was_on and (off_failed or not qemu)), note
    assert run.domain.mapped_now == 0, note
    assert run.domain.journal[-1] == "close", note
    assert {gfn: bytes(page) for gfn, page in run.domain.memory.items()} == run.domain.own, note
    assert run.side.broken == "", note


def assert_failed(run: Run, where: object, completed: tuple[int, int], words: str) -> None:
    """The parent knows that it failed, and why."""
    assert_put_back(run, where)
    assert_told(run, where, completed, words)


def assert_told(run: Run, where: object, completed: tuple[int, int], words: str) -> None:
    note = f"{where}: {run}"
    assert (run.completed, run.side.status, run.side.error) == (completed, 0, None), note
    assert any(number == completed[1] and words in text for number, text in run.parent.errors), note


def assert_done(run: Run, where: object) -> None:
    assert_put_back(run, where)
    assert (run.completed, run.side.status, run.side.error) == ((0, 0), 0, None), f"{where}: {run}"
    assert run.parent.errors == []


def clean_run(mode: Mode) -> Run:
    run = Saving(mode).run()
    assert_done(run, f"{mode.name} without a fault")
    return run


def points(run: Run, *kinds: str) -> list[Point]:
    found = [point for point in run.bench.seen if point.what.split()[0] in kinds]
    assert len(found) > 3
    return found


def places(run: Run) -> list[int]:
    found = [place for place in inside(run.bench.pieces, run.bench.moved[STREAM]) if place]
    assert len(found) > 50
    return found


# -------------------------------------------------------------------------------------------------- the hypervisor


@every_mode
def test_an_operation_of_the_hypervisor_fails(mode):
    for point in points(clean_run(mode), "op"):
        operation = point.what.split()[1]
        run = Saving(mode, faults={operation: point.nth - 1}).run()
        words = f"Xen refused to {operation} domain 3"
        if operation == "log_dirty_off":  # nothing more can be done about it than to say so
            assert_put_back(run, point, off_failed=True)
            assert_told(run, point, (-1, errno.EIO), words)
        else:
            assert_failed(run, point, (-1, errno.EIO), words)


@every_mode
def test_what_fails_first_is_told_when_putting_back_fails_as_well(mode):
    for operation in {point.what.split()[1] for point in points(clean_run(mode), "op")} - {"log_dirty_off"}:
        run = Saving(mode, faults={operation: 0, "log_dirty_off": 0}).run()
        asked = run.parent.called != []
        assert_put_back(run, operation, off_failed=True)
        assert run.completed == (-1, errno.EIO)
        texts = [text for _, text in run.parent.errors]
        assert f"to {operation} domain" in texts[-1], texts
        assert (len(texts) == 2 and "to log_dirty_off domain" in texts[0]) is asked, texts

        run = Saving(mode, faults={operation: 0}, answers={("qemu_logdirty_off", 1): 1}).run()
        assert_failed(run, operation, (-1, errno.EIO), f"to {operation} domain")
        assert any("stop logging" in text for _, text in run.parent.errors) is asked


@every_mode
def test_a_failure_that_nobody_has_thought_of(mode):
    def surprise(_bench):
        raise KeyError("surprise")

    for point in points(clean_run(mode), "op"):
        run = Saving(mode, Bench(point, surprise)).run()
        assert isinstance(run.side.error, KeyError), point
        assert_put_back(run, point, off_failed=point.what == "op log_dirty_off")


def test_no_memory():
    def exhaust(_bench):
        raise MemoryError

    run = Saving(PLAIN_LIVE, Bench(Point("op map", 2), exhaust)).run()
    assert_failed(run, "map", (-1, errno.ENOMEM), "no memory left")


# ------------------------------------------------------------------------------------------------------ the parent


def expected(mode: Mode, name: str, answer: int) -> tuple[tuple[int, int], str]:
    """What the parent hears after an answer that is not the usual one; without words it is an end in order."""
    if name.startswith("qemu"):
        return (-1, errno.EIO), "could not make the device model"
    if mode is BASELINE and name == "suspend" and answer:  # it stands still already
        return (0, 0), ""
    if name == "suspend":
        return (
            -1,
            errno.EIO,
        ), "could not suspend" if answer == 0 else "is not suspended, although the parent says so"
    if mode.colo and name == "checkpoint":
        return ((-1, errno.EIO), "could not complete the checkpoint") if answer == 0 else ((0, 0), "")
    return ((answer, errno.EIO), f"The parent's {name} failed with {answer}.") if answer else ((0, 0), "")


@every_mode
def test_the_parent_says_no(mode):
    for point in points(clean_run(mode), "ask")[:-1]:
        name = point.what.split()[1]
        for answer in (1, -1) if name.startswith("qemu") else (0, -1, -7):
            where = f"{answer} to {point}"
            run = Saving(mode, answers={(name, point.nth): answer}).run()
            completed, words = expected(mode, name, answer)
            if words:
                assert_failed(run, where, completed, words)
            else:
                assert_done(run, where)
            if words or answer == 0:
                cleanup = [called for called in run.parent.called if called != "qemu_logdirty_off"]
                assert cleanup.count(name) == (0 if name == "qemu_logdirty_off" else point.nth), where
                assert name == "qemu_logdirty_off" or cleanup[-1] == name, f"{where}: it went on"


@every_mode
def test_the_parent_vanishes(mode):
    for point in points(clean_run(mode), "ask", "tell"):
        run = Saving(mode, Bench(point, Bench.lose_parent)).run()
        assert run.bench.fired, point
        assert run.lost_parent, f"{point}: {run}"
        assert not run.domain.log_dirty, point
        assert run.domain.mapped_now == 0, point
        assert run.domain.journal[-1] == "close", point


def test_a_parent_that_serves_too_little_is_refused_before_anything_is_touched(monkeypatch):
    monkeypatch.setattr("colo_helper.helper.callout.served_bits", lambda _request: 8)
    run = Saving(PLAIN_LIVE).run()
    assert_failed(
        run, "without a callback", (-1, errno.EIO), "does not serve the callback switch_qemu_logdirty"
    )
    assert run.parent.called == []
    assert "log_dirty_on" not in run.domain.journal


# ------------------------------------------------------------------------------------------------------ SIGTERM


@every_mode
def test_sigterm_at_every_step(mode):
    clean = clean_run(mode)
    seen = points(clean, "op", "ask", "write", "read")
    # From here on the save has been decided: the image is complete, or the parent has ended it.
    if mode.last:
        decided = seen.index(Point(f"ask {mode.last}", EPOCHS))
    else:
        decided = max(at for at, point in enumerate(seen) if point.what == f"write {STREAM}") + 1
    for at, point in enumerate(seen):
        run = Saving(mode, Bench(point, Bench.stop)).run()
        assert run.bench.fired, point
        if at >= decided:
            assert_done(run, point)
            continue
        assert_failed(run, point, (-1, errno.EINTR), STOPPED)
        asked = [name for name in run.parent.called if name != "qemu_logdirty_off"]
        if point.what.startswith("ask"):
            assert asked[-1] == point.what.split()[1], f"{point}: no other callback follows"
            last = run.bench.seen.index(point)
            after = [other.what for other in run.bench.seen[last + 1 :] if other.what.startswith("op")]
            assert after == ["op log_dirty_off"], f"{point}: nothing more is done to the guest"


@every_mode
def test_sigterm_at_every_kind_of_place_in_the_stream(mode):
    for place in places(clean_run(mode)):
        run = Saving(mode, Bench(Point(STREAM, place), Bench.stop)).run()
        assert run.bench.fired, place
        assert_failed(run, f"after {place} bytes", (-1, errno.EINTR), STOPPED)


@pytest.mark.parametrize("action", [Bench.stop, Bench.lose_parent])
@pytest.mark.parametrize(
    ("mode", "name"), [*((mode, STREAM) for mode in MODES), (COLO, BACK), (BASELINE, BACK)]
)
def test_sigterm_and_a_lost_parent_end_a_wait_for_the_peer(monkeypatch, mode, name, action):
    monkeypatch.setattr(fds, "_PIPE_BYTES", 0)
    read_fd, write_fd = os.pipe()
    bench = Bench(Point(f"wait {name}", 1), action)
    if name == STREAM:
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
        bench.peer_fd, kept = read_fd, {"stream_fd": write_fd}
    else:
        bench.peer_fd, kept = write_fd, {"back_fd": read_fd}
    run = Saving(mode, bench, with_libxl=False, **kept).run()
    if action is Bench.stop:
        assert_failed(run, name, (-1, errno.EINTR), STOPPED)
    else:
        assert run.lost_parent, run
        assert not run.domain.log_dirty


# ------------------------------------------------------------------------------------------- the stream and its peer


def to_pipe(mode: Mode, bench: Bench) -> Run:
    """Save into a pipe that holds all of the stream, and whose reader the bench may close."""
    bench.peer_fd, write_fd = os.pipe()
    return Saving(mode, bench, stream_fd=write_fd).run()


@every_mode
def test_the_peer_vanishes(mode):
    for place in places(clean_run(mode)):
        run = to_pipe(mode, Bench(Point(STREAM, place), Bench.close_peer))
        assert run.bench.fired, place
        assert_failed(run, f"after {place} bytes", (-1, errno.EPIPE), "The stream broke while writing")


@every_mode
def test_nobody_reads_from_the_start(mode):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    run = Saving(mode, stream_fd=write_fd).run()
    assert_failed(run, "at the start", (-1, errno.EPIPE), "The stream broke while writing")
    assert run.parent.called == ["qemu_logdirty_on", "qemu_logdirty_off"]


@every_mode
def test_the_disk_fills_up(mode):
    for place in places(clean_run(mode))[::3]:
        run = Saving(mode, Bench(Point(STREAM, place), Bench.fill_disk)).run()
        assert run.bench.fired, place
        assert_failed(
            run, f"after {place} bytes", (-1, errno.ENOSPC), "The stream broke while writing: No space"
        )


@every_mode
def test_a_device_that_is_full(mode):
    run = Saving(mode, stream_fd=os.open("/dev/full", os.O_WRONLY)).run()
    assert_failed(run, "/dev/full", (-1, errno.ENOSPC), "The stream broke while writing: No space")


@pytest.mark.parametrize("mode", CHECKPOINTED, ids=lambda mode: mode.name)
@pytest.mark.parametrize("pipe_bytes", [1 << shift for shift in (12, 13, 14, 15)])
def test_a_peer_that_does_not_read(monkeypatch, mode, pipe_bytes):
    monkeypatch.setenv(SILENCE_VARIABLE, "0.02")
    monkeypatch.setattr(fds, "_PIPE_BYTES", 0)
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, pipe_bytes)
    bench = Bench()
    bench.peer_fd = read_fd
    run = Saving(mode, bench, stream_fd=write_fd, with_libxl=False).run()
    assert_failed(run, pipe_bytes, (-1, errno.ETIMEDOUT), "The stream: nothing moved for 0.02 s.")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "86401"])
def test_a_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv(SILENCE_VARIABLE, text)
    run = Saving(COLO).run()
    assert_failed(
        run, text, (-1, errno.EINVAL), f"{SILENCE_VARIABLE} is {text!r}; it must be a number of seconds"
    )
    assert run.parent.called == []
    assert_done(Saving(PLAIN_LIVE).run(), "a plain save has no such limit")


def by_sockets(bench: Bench) -> Run:
    """Save the small image of a baseline, which fits into a socket, and read it if the bench has not closed it."""
    near, far = socket.socketpair()
    back_near, back_far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    bench.peer_fd = far.detach()
    with back_far:
        back_far.send(b"".join(b_records(BASELINE)))
        return Saving(BASELINE, bench, stream_fd=near.detach(), back_fd=back_near.detach()).run()


def test_sockets_in_place_of_pipes():
    """ssh and inetd may hand these over."""
    clean = clean_run(BASELINE)
    run = by_sockets(Bench())
    assert_done(run, "sockets")
    assert run.stream == clean.stream
    for place in places(clean)[::4]:
        run = by_sockets(Bench(Point(STREAM, place), Bench.stop))
        assert_failed(run, place, (-1, errno.EINTR), STOPPED)
        run = by_sockets(Bench(Point(STREAM, place), Bench.close_peer))
        assert_failed(run, place, (-1, errno.EPIPE), "The stream broke while writing")


# ------------------------------------------------------------------------------------------------- the back channel

PACKED = b_records(COLO)[0]
LIST_OF_THREE = pack_dirty_list(array("Q", (3, 4, 5)))


def listed(*gfns: int) -> bytes:
    return pack_dirty_list(array("Q", gfns))


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


BEYOND = pack_record(RecordType.COLO_DIRTY_BITMAP, pack_bitmap(DirtyBitmap.from_gfns([FRAMES], FRAMES + 8)))
NONSENSE = {
    "a frame beyond the guest in a list": (listed(1, FRAMES), "ends at 0x40"),
    "a frame far beyond the guest in a list": (listed(1, 1 << 60), "ends at 0x40"),
    "a frame beyond the guest in a bitmap": (BEYOND, "cannot be used"),
    "a list longer than the guest": (
        record_header(RecordType.CHECKPOINT_DIRTY_PFN_LIST, 8 * FRAMES + 8),
        "has 65 entries; the guest has 64 frames",
    ),
    "a list of half a frame": (
        record_header(RecordType.CHECKPOINT_DIRTY_PFN_LIST, 12) + bytes(12),
        "12 bytes",
    ),
    "a bitmap longer than the guest's": (
        record_header(RecordType.COLO_DIRTY_BITMAP, 1 << 26),
        "are the most for",
    ),
    "a record that claims too much": (b"\x0e\0\0\0\xff\xff\xff\xff", "CHECKPOINT claims"),
    "a record of the forward stream": (
        pack_record(RecordType.CHECKPOINT),
        "CHECKPOINT came on the back channel",
    ),
    "libxl's record": (pack_record(5, b"\1\0\0\0"), "type 0x5 came on the back channel"),
    "zeros": (bytes(64), "END came on the back channel"),
    "text": (b"migration receiver stream contained", "claims"),
} | {f"a bitmap damaged at {at}": (damaged(PACKED, at), "cannot be used") for at in range(8, 8 + PACKED[4])}


@every_colo
@pytest.mark.parametrize("epoch", [2, 3])
def test_nonsense_on_the_back_channel(mode, epoch):
    good = b"".join(b_records(mode)[: epoch - (1 if mode is BASELINE else 2)])
    for what, (data, words) in NONSENSE.items():
        run = Saving(mode, back_fd=pipe_with(good + data)).run()
        assert_failed(run, what, (-1, errno.EIO), words)
        # From a baseline, B comes before the guest is stopped.
        assert run.parent.called.count("suspend") == epoch - (mode is BASELINE), what


@every_colo
def test_the_back_channel_ends(mode):
    whole = b"".join(b_records(mode))
    for place in range(len(whole)):
        run = Saving(mode, back_fd=pipe_with(whole[:place])).run()
        assert_failed(run, f"after {place} bytes", (-1, errno.EPIPE), "The back channel ended")


@every_colo
@pytest.mark.parametrize("came", [b"", *(b_records(COLO)[0][:length] for length in (4, 8, 20))])
def test_a_secondary_that_sends_nothing_more(monkeypatch, mode, came):
    monkeypatch.setenv(SILENCE_VARIABLE, "0.02")
    bench = Bench()
    read_fd, bench.peer_fd = os.pipe()
    os.write(bench.peer_fd, came)
    run = Saving(mode, bench, back_fd=read_fd).run()
    assert_failed(run, came, (-1, errno.ETIMEDOUT), "The back channel: nothing moved for 0.02 s.")


@every_colo
def test_no_back_channel(mode):
    run = Saving(mode, back_fd=NO_FD).run()
    assert_failed(run, "no descriptor", (-1, errno.EINVAL), "COLO needs a back channel")
    assert run.parent.called == []
