"""Our helper over the real libxenctrl when something goes wrong: log-dirty is off, and the parent hears of the cause."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import termios
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from colo_helper.helper.argv import SaveRequest, StreamType, build
from colo_helper.helper.callout import HelperProcess
from colo_helper.helper.messages import Callback, read_message
from tests.stock.fakexen import FakeDomain, differing
from tests.stock.harness import LIVE, OURS, STOCK, Pair, Side, program, read_exact
from tests.stock.packages import Stock
from tests.stock.solo import restore, save

# An errno that nothing else here produces.
INJECTED = errno.EREMOTEIO
QEMU_OFF = "switch_qemu_logdirty 0"


@pytest.fixture
def guest(workdir: Path) -> FakeDomain:
    return FakeDomain.create_guest(workdir / "guest", 3, ram_pages=600)


def saved_to_null(stock: Stock, which: str, guest: FakeDomain, **keywords: object) -> Side:
    with open(os.devnull, "wb") as null:
        return save(stock, which, guest, null.fileno(), **keywords)  # type: ignore[arg-type]


def calls_of(side: Side, *, only_last: bool = False) -> list[tuple[str, int]]:
    """The first and the last call of every operation the helper made."""
    counts = Counter(op.name for op in side.operations)
    return sorted({(name, n) for name, count in counts.items() for n in (count if only_last else 1, count)})


def test_errno_of_every_operation_of_a_save_reaches_the_parent(
    stock: Stock, workdir: Path, guest: FakeDomain
) -> None:
    calls = calls_of(saved_to_null(stock, OURS, guest, log=workdir / "clean.log"))
    assert {"clean", "map", "types", "logdirty_on", "logdirty_off", "get_context"} <= {
        name for name, _ in calls
    }
    for name, n in calls:
        guest.resume()
        side = saved_to_null(stock, OURS, guest, faults=[f"{name}:{n}:{INJECTED}"])
        where = f"{name} number {n}: {side.outcome} {side.lines}"
        assert (side.result.exit_status, side.result.error) == (0, ""), where
        if name == "logdirty_on":
            # What the stock helper does, too: it may be half on for the video RAM, so off and once more.
            assert (side.result.retval, side.result.errnoval) == (0, 0), where
        else:
            assert (side.result.retval, side.result.errnoval) == (-1, INJECTED), where
            assert any(line.startswith("8 ") for line in side.lines), where
        if "switch_qemu_logdirty 1" in side.calls:
            assert side.calls[-1] == QEMU_OFF, where
        if name == "logdirty_off":
            guest.state.log_dirty = 0  # nothing more could be done about it than to say so
        assert not guest.log_dirty, where


def test_sigterm_at_every_operation_of_a_save(stock: Stock, workdir: Path, guest: FakeDomain) -> None:
    clean = saved_to_null(stock, OURS, guest, log=workdir / "clean.log")
    for name, n in calls_of(clean, only_last=True):
        guest.resume()
        side = saved_to_null(stock, OURS, guest, faults=[f"{name}:{n}:sig{int(signal.SIGTERM)}"])
        where = f"{name} number {n}: {side.outcome} {side.lines}"
        assert (side.result.exit_status, side.result.error) == (0, ""), where
        assert side.result.retval == -1 or name == "logdirty_off", where
        assert not guest.log_dirty, where
        if "switch_qemu_logdirty 1" in side.calls:
            assert side.calls[-1] == QEMU_OFF, where


def read_so_much(fd: int, count: int) -> None:
    while count > 0 and (data := os.read(fd, min(count, 1 << 16))):
        count -= len(data)
    os.close(fd)


def saved_to_reader_of(stock: Stock, which: str, guest: FakeDomain, count: int) -> Side:
    read_fd, write_fd = os.pipe()
    reader = threading.Thread(target=read_so_much, args=(read_fd, count))
    reader.start()
    side = save(stock, which, guest, write_fd)
    os.close(write_fd)
    reader.join()
    return side


@pytest.mark.parametrize("count", [0, 40, 300_000])
def test_a_peer_that_goes_away(stock: Stock, guest: FakeDomain, count: int) -> None:
    side = saved_to_reader_of(stock, OURS, guest, count)
    assert (side.result.retval, side.result.errnoval, side.result.exit_status) == (-1, errno.EPIPE, 0), (
        side.lines
    )
    assert side.calls[-1] == QEMU_OFF
    assert not guest.log_dirty


def test_the_stock_saver_dies_of_it_and_leaves_log_dirty_on(stock: Stock, guest: FakeDomain) -> None:
    side = saved_to_reader_of(stock, STOCK, guest, 300_000)
    assert side.result.exit_status == -signal.SIGPIPE
    assert QEMU_OFF not in side.calls
    assert guest.log_dirty


def terminate_in_suspend(side: Side) -> int:
    assert side.domain.log_dirty
    assert side.process is not None
    side.process.terminate()
    return 1


def test_sigterm_while_a_callback_is_served(stock: Stock, guest: FakeDomain) -> None:
    side = saved_to_null(stock, OURS, guest, answers={"suspend": terminate_in_suspend})
    assert (side.result.retval, side.result.exit_status) == (-1, 0), side.lines
    assert side.calls[-1] == QEMU_OFF
    assert not guest.log_dirty


def terminate_until_it_ends(side: Side) -> int:
    assert side.process is not None
    ended = os.pidfd_open(side.process.pid)
    # The first signal may come before the helper has begun to wait for the answer.
    while not select.select([ended], [], [], 0.1)[0]:
        side.process.terminate()
    os.close(ended)
    return 1


def test_the_stock_saver_takes_that_for_the_end_of_its_parent(stock: Stock, guest: FakeDomain) -> None:
    side = saved_to_null(stock, STOCK, guest, answers={"suspend": terminate_until_it_ends})
    assert side.result.exit_status == 254
    assert QEMU_OFF not in side.calls
    assert guest.log_dirty


def bytes_in(pipe_fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe_fd, termios.FIONREAD, bytes(4)), "little")


def test_sigterm_while_nobody_reads_the_stream(stock: Stock, guest: FakeDomain) -> None:
    read_fd, write_fd = os.pipe()
    blocked = threading.Event()

    def terminate_when_full(process: HelperProcess) -> None:
        # Nothing tells when a pipe is full, so it is looked at now and then.
        for _ in range(6000):
            if bytes_in(read_fd) > fcntl.fcntl(write_fd, fcntl.F_GETPIPE_SZ) - (64 << 10):
                blocked.set()
                break
            time.sleep(0.005)
        process.terminate()

    side = save(
        stock,
        OURS,
        guest,
        write_fd,
        on_start=lambda process: threading.Thread(target=terminate_when_full, args=(process,)).start(),
    )
    os.close(read_fd)
    os.close(write_fd)
    assert blocked.is_set()
    assert (side.result.retval, side.result.exit_status) == (-1, 0), side.lines
    assert side.calls == ["switch_qemu_logdirty 1", QEMU_OFF]
    assert not guest.log_dirty


def test_a_full_disk(stock: Stock, guest: FakeDomain) -> None:
    with open("/dev/full", "wb") as full:
        side = save(stock, OURS, guest, full.fileno())
    assert (side.result.retval, side.result.errnoval, side.result.exit_status) == (-1, errno.ENOSPC, 0), (
        side.lines
    )
    assert not guest.log_dirty


@pytest.mark.parametrize(
    ("stream_type", "answers", "retval"),
    [
        (StreamType.PLAIN, {"suspend": 0}, -1),
        (StreamType.PLAIN, {"switch_qemu_logdirty 1": 1}, -1),
        (StreamType.PLAIN, {QEMU_OFF: 1}, -1),
        (StreamType.REMUS, {"postcopy": 0}, 0),
        (StreamType.REMUS, {"postcopy": -3}, -3),
        (StreamType.REMUS, {"checkpoint": -4}, -4),
        (StreamType.COLO, {"checkpoint": 0}, -1),
        (StreamType.COLO, {"wait_checkpoint": -5}, -5),
    ],
    ids=str,
)
def test_a_parent_that_says_no_gets_the_stock_helpers_result(
    stock: Stock, guest: FakeDomain, stream_type: StreamType, answers: dict[str, int], retval: int
) -> None:
    results = []
    for which in (STOCK, OURS):
        guest.resume()
        side = saved_to_null(stock, which, guest, stream_type=stream_type, answers=answers)
        results.append((side.result.retval, side.result.exit_status))
        assert not guest.log_dirty
    # Of a device model that cannot be told to stop, the stock helper says nothing; ours reports it.
    assert results == [(0 if QEMU_OFF in answers else retval, 0), (retval, 0)]


def test_a_parent_that_is_gone(stock: Stock, guest: FakeDomain) -> None:
    with open(os.devnull, "wb") as null:
        helper = subprocess.Popen(
            [program(OURS, stock), *build(SaveRequest(3, LIVE), null.fileno(), -1, 0x88)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[null.fileno()],
            env=guest.env(stock.library_path),
        )
        assert helper.stdin and helper.stdout  # noqa: PT018
        fd = helper.stdout.fileno()
        while True:
            message = read_message(lambda count: read_exact(fd, count))
            if message.callback is Callback.SWITCH_QEMU_LOGDIRTY:
                os.write(helper.stdin.fileno(), bytes(4))
            if message.callback is Callback.SUSPEND:
                assert guest.log_dirty
                break
        helper.stdin.close()
        helper.stdout.close()
        assert helper.wait(20) == 254
    assert not guest.log_dirty


@pytest.fixture
def image(stock: Stock, workdir: Path, guest: FakeDomain) -> Path:
    """A plain image of the guest, by the stock saver."""
    path = workdir / "image"
    with path.open("wb") as file:
        assert save(stock, STOCK, guest, file.fileno()).result.retval == 0
    return path


def restored(stock: Stock, workdir: Path, image: Path, name: str, **keywords: object) -> Side:
    domain = FakeDomain.create(workdir / name, 4, max_pages=8192, frame_limit=0x101000)
    with image.open("rb") as file:
        return restore(stock, OURS, domain, file.fileno(), **keywords)  # type: ignore[arg-type]


def test_errno_of_every_operation_of_a_restore_reaches_the_parent(
    stock: Stock, workdir: Path, guest: FakeDomain, image: Path
) -> None:
    clean = restored(stock, workdir, image, "clean", log=workdir / "clean.log")
    assert clean.result.retval == 0, clean.lines
    assert differing(clean.domain.pages(), guest.pages()) == []
    calls = calls_of(clean)
    assert {"populate", "map", "set_policy", "set_context", "map_resource"} <= {name for name, _ in calls}
    for name, n in calls:
        side = restored(stock, workdir, image, f"{name}-{n}", faults=[f"{name}:{n}:{INJECTED}"])
        where = f"{name} number {n}: {side.outcome} {side.lines}"
        assert (side.result.exit_status, side.result.error) == (0, ""), where
        assert (side.result.retval, side.result.errnoval) == (-1, INJECTED), where


def test_sigterm_at_every_operation_of_a_restore(stock: Stock, workdir: Path, image: Path) -> None:
    clean = restored(stock, workdir, image, "clean", log=workdir / "clean.log")
    for name, n in calls_of(clean, only_last=True):
        side = restored(stock, workdir, image, f"{name}-{n}", faults=[f"{name}:{n}:sig{int(signal.SIGTERM)}"])
        where = f"{name} number {n}: {side.outcome} {side.lines}"
        assert (side.result.exit_status, side.result.error) == (0, ""), where
        # The last calls come when the stream has been read: the domain is complete, and the signal too late.
        assert side.result.retval == -1 or name in ("map_resource", "set_context", "set_param"), where


@pytest.mark.parametrize("kept", [10, 39, 60, 1_000_000])
def test_a_plain_image_that_ends_early(stock: Stock, workdir: Path, image: Path, kept: int) -> None:
    image.write_bytes(image.read_bytes()[:kept])
    side = restored(stock, workdir, image, "short")
    assert (side.result.retval, side.result.exit_status, side.result.error) == (-1, 0, ""), side.lines
    assert side.result.errnoval != 0
    assert side.results == [(0, 0)], "the parent waits for results also after a failure"


@pytest.mark.parametrize(
    "fault", ["clean:3", "types:last", "get_tsc:3", "get_context:last", "get_param:last"]
)
@pytest.mark.parametrize("stream_type", [StreamType.REMUS, StreamType.COLO], ids=["remus", "colo"])
def test_a_saver_that_fails_in_a_later_checkpoint_leaves_the_copy_as_it_was(
    stock: Stock, workdir: Path, stream_type: StreamType, fault: str
) -> None:
    """Whatever has been sent of the checkpoint is dropped: the backup goes on from the last complete one."""
    name, n = fault.split(":")
    if n == "last":
        clean = Pair(stock, workdir / "clean", OURS, OURS, stream_type, epochs=3, ram_pages=512, live=False)
        clean.run()
        n = str(sum(op.name == name for op in clean.saver.operations))
    pair = Pair(
        stock,
        workdir / "faulty",
        OURS,
        OURS,
        stream_type,
        epochs=3,
        ram_pages=512,
        live=False,
        saver_faults=(f"{name}:{n}:{INJECTED}",),
    )
    before: list[dict[int, bytes]] = []
    pair.hooks["restorer", "suspend", 2] = lambda: before.append(pair.restorer.domain.pages())
    pair.run()
    print(*pair.saver.lines, *pair.restorer.lines, sep="\n")
    assert (pair.saver.result.retval, pair.saver.result.errnoval) == (-1, INJECTED)
    assert pair.saver.calls[-1] == QEMU_OFF
    assert not pair.saver.domain.log_dirty
    assert pair.restorer.result.retval == 0, "it takes over"
    if stream_type is StreamType.COLO:
        # The secondary has run since: it goes on with its own memory.
        assert pair.restorer.calls.count("checkpoint") == 2
        assert pair.restorer.domain.pages() == before[0]
    else:
        assert differing(pair.restorer.domain.pages(), pair.snapshots[1].pages) == []
        assert pair.restorer.domain.context == pair.snapshots[1].context


@pytest.mark.parametrize("restorer", [OURS, STOCK])
@pytest.mark.parametrize("saver", [OURS, STOCK])
def test_a_saver_that_is_killed_in_the_middle_of_a_checkpoint(
    stock: Stock, workdir: Path, saver: str, restorer: str
) -> None:
    pair = Pair(
        stock,
        workdir,
        saver,
        restorer,
        StreamType.REMUS,
        saver_faults=(f"get_tsc:3:sig{int(signal.SIGKILL)}",),
    )
    pair.run()
    assert pair.saver.result.exit_status == -signal.SIGKILL
    assert pair.restorer.result.retval == 0
    assert differing(pair.restorer.domain.pages(), pair.snapshots[1].pages) == []
    assert pair.restorer.domain.context == pair.snapshots[1].context


@pytest.mark.parametrize("stream_type", [StreamType.REMUS, StreamType.COLO], ids=["remus", "colo"])
def test_a_restorer_that_is_killed_leaves_the_primary_running_without_log_dirty(
    stock: Stock, workdir: Path, stream_type: StreamType
) -> None:
    kill = f"set_tsc:2:sig{int(signal.SIGKILL)}"
    pair = Pair(stock, workdir, OURS, OURS, stream_type, dirty_pages=400, restorer_faults=(kill,))
    pair.run()
    assert pair.restorer.result.exit_status == -signal.SIGKILL
    # In COLO it is the parent that notices, waiting for the secondary to run, and its answer is no.
    remus, colo = (-1, errno.EPIPE), (0, 0)
    expected = remus if stream_type is StreamType.REMUS else colo
    assert (pair.saver.result.retval, pair.saver.result.errnoval) == expected, pair.saver.lines
    assert pair.saver.calls[-1] == QEMU_OFF
    assert not pair.saver.domain.log_dirty
