"""A saver and a restorer on emulated domains, joined by real pipes, each with a parent of its own that serves callbacks.

Both helpers run in threads of this process through ``main.serve``, so everything but exec and signals is the real thing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from colo_helper.helper import argv, callout
from colo_helper.helper.argv import FLAG_BASELINE, FLAG_LIVE, NO_FD, RestoreRequest, SaveRequest, StreamType
from colo_helper.helper.callout import MessageServer
from colo_helper.helper.fds import Stop
from colo_helper.helper.main import serve
from colo_helper.helper.parent import PipeParent
from colo_helper.hypervisor import abi
from colo_helper.hypervisor.dirty_log import DirtyLog
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES, CpuPolicy, SpecialFrame, TscInfo
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import pack_bitmap
from colo_helper.stream.libxc import RecordType, pack_record

STORE, CONSOLE, IOREQ, BUFIOREQ = 0xFEFFC, 0xFEFFF, 0xFEFFD, 0xFEFFE
RINGS = (STORE, CONSOLE, IOREQ, BUFIOREQ)
JOIN_S = 60


def guest(pages: int = 700, domid: int = 3) -> EmulatedDomain:
    """A guest as Xen shows an HVM one: RAM from 0 with the VGA hole, special pages below 4 GiB."""
    domain = EmulatedDomain(domid, size_frames=None, max_pages=4 * pages)
    for gfn in (*range(0xA0), *range(0xC0, pages + 0x20)):
        domain.guest_write(gfn, b"page %d" % gfn)
    for gfn in RINGS:
        domain.memory[gfn] = bytearray(b"\7" * PAGE_BYTES)
    domain.params = {
        abi.PARAM_STORE_PFN: STORE,
        abi.PARAM_IOREQ_PFN: IOREQ,
        abi.PARAM_BUFIOREQ_PFN: BUFIOREQ,
        abi.PARAM_CONSOLE_PFN: CONSOLE,
        abi.PARAM_IDENT_PT: 0xFE000,
    }
    domain.specials = {gfn: SpecialFrame(gfn, "ring", "belongs to the host") for gfn in RINGS}
    domain.tsc = TscInfo(1, 2_100_000, 123_456_789, 2)
    domain.cpu_policy = CpuPolicy(bytes(range(24)) * 3, bytes(range(16)) * 2)
    domain.context = b"context of epoch 0"
    return domain


def empty_domain(like: EmulatedDomain, domid: int = 9) -> EmulatedDomain:
    """What libxl makes before a restore: no memory, so the hypervisor reports a highest frame of 0."""
    return EmulatedDomain(domid, size_frames=None, max_pages=like.max_pages)


def differing(one: EmulatedDomain, other: EmulatedDomain, but: tuple[int, ...] = RINGS) -> list[int]:
    """Frames that are not the same in both domains."""
    gfns = (one.memory.keys() | other.memory.keys()) - set(but)
    return sorted(gfn for gfn in gfns if one.memory.get(gfn) != other.memory.get(gfn))


@dataclass
class SideParent:
    """Serves callbacks: ``script`` maps a callback's name to what to do; an int is the answer."""

    name: str
    domain: EmulatedDomain
    script: dict[str, Callable[[], int] | int] = field(default_factory=dict)
    called: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    figures: list[tuple[str, int]] = field(default_factory=list)
    results: list[tuple[int, int]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    qemu_logging: bool = False

    def _do(self, name: str, default: int) -> int:
        self.called.append(name)
        action = self.script.get(name, default)
        return action() if callable(action) else action

    def suspend(self) -> int:
        answer = self._do("suspend", 1)
        self.domain.suspended = answer == 1
        return answer

    def postcopy(self) -> int:
        answer = self._do("postcopy", 1)
        self.domain.suspended = False
        return answer

    def checkpoint(self) -> int:
        return self._do("checkpoint", 1)

    def wait_checkpoint(self) -> int:
        return self._do("wait_checkpoint", 1)

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:
        assert domid == self.domain.domid
        answer = self._do(f"qemu_logdirty_{'on' if enable else 'off'}", 0)
        self.qemu_logging = enable and answer == 0
        return answer

    def static_data_done(self, missing: int) -> int:
        self.missing.append(missing)
        return self._do("static_data_done", 0)

    def restore_results(self, store_gfn: int, console_gfn: int) -> None:
        self.called.append("restore_results")
        self.results.append((store_gfn, console_gfn))

    def log(self, level: int, errnoval: int | None, context: str, text: str) -> None:
        self.lines.append(text)

    def progress(self, context: str, what: str, done: int, total: int) -> None:
        if context == "colo-epoch":
            self.figures.append((what, done))


class Side:
    """One helper in a thread and its parent in another."""

    def __init__(
        self,
        parent: SideParent,
        request: SaveRequest | RestoreRequest,
        stream_fd: int,
        back_fd: int,
        server: Callable[[int, int, str], MessageServer] = MessageServer,
    ):
        self.parent = parent
        self.stop = Stop()
        self.status: int | None = None
        self.broken = ""
        self.error: BaseException | None = None
        self.fds = [fd for fd in (stream_fd, back_fd) if fd != NO_FD]
        to_helper, self._to_helper = os.pipe()
        self._from_helper, from_helper = os.pipe()
        invocation = argv.parse(argv.build(request, stream_fd, back_fd, callout.served_bits(request)))
        helper_parent = PipeParent(to_helper, from_helper, invocation)
        self.server = server(self._from_helper, self._to_helper, parent.name)
        self._left_open = [to_helper, self._from_helper]

        def helper() -> None:
            try:
                self.status = serve(
                    invocation, helper_parent, self.stop, lambda _domid: parent.domain, _no_stock
                )
            except BaseException as error:
                self.error = error
            finally:
                for fd in (from_helper, *self.fds):
                    os.close(fd)

        def serving() -> None:
            try:
                self.broken = self.server.serve(parent, {})
            finally:
                os.close(self._to_helper)

        self.threads = [threading.Thread(target=work, daemon=True) for work in (helper, serving)]
        for thread in self.threads:
            thread.start()

    @property
    def completed(self) -> tuple[int, int] | None:
        return self.server.completed

    def join(self) -> None:
        for thread in self.threads:
            thread.join(JOIN_S)
            assert not thread.is_alive(), f"{self.parent.name} hangs; it said {self.parent.lines}"
        while self._left_open:
            os.close(self._left_open.pop())
            if not self._left_open:
                self.stop.close()


def _no_stock(_parent: PipeParent, sentence: str) -> None:
    raise AssertionError(sentence)


@dataclass
class Pair:
    """Both helpers, joined. ``between`` is called at each wait_checkpoint of the saver; it returns whether to go on."""

    stream_type: StreamType = StreamType.PLAIN
    flags: int = 0
    source: EmulatedDomain = field(default_factory=guest)
    target: EmulatedDomain | None = None
    #: With FLAG_BASELINE: the frames that the parent says may differ from the start.
    first_b: tuple[int, ...] = ()
    saver: SideParent = field(init=False)
    restorer: SideParent = field(init=False)

    def __post_init__(self) -> None:
        self.target = self.target or empty_domain(self.source)
        self.saver = SideParent("saver", self.source)
        self.restorer = SideParent("restorer", self.target)

    def run(self) -> tuple[Side, Side]:
        """Run both to their ends."""
        saving, restoring = self.start()
        saving.join()
        restoring.join()
        return saving, restoring

    def start(self) -> tuple[Side, Side]:
        assert self.target is not None
        stream_read, stream_write = os.pipe()
        back_read, back_write = os.pipe()
        if self.flags > 0 and self.flags & FLAG_BASELINE:
            for domain in (self.source, self.target):
                DirtyLog(domain).start()  # on since before the copy was made
                domain.journal.clear()
            first = DirtyBitmap.from_gfns(self.first_b, self.source.nr_frames())
            os.write(back_write, pack_record(RecordType.COLO_DIRTY_BITMAP, pack_bitmap(first)))
        restoring = Side(
            self.restorer,
            RestoreRequest(self.target.domid, 5, 6, stream_type=self.stream_type),
            stream_read,
            back_write,
        )
        saving = Side(
            self.saver,
            SaveRequest(self.source.domid, self.flags | FLAG_LIVE, self.stream_type)
            if self.flags != -1
            else SaveRequest(self.source.domid, 0, self.stream_type),
            stream_write,
            back_read,
        )
        return saving, restoring
