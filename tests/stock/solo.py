"""One helper alone: a saver into a file descriptor, a restorer out of one, with a parent that agrees to everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from colo_helper.helper.argv import RestoreRequest, SaveRequest, StreamType
from colo_helper.helper.callout import HelperProcess
from tests.stock.fakexen import FakeDomain
from tests.stock.harness import CONSOLE_PORT, LIVE, STORE_PORT, Side, dirty_some, program
from tests.stock.packages import Stock

#: An empty list of dirty frames, as a stock secondary sends it.
EMPTY_DIRTY_LIST = (0x0F).to_bytes(4, "little") + bytes(4)

#: Other answers than the agreeing ones, by callback: a number, or what to do to find it.
Answers = Mapping[str, int | Callable[[Side], int]]


class _Agreeing:
    """Answers 1 to everything, suspends the domain when asked, and ends after ``epochs`` checkpoints."""

    def __init__(self, side: Side, epochs: int, back_write: int) -> None:
        self.side, self.epochs, self.back_write = side, epochs, back_write
        self.answers: Answers = {}

    def _answer(self, name: str, default: int = 1) -> int:
        self.side.calls.append(name)
        answer = self.answers.get(name, default)
        return answer if isinstance(answer, int) else answer(self.side)

    def _more(self, name: str) -> int:
        dirty_some(self.side.domain, self.side.calls.count("suspend"), 20)
        return self._answer(name, int(self.side.calls.count("suspend") < self.epochs))

    def suspend(self) -> int:
        self.side.domain.suspend()
        if self.back_write >= 0 and "suspend" in self.side.calls:
            os.write(self.back_write, EMPTY_DIRTY_LIST)
        return self._answer("suspend")

    def postcopy(self) -> int:
        self.side.domain.resume()
        return self._answer("postcopy")

    def checkpoint(self) -> int:
        return self._answer("checkpoint") if self.back_write >= 0 else self._more("checkpoint")

    def wait_checkpoint(self) -> int:
        return self._more("wait_checkpoint")

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:
        return self._answer(f"switch_qemu_logdirty {int(enable)}", 0)

    def static_data_done(self, missing: int) -> int:
        return self._answer("static_data_done", 0)

    def restore_results(self, store_gfn: int, console_gfn: int) -> None:
        self.side.calls.append("restore_results")
        self.side.results.append((store_gfn, console_gfn))

    def log(self, level: int, errnoval: int | None, context: str, text: str) -> None:
        self.side.lines.append(f"{level} {context}: {text}")

    def progress(self, context: str, what: str, done: int, total: int) -> None:
        pass


def save(
    stock: Stock,
    which: str,
    domain: FakeDomain,
    stream_fd: int,
    *,
    stream_type: StreamType = StreamType.PLAIN,
    epochs: int = 3,
    flags: int = LIVE,
    log: Path | None = None,
    faults: Iterable[str] = (),
    answers: Answers | None = None,
    on_start: Callable[[HelperProcess], None] = lambda _: None,
) -> Side:
    """Save a domain; in COLO the back channel says at every epoch that the secondary has no dirty frame."""
    side = Side("saver", domain, log or domain.path / "log")
    request = SaveRequest(domain.state.domid, flags, stream_type)
    back_read, back_write = os.pipe() if stream_type is StreamType.COLO else (-1, -1)
    env = domain.env(stock.library_path, log, faults)
    process = HelperProcess.start(request, stream_fd, back_read, program=program(which, stock), env=env)
    side.process = process
    on_start(process)
    parent = _Agreeing(side, epochs, back_write)
    parent.answers = answers or {}
    side.outcome = process.serve(parent)
    for fd in (back_read, back_write):
        if fd >= 0:
            os.close(fd)
    return side


def restore(
    stock: Stock,
    which: str,
    domain: FakeDomain,
    stream_fd: int,
    *,
    stream_type: StreamType = StreamType.PLAIN,
    log: Path | None = None,
    faults: Iterable[str] = (),
    answers: Answers | None = None,
) -> Side:
    """Restore a domain from a stream without records of libxl."""
    side = Side("restorer", domain, log or domain.path / "log")
    request = RestoreRequest(
        domain.state.domid, store_evtchn=STORE_PORT, console_evtchn=CONSOLE_PORT, stream_type=stream_type
    )
    env = domain.env(stock.library_path, log, faults)
    process = HelperProcess.start(request, stream_fd, -1, program=program(which, stock), env=env)
    side.process = process
    parent = _Agreeing(side, 0, -1)
    parent.answers = answers or {}
    side.outcome = process.serve(parent)
    return side
