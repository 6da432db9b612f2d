"""Everything that can go wrong for a restorer, at every point where it can.

From the first complete checkpoint on the copy stays as the last one has left it, until the parent has said yes to the next.
A primary that is gone makes it take over; a failure on this host does not. The points come from runs without a fault.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket

import pytest

from colo_helper.helper import spool
from colo_helper.helper.argv import NO_FD
from colo_helper.hypervisor.interface import PAGE_BYTES
from colo_helper.stream.libxc import RecordType
from tests.unit.colo_helper.fault_bench import STREAM, Bench, Point, Run, prepare
from tests.unit.colo_helper.fault_images import (
    asked,
    assert_ended,
    assert_failed,
    assert_took_over,
    image,
    records,
)
from tests.unit.colo_helper.fault_runs import (
    BASELINE,
    COLO,
    LIBXL,
    PLAIN_LIVE,
    REMUS,
    STOPPED,
    Mode,
    Restoring,
    checkpointed,
    every_mode,
)

#: Operations after which the copy is no longer what it was.
CHANGING = {"map_writable", "populate", "depopulate", "set_context", "set_tsc", "set_param", "set_cpu_policy"}


@pytest.fixture(autouse=True)
def on_the_bench(monkeypatch):
    prepare(monkeypatch)


# ------------------------------------------------------------------------------------------ the stream is cut short


@every_mode
def test_the_stream_ends(mode):
    whole = image(mode)
    for place in whole.places:
        run = Restoring(mode, whole.data[:place]).run()
        k = whole.complete(place)
        if whole.kept(place):
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
        k = whole.complete(
            place + len(LIBXL)
        )  # only the helper's own reads break: the parent still gets its part
        if k or whole.kept(place):
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
    whole = image(mode)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", FullDisk)
    monkeypatch.setattr(FullDisk, "room", 1 << 20)
    monkeypatch.setattr(FullDisk, "reads_fail", True)
    run = Restoring(mode, whole.data).run()
    assert_failed(
        run, "reading", (-1, errno.EIO), "that was kept in /var/tmp cannot be read back: Input/output error"
    )


def test_a_spool_directory_that_is_not_there(monkeypatch):
    whole = image(REMUS)
    monkeypatch.setattr(spool, "MEMORY_BYTES", 1)
    monkeypatch.setenv("COLO_SAVE_HELPER_SPOOL", "/nowhere")
    run = Restoring(REMUS, whole.data).run()
    assert_failed(
        run, "/nowhere", (-1, errno.ENOENT), "cannot be kept in /nowhere: No such file or directory"
    )
    assert run.domain.state() == whole.untouched[1]


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
            elif name == "checkpoint" and k == 1 and mode is not BASELINE:
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
