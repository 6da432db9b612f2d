"""One helper alone with its parent, and a fault at a chosen point.

A run counts everything that happens to the helper: operations of its hypervisor, messages to its parent, bytes of its
stream. A run without a fault so tells every point where one can be put; nothing is picked by hand.
"""

from __future__ import annotations

import errno
import os
import select
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import ClassVar

from colo_helper.helper import frames_out, main, save
from colo_helper.helper.callout import MessageServer
from colo_helper.helper.errors import ParentLostError
from colo_helper.helper.fds import Fd
from colo_helper.helper.messages import WITHOUT_REPLY, Callback, Level
from colo_helper.helper.policy import Round, Verdict
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES
from tests.unit.colo_helper.helper_pair import Side, SideParent

FRAMES = 64
STORE, CONSOLE, IOREQ, BUFIOREQ = RINGS = (56, 57, 58, 59)
#: A frame that the guest has given back: it is dirty, but not there.
GONE = 45
STREAM, BACK = "The stream", "The back channel"


@dataclass(frozen=True)
class Point:
    """The ``nth`` time that something happens, from 1; of bytes, after so many of them."""

    what: str
    nth: int

    def __str__(self) -> str:
        return f"{self.what} number {self.nth}"


class Bench:
    """Counts what happens in one run and does ``action`` at ``point``."""

    def __init__(self, point: Point | None = None, action: Callable[[Bench], None] | None = None) -> None:
        self.point, self.action = point, action
        self.counts: Counter[str] = Counter()
        self.seen: list[Point] = []
        self.moved: Counter[str] = Counter()
        #: Where on the stream the helper began to read or write something, and how long that was.
        self.pieces: list[tuple[int, int]] = []
        self.write_errno = self.read_errno = 0
        self.fired = False
        #: Its threads run before it is known here.
        self.side: Future[Side] = Future()
        self.peer_fd = -1

    def happens(self, what: str) -> None:
        self.counts[what] += 1
        self._reach(Point(what, self.counts[what]))

    def _reach(self, point: Point) -> None:
        self.seen.append(point)
        if point == self.point and self.action:
            self.fired = True
            self.action(self)

    def room(self, name: str) -> int:
        """How many bytes may move until the point; 0 means any number."""
        if self.point is None or self.point.what != name:
            return 0
        return max(0, self.point.nth - self.moved[name])

    def move(self, name: str, count: int) -> None:
        self.moved[name] += count
        if self.point == Point(name, self.moved[name]) and count:
            self._reach(self.point)

    # What may be done at the point.

    def stop(self) -> None:
        self.side.result(10).stop.ask()

    def close_peer(self) -> None:
        if self.peer_fd >= 0:
            os.close(self.peer_fd)
            self.peer_fd = -1

    def reset_stream(self) -> None:
        self.read_errno = errno.ECONNRESET

    def fill_disk(self) -> None:
        self.write_errno = errno.ENOSPC

    def lose_parent(self) -> None:
        self.side.result(10).server.vanish()


class BenchFd(Fd):
    """A descriptor that tells its bench what moves, and goes no further than the point at once."""

    bench = Bench()

    def write(self, *buffers):
        self.bench.happens(f"write {self._name}")
        at = self.bench.moved[self._name]
        for buffer in buffers if self._name == STREAM else ():
            self.bench.pieces.append((at, len(buffer)))
            at += len(buffer)
        return super().write(*buffers)

    def read_into(self, view):
        self.bench.happens(f"read {self._name}")
        if self._name == STREAM:
            self.bench.pieces.append((self.bench.moved[STREAM], len(view)))
        super().read_into(view)

    def _write(self, buffers):
        if self.bench.write_errno:
            raise OSError(self.bench.write_errno, os.strerror(self.bench.write_errno))
        done = super()._write(clipped(buffers, self.bench.room(self._name)))
        self.bench.move(self._name, done)
        return done

    def _read(self, view):
        if self.bench.read_errno:
            raise OSError(self.bench.read_errno, os.strerror(self.bench.read_errno))
        room = self.bench.room(self._name)
        done = super()._read(view[:room] if room else view)
        self.bench.move(self._name, done)
        return done

    def _wait(self):
        self.bench.happens(f"wait {self._name}")
        super()._wait()


def clipped(buffers, room):
    if room == 0:
        return buffers
    kept = []
    for buffer in buffers:
        kept.append(buffer[:room])
        room -= len(kept[-1])
        if room == 0:
            break
    return kept


@dataclass
class BenchDomain(EmulatedDomain):
    """A domain that tells its bench about every operation.

    ``own`` is what its guest has written, ``was_on`` whether its writes have ever been logged.
    """

    bench: ClassVar[Bench] = Bench()
    own: dict[int, bytes] = field(default_factory=dict)
    was_on: bool = False

    def log_dirty_on(self):
        super().log_dirty_on()
        self.was_on = True

    def _attempt(self, operation):
        self.bench.happens(f"op {operation}")
        super()._attempt(operation)

    def guest_write(self, gfn, data):
        super().guest_write(gfn, data)
        self.own[gfn] = bytes(self.memory[gfn])

    def clean_dirty(self, final):
        if self.log_dirty and self.domid == 3:  # the guest has been busy
            self.dirty |= {1, 2, 20 + self.bench.counts["op clean"] % 8, GONE}
        return super().clean_dirty(final)

    def state(self):
        """All that a checkpoint is about, but for the rings: they are the host's."""
        memory = {gfn: bytes(page) for gfn, page in self.memory.items() if gfn not in RINGS}
        return memory, self.context, self.tsc, dict(self.params)


class BenchParent(SideParent):
    """``answers`` maps (callback, nth) to an answer; what is not there is a yes."""

    def __init__(self, name, domain, answers=None):
        super().__init__(name, domain)
        self.answers = answers or {}
        self.errors: list[tuple[int | None, str]] = []

    def _do(self, name, default):
        nth = self.called.count(name) + 1
        answer = super()._do(name, default)
        return self.answers.get((name, nth), answer)

    def log(self, level, errnoval, context, text):
        super().log(level, errnoval, context, text)
        if level >= Level.ERROR:
            self.errors.append((errnoval, text))


class BenchServer(MessageServer):
    """Tells its bench about every message before it is served; may vanish, as a parent does that is killed."""

    bench = Bench()

    def _dispatch(self, message, callbacks, *, only_tidying):
        name = message.callback.name.lower()
        if message.callback is Callback.SWITCH_QEMU_LOGDIRTY:
            name = "qemu_logdirty_on" if message.arguments[1] else "qemu_logdirty_off"
        kind = "tell" if message.callback in WITHOUT_REPLY else "ask"
        self.bench.happens(f"{kind} {name}")
        super()._dispatch(message, callbacks, only_tidying=only_tidying)

    def vanish(self):
        """Both pipes end at once, under the same numbers: the thread that serves them finds out by itself."""
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (
            self._write_fd,
            self._read_fd,
        ):  # the second one ends the thread, which then closes the first
            os.dup2(null, fd)
        os.close(null)


@dataclass
class Run:
    """What came of one helper. ``stream`` is what it wrote or was given, ``back`` what it wrote on the back channel."""

    side: Side
    bench: Bench
    domain: BenchDomain
    parent: BenchParent
    stream: bytes = b""
    back: bytes = b""

    @property
    def completed(self):
        return self.side.completed

    @property
    def lost_parent(self):
        return isinstance(self.side.error, ParentLostError)

    def __str__(self) -> str:
        return f"completed {self.completed}, error {self.side.error!r}, called {self.parent.called}, said {self.parent.lines}"


class OpenFds:
    """Notices when a run leaves a descriptor open."""

    def __enter__(self):
        self.before = set(os.listdir("/proc/self/fd"))

    def __exit__(self, kind, *_):
        if kind is None:
            leaked = set(os.listdir("/proc/self/fd")) - self.before
            assert not leaked, f"descriptors {leaked} stayed open"


def two_rounds(rounds: list[Round], guest_pages: int, target_ms: float) -> Verdict:
    """Whatever the clock says: a live copy of the bench has a second round."""
    return Verdict(len(rounds) > 1, "as the bench wants it.")


def prepare(monkeypatch) -> None:
    """Let the helper use the bench's descriptors, and several records for a guest of a few pages."""
    monkeypatch.setattr(main, "Fd", BenchFd)
    monkeypatch.setattr(frames_out, "MAX_BATCH_PAGES", 16)
    monkeypatch.setattr(frames_out, "_WINDOW_FRAMES", 32)
    monkeypatch.setattr(save.policy, "after_round", two_rounds)


def attach(bench: Bench) -> None:
    BenchFd.bench = BenchDomain.bench = BenchServer.bench = bench


def memfd(data: bytes = b"") -> int:
    fd = os.memfd_create("stream")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def pipe_with(data: bytes) -> int:
    """A pipe with something in it and nobody who writes any more."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, data)
    os.close(write_fd)
    return read_fd


def drained(fd: int) -> bytes:
    """What is in a pipe now."""
    data = bytearray()
    while select.select([fd], [], [], 0)[0] and (piece := os.read(fd, 1 << 20)):
        data += piece
    return bytes(data)


def inside(pieces: list[tuple[int, int]], end: int) -> Iterator[int]:
    """Positions of each kind in a stream: where a piece begins, in its middle, before its last byte; all below ``end``."""
    places: set[int] = set()
    for start, length in pieces:
        places |= {start, start + length // 2, start + max(length - 1, 0)}
        if length > PAGE_BYTES:
            places |= {start + PAGE_BYTES, start + PAGE_BYTES + 1}
    yield from sorted(place for place in places if place < end)
