"""Runs faults on grounds, one process for each, and writes down what came of them."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from tests.chaos.ground import Ground, Outcome
from tests.chaos.journal import Journal
from tests.chaos.plan import fault

#: Makes the ground of one process.
MakeGround = Callable[[], Ground]
#: How often in a row a ground may fail before the campaign ends.
_PATIENCE = 3


class CampaignError(Exception):
    """A ground does not work; the text says why."""


def run(seed: int, numbers: Iterable[int], make: MakeGround) -> Generator[Outcome, None, None]:
    """Run faults one after the other on one ground, which is made anew when it fails."""
    ground = make()
    failures = 0
    try:
        for number in numbers:
            while True:
                try:
                    outcome = ground.run(fault(seed, number))
                    break
                except Exception as error:
                    failures += 1
                    if failures >= _PATIENCE:
                        raise CampaignError(
                            f"The ground failed {failures} times in a row: {error!r}"
                        ) from error
                    traceback.print_exc()
                    ground.close()
                    ground = make()
            failures = 0
            yield outcome
    finally:
        ground.close()


@dataclass(frozen=True, slots=True)
class Campaign:
    """Faults 0 to ``count`` of a seed on ``jobs`` grounds. ``tell`` is called with each outcome."""

    seed: int
    count: int
    make: MakeGround
    jobs: int
    tell: Callable[[Outcome], None]

    def run(self, journal: Journal, until_s: float = float("inf")) -> None:
        """Run what is not in the journal yet, until the monotonic second ``until_s``; raises CampaignError, OSError."""
        left = iter([number for number in range(self.count) if number not in journal.done])
        workers = [_Worker.start(self.seed, self.make) for _ in range(self.jobs)]
        try:
            busy = {worker.pipe: worker for worker in workers if worker.give(next(left, None))}
            while busy:
                for pipe in wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]
                    outcome = worker.take()
                    journal.add(outcome)
                    self.tell(outcome)
                    number = next(left, None) if time.monotonic() < until_s else None
                    if not worker.give(number):
                        del busy[worker.pipe]
        finally:
            for worker in workers:
                worker.end()


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process with a ground of its own."""

    pipe: Connection
    process: ForkProcess

    @classmethod
    def start(cls, seed: int, make: MakeGround) -> _Worker:
        """Fork it; nothing of this process but the program is used there."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(seed, make, theirs, ours))
        process.start()
        theirs.close()
        return cls(ours, process)

    def give(self, number: int | None) -> bool:
        """Have a fault run; None: there is none. Tells whether it works now."""
        self.pipe.send(number)
        return number is not None

    def take(self) -> Outcome:
        """Return what came of it; raises CampaignError."""
        try:
            found = self.pipe.recv()
        except EOFError:
            raise CampaignError("The process of a ground has ended.") from None
        if isinstance(found, Outcome):
            return found
        raise CampaignError(str(found))

    def end(self) -> None:
        """End it, in order if it is idle."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def end_in_order() -> None:
    """Let a SIGTERM end this process as an exception does, so that nothing is left behind."""

    def end(_number: int, _frame: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def _work(seed: int, make: MakeGround, pipe: Connection, parents: Connection) -> None:
    parents.close()
    end_in_order()
    try:
        with closing(run(seed, iter(pipe.recv, None), make)) as outcomes:
            for outcome in outcomes:
                pipe.send(outcome)
    except (EOFError, BrokenPipeError):
        return  # nobody wants it any more
    except CampaignError as error:
        pipe.send(str(error))
