"""Two save helpers at once, ours or Debian's, over two fake domains: the test is both guests and both libxls.

The two libxls exchange their own records over the same two pipes as the helpers (XEN's libxl_stream_*.c and
libxl_colo_*.c), read exactly and checked: a helper that reads one byte too many breaks the run.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from colo_helper.helper.argv import RestoreRequest, SaveRequest, StreamType
from colo_helper.helper.callout import HelperProcess, Outcome
from tests.stock import fakexen
from tests.stock.fakexen import FakeDomain
from tests.stock.packages import Stock

SAVER_DOMID, RESTORER_DOMID = 5, 7
STORE_PORT, CONSOLE_PORT = 3, 4
LIVE = 1
OURS, STOCK = "ours", "stock"

# Records of libxl: u32 type, u32 length, body padded to 8.
RECORD_END, EMULATOR_CONTEXT, CHECKPOINT_END, CHECKPOINT_STATE = 0, 3, 4, 5
CHECKPOINT_NEW, SVM_SUSPENDED, SVM_READY, SVM_RESUMED = range(4)

#: How long any run may take before it counts as hung.
DEADLINE_S = 60


def program(which: str, stock: Stock) -> str:
    """Return the path of a helper."""
    if which == STOCK:
        return str(stock.helper)
    ours = Path(sys.executable).with_name("colo-save-helper")
    if not ours.exists():
        raise FileNotFoundError(f"{ours} is missing: make setup installs it.")
    return str(ours)


@contextmanager
def working_directory() -> Iterator[Path]:
    """Yield a directory in memory: a fake domain is a sparse file of 4 GiB and more."""
    path = Path(tempfile.mkdtemp(prefix="fakexen.", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def read_exact(fd: int, count: int) -> bytes:
    """Read so many bytes; raises EOFError."""
    data = b""
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def write_record(fd: int, kind: int, body: bytes = b"") -> None:
    """Write one record of libxl."""
    os.write(fd, struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8))


def expect_record(fd: int, kind: int) -> bytes:
    """Read one record of libxl and check that it is the one that is due."""
    found, length = struct.unpack("<II", read_exact(fd, 8))
    assert (found, length < 1 << 16) == (kind, True), (
        f"libxl record {found} of {length} bytes instead of {kind}"
    )
    return read_exact(fd, length + -length % 8)[:length]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of a guest that a checkpoint has to carry."""

    pages: dict[int, bytes]
    context: bytes
    tsc: tuple[int, int, int, int]
    params: dict[int, int]

    @classmethod
    def of(cls, domain: FakeDomain) -> Snapshot:
        """Take one of a domain that stands still. Event channel ports belong to the host."""
        ports = (fakexen.PARAM_STORE_EVTCHN, fakexen.PARAM_CONSOLE_EVTCHN)
        params = {index: value for index, value in domain.params.items() if index not in ports}
        return cls(domain.pages(), domain.context, domain.tsc, params)


def dirty_some(domain: FakeDomain, seed: int, count: int) -> None:
    """Be the guest for a while: write into random frames, some of them twice."""
    generator = random.Random(seed)
    for gfn in generator.choices(domain.guest_gfns(), k=count):
        domain.write(gfn, generator.randbytes(64), generator.randrange(0, fakexen.PAGE - 64))


@dataclass(slots=True)
class Side:
    """One helper and what its libxl saw. A hook may replace the answer to a callback (see ``Pair.hooks``)."""

    name: str
    domain: FakeDomain
    log_path: Path
    calls: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    results: list[tuple[int, int]] = field(default_factory=list)
    outcome: Outcome | None = None
    failure: BaseException | None = None
    process: HelperProcess | None = None

    @property
    def operations(self) -> list[fakexen.Operation]:
        """What the helper asked of the hypervisor."""
        return fakexen.operations(self.log_path)

    @property
    def result(self) -> Outcome:
        """The outcome; raises what went wrong in the parent instead, if anything did."""
        if self.failure is not None:
            raise self.failure
        assert self.outcome is not None
        return self.outcome


class _Parent:
    """What both parents have: they write down every call and let a hook answer first."""

    def __init__(self, pair: Pair, side: Side) -> None:
        self.pair = pair
        self.side = side
        self.epoch = 0

    def _called(self, name: str) -> int | None:
        self.side.calls.append(name)
        hook = self.pair.hooks.get((self.side.name, name, self.side.calls.count(name)))
        return hook() if hook else None

    def log(self, level: int, errnoval: int | None, context: str, text: str) -> None:
        self.side.lines.append(f"{level} {context}: {text}")

    def progress(self, context: str, what: str, done: int, total: int) -> None:
        pass


def _no_when_gone(callback: Callable[[_SaverParent], int]) -> Callable[[_SaverParent], int]:
    """As libxl does: when the other libxl is gone, the answer is no."""

    def answer(parent: _SaverParent) -> int:
        try:
            return callback(parent)
        except (EOFError, BrokenPipeError):
            return 0

    return answer


class _SaverParent(_Parent):
    """libxl of the primary: suspends and resumes the guest, writes its own records behind a checkpoint."""

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:
        answer = self._called(f"switch_qemu_logdirty {int(enable)}")
        return 0 if answer is None else answer

    @_no_when_gone
    def suspend(self) -> int:
        answer = self._called("suspend")
        if answer is not None:
            return answer
        self.pair.busy.set()
        if self.pair.stream_type is StreamType.COLO and self.epoch:
            assert expect_record(self.pair.back_read, CHECKPOINT_STATE) == struct.pack("<I", SVM_SUSPENDED)
        self.epoch += 1
        self.side.domain.suspend()
        self.side.domain.set_cpu(seed=1000 + self.epoch)
        self.pair.snapshots.append(Snapshot.of(self.side.domain))
        return 1

    @_no_when_gone
    def checkpoint(self) -> int:
        answer = self._called("checkpoint")
        if answer is not None:
            return answer
        write_record(self.pair.forward_write, EMULATOR_CONTEXT, b"qemu %d" % self.epoch)
        write_record(self.pair.forward_write, CHECKPOINT_END)
        if self.pair.stream_type is StreamType.REMUS:
            dirty_some(self.side.domain, self.epoch, self.pair.dirty_pages)
            return int(self.epoch < self.pair.epochs)
        return 1

    @_no_when_gone
    def postcopy(self) -> int:
        answer = self._called("postcopy")
        if answer is not None:
            return answer
        if self.pair.stream_type is StreamType.COLO:
            assert expect_record(self.pair.back_read, CHECKPOINT_STATE) == struct.pack("<I", SVM_READY)
            assert expect_record(self.pair.back_read, CHECKPOINT_STATE) == struct.pack("<I", SVM_RESUMED)
        self.side.domain.resume()
        return 1

    @_no_when_gone
    def wait_checkpoint(self) -> int:
        answer = self._called("wait_checkpoint")
        if answer is not None:
            return answer
        dirty_some(self.side.domain, self.epoch, self.pair.dirty_pages)
        if self.epoch >= self.pair.epochs:
            return 0
        write_record(self.pair.forward_write, CHECKPOINT_STATE, struct.pack("<I", CHECKPOINT_NEW))
        return 1

    def static_data_done(self, missing: int) -> int:
        raise AssertionError("A saver has no static data to report.")

    def restore_results(self, store_gfn: int, console_gfn: int) -> None:
        raise AssertionError("A saver has no results of a restore.")


class _RestorerParent(_Parent):
    """libxl of the secondary: reads the records behind a checkpoint, runs the copy between checkpoints in COLO."""

    def static_data_done(self, missing: int) -> int:
        answer = self._called("static_data_done")
        self.pair.missing = missing
        return 0 if answer is None else answer

    def checkpoint(self) -> int:
        answer = self._called("checkpoint")
        if answer is not None:
            return answer
        if self.pair.stream_type is StreamType.REMUS:
            # Nothing of this checkpoint may have been applied yet, but for the first.
            self.pair.compare(max(self.epoch - 1, 0))
        try:
            body = expect_record(self.pair.forward_read, EMULATOR_CONTEXT)
            expect_record(self.pair.forward_read, CHECKPOINT_END)
        except EOFError:
            return 2
        self.epoch += 1
        assert body == b"qemu %d" % self.epoch
        return 1

    def restore_results(self, store_gfn: int, console_gfn: int) -> None:
        self._called("restore_results")
        self.side.results.append((store_gfn, console_gfn))

    def postcopy(self) -> int:
        answer = self._called("postcopy")
        if answer is not None:
            return answer
        self.pair.compare(self.epoch - 1)
        if self.epoch == 1:
            self.side.domain.enable_log_dirty()
        write_record(self.pair.back_write, CHECKPOINT_STATE, struct.pack("<I", SVM_READY))
        self.side.domain.resume()
        write_record(self.pair.back_write, CHECKPOINT_STATE, struct.pack("<I", SVM_RESUMED))
        return 1

    def wait_checkpoint(self) -> int:
        answer = self._called("wait_checkpoint")
        if answer is not None:
            return answer
        dirty_some(self.side.domain, 500 + self.epoch, self.pair.dirty_pages)
        try:
            assert expect_record(self.pair.forward_read, CHECKPOINT_STATE) == struct.pack(
                "<I", CHECKPOINT_NEW
            )
        except EOFError:
            return 2
        return 1

    def suspend(self) -> int:
        answer = self._called("suspend")
        if answer is not None:
            return answer
        self.side.domain.suspend()
        write_record(self.pair.back_write, CHECKPOINT_STATE, struct.pack("<I", SVM_SUSPENDED))
        return 1

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:
        raise AssertionError("A restorer does not log the device model's writes.")


class Pair:
    """A saver and a restorer, started by ``run`` and gone when it returns.

    Attributes:
        differences: For each comparison the frames, and the names of other parts, that were not equal.
        hooks: (side, callback, how often it was called): an action that may return the answer.
    """

    def __init__(
        self,
        stock: Stock,
        directory: Path,
        saver: str,
        restorer: str,
        stream_type: StreamType,
        *,
        epochs: int = 4,
        ram_pages: int = 2048,
        dirty_pages: int = 100,
        live: bool = True,
        preset_max_gfn: bool = False,
        back_filter: Callable[[int, int], None] | None = None,
        saver_faults: tuple[str, ...] = (),
        restorer_faults: tuple[str, ...] = (),
    ) -> None:
        self.stock = stock
        self.stream_type = stream_type
        self.epochs, self.dirty_pages, self.live = epochs, dirty_pages, live
        self.back_filter = back_filter
        self.faults = (saver_faults, restorer_faults)
        self.programs = (program(saver, stock), program(restorer, stock))
        primary = FakeDomain.create_guest(directory / "primary", SAVER_DOMID, ram_pages)
        state = primary.state
        secondary = FakeDomain.create(
            directory / "secondary", RESTORER_DOMID, state.max_pages, state.frame_limit
        )
        if preset_max_gfn:
            secondary.state.max_mapped_gfn = state.max_mapped_gfn
        self.saver = Side("saver", primary, directory / "saver.log")
        self.restorer = Side("restorer", secondary, directory / "restorer.log")
        self.snapshots: list[Snapshot] = []
        self.differences: list[list[int | str]] = []
        self.missing: int | None = None
        self.hooks: dict[tuple[str, str, int], Callable[[], int | None]] = {}
        #: Set when the guest that writes during the live rounds has to stop.
        self.busy = threading.Event()
        self.forward_read = self.forward_write = self.back_read = self.back_write = -1

    def compare(self, epoch: int) -> None:
        """Compare the secondary, standing still, with the primary at its suspend number ``epoch`` (from 0)."""
        want, have = self.snapshots[epoch], Snapshot.of(self.restorer.domain)
        different: list[int | str] = list(fakexen.differing(want.pages, have.pages))
        if self.stream_type is StreamType.COLO or self.restorer.outcome:
            different += [] if want.context == have.context else ["context"]
        different += [] if want.tsc == have.tsc else ["tsc"]
        different += [] if want.params == have.params else ["params"]
        self.differences.append(different)

    def run(self) -> None:
        """Run both helpers to their ends."""
        self.forward_read, self.forward_write = os.pipe()
        self.back_read, self.back_write = os.pipe()
        threads = [
            threading.Thread(target=self._guard, args=(self.saver, self._save)),
            threading.Thread(target=self._guard, args=(self.restorer, self._restore)),
        ]
        if self.live:
            threads.append(threading.Thread(target=self._run_guest))
        if self.back_filter:
            filtered_read, filtered_write = os.pipe()
            threads.append(
                threading.Thread(target=self._filter, args=(self.back_filter, self.back_read, filtered_write))
            )
            self.back_read = filtered_read
        for thread in threads:
            thread.daemon = True
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
            if thread.is_alive():
                for side in (self.saver, self.restorer):
                    if side.process and not side.outcome:
                        side.process.terminate()
                raise TimeoutError(
                    f"After {DEADLINE_S} s the run hangs; saver: {self.saver.calls}, restorer: {self.restorer.calls}."
                )

    def _guard(self, side: Side, act: Callable[[], Outcome]) -> None:
        """Run one parent; when it ends, its ends of the pipes are closed, so the other side hears of it."""
        ends = (
            (self.forward_write, self.back_read)
            if side is self.saver
            else (self.forward_read, self.back_write)
        )
        try:
            side.outcome = act()
        except BaseException as error:  # shown by Side.result in the test's thread
            side.failure = error
            if side.process is not None:
                side.process.terminate()
        finally:
            self.busy.set()
            for fd in ends:
                with suppress(OSError):
                    os.close(fd)

    def _save(self) -> Outcome:
        request = SaveRequest(SAVER_DOMID, LIVE if self.live else 0, self.stream_type)
        env = self.saver.domain.env(self.stock.library_path, self.saver.log_path, self.faults[0])
        back_fd = -1 if self.stream_type is StreamType.PLAIN else self.back_read
        process = HelperProcess.start(request, self.forward_write, back_fd, program=self.programs[0], env=env)
        self.saver.process = process
        outcome = process.serve(_SaverParent(self, self.saver))
        if self.stream_type is StreamType.PLAIN and outcome.retval == 0:
            write_record(self.forward_write, RECORD_END)
        return outcome

    def _restore(self) -> Outcome:
        request = RestoreRequest(
            RESTORER_DOMID, store_evtchn=STORE_PORT, console_evtchn=CONSOLE_PORT, stream_type=self.stream_type
        )
        env = self.restorer.domain.env(self.stock.library_path, self.restorer.log_path, self.faults[1])
        back_fd = -1 if self.stream_type is StreamType.PLAIN else self.back_write
        process = HelperProcess.start(request, self.forward_read, back_fd, program=self.programs[1], env=env)
        self.restorer.process = process
        self.restorer.outcome = process.serve(_RestorerParent(self, self.restorer))
        if self.stream_type is StreamType.PLAIN and self.restorer.outcome.retval == 0:
            expect_record(self.forward_read, RECORD_END)
        if self.restorer.outcome.retval == 0 and self.stream_type is not StreamType.COLO:
            self.compare(-1)
        return self.restorer.outcome

    def _run_guest(self) -> None:
        """Be a guest that writes while the live rounds run; without log-dirty nobody would know of it."""
        generator = random.Random(7)
        gfns = self.saver.domain.guest_gfns()
        while not self.busy.wait(0.0005):
            if self.saver.domain.log_dirty:
                self.saver.domain.write(generator.choice(gfns), generator.randbytes(32))

    def _filter(self, act: Callable[[int, int], None], source: int, sink: int) -> None:
        try:
            act(source, sink)
        except (EOFError, BrokenPipeError):
            pass
        finally:
            os.close(source)
            os.close(sink)
