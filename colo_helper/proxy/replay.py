"""Feeds a capture into the comparator anew (``colo-helper replay CAPTURE.pcapng``; ``colo-helper ctl VM capture`` makes one).

The checkpoints are those that were made then, so what is asked for here, perhaps
with other limits, gets the next of them; a checkpoint is asked for once until then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from colo_helper.proxy.capture import Mark, Reached, Sent, Whose, read_capture
from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import parse
from colo_helper.proxy.pcapng import PcapngError
from colo_helper.proxy.verdicts import Checkpoint, Limits, Verdict


@dataclass
class Replayed:
    """What came of it: packets of both, how many left without a checkpoint, what was made, and what was asked for, and when."""

    primary: int = 0
    secondary: int = 0
    agreed: int = 0
    made: int = 0
    start_s: float = 0.0
    end_s: float = 0.0
    asked: list[tuple[float, Checkpoint]] = field(default_factory=list)


class Replay:
    """The comparators of all NICs, given what ``traffic.primary`` was given."""

    def __init__(self, limits: Limits) -> None:
        self.found = Replayed()
        self._limits = limits
        self._comparators: dict[int, Comparator] = {}
        self._waits = False
        #: What comes between a cut and the moment when the secondary runs from it.
        self._between: list[Sent] | None = None

    def take(self, kept: Sent | Reached) -> None:
        """Take the next thing that happened."""
        self.found.start_s = self.found.start_s or kept.time_s
        self.found.end_s = kept.time_s
        if isinstance(kept, Reached):
            self._reach(kept)
        elif kept.whose is not Whose.NETWORK:
            self._expire(kept.time_s)
            self._send(kept)

    def _reach(self, reached: Reached) -> None:
        if reached.mark is Mark.CUT:
            self._expire(reached.time_s)
            self.found.made += 1
            for comparator in self._comparators.values():
                comparator.checkpointed()
            self._waits, self._between = False, []
            return
        between, self._between = self._between or [], None
        for sent in sorted(between, key=lambda one: one.whose is Whose.SECONDARY):
            self._send(sent._replace(time_s=reached.time_s))

    def _send(self, sent: Sent) -> None:
        if self._between is not None:
            self._between.append(sent)
            return
        comparator = self._comparators.setdefault(sent.nic, Comparator(self._limits))
        if sent.whose is Whose.PRIMARY:
            self.found.primary += 1
            self._conclude(comparator.primary(parse(sent.frame), sent.time_s), sent.time_s)
        else:
            self.found.secondary += 1
            self._conclude(comparator.secondary(parse(sent.frame), sent.time_s), sent.time_s)

    def _expire(self, until_s: float) -> None:
        """Nothing is late while a checkpoint is asked for, or the secondary stands still."""
        for comparator in self._comparators.values():
            while not self._waits and self._between is None:
                due_s = comparator.deadline()
                if due_s is None or due_s > until_s:
                    break
                self._conclude(comparator.expire(due_s), due_s)

    def _conclude(self, verdict: Verdict, now_s: float) -> None:
        self.found.agreed += len(verdict.release)
        if verdict.checkpoint and not self._waits:
            self._waits = True
            self.found.asked.append((now_s, verdict.checkpoint))


def replay(kept: Iterable[Sent | Reached], limits: Limits) -> Replayed:
    """Feed all of a capture."""
    running = Replay(limits)
    for one in kept:
        running.take(one)
    return running.found


def report(found: Replayed) -> Iterator[str]:
    """Yield the lines that are printed."""
    yield (
        f"{found.primary} packets of the primary, {found.secondary} of the secondary, {found.made} checkpoints made, "
        f"in {found.end_s - found.start_s:.1f} s"
    )
    yield f"{found.agreed} left without a checkpoint, {found.primary - found.agreed} needed one"
    yield f"{len(found.asked)} checkpoints asked for"
    for time_s, checkpoint in found.asked:
        yield f"{time_s - found.start_s:+10.3f} s {checkpoint.cause.name.lower()}: {checkpoint.sentence}"


def show(path: Path, secondary_ms: int | None = None, primary_ms: int | None = None) -> int:
    """Print the report of a file, with these limits or the usual ones; returns the exit status: 2 when it cannot be read."""
    limits = Limits()
    if secondary_ms is not None:
        limits = replace(limits, secondary_s=secondary_ms / 1000)
    if primary_ms is not None:
        limits = replace(limits, primary_s=primary_ms / 1000)
    try:
        with path.open("rb") as file:
            found = replay(read_capture(str(path), file), limits)
    except (OSError, PcapngError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(report(found)) + "\n")
    return 0
