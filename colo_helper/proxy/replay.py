"""Feeds a capture into the comparator anew (``colo-helper replay CAPTURE.pcapng``; ``colo-helper ctl VM capture`` makes one).

The checkpoints are those that were made then, so what is asked for here, perhaps with other limits, gets the next of them; a
checkpoint is asked for once until then. A comparator remembers over a checkpoint what was said before, and a capture does not
begin with that: so its first epoch only makes it known, and what is counted begins with the second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from colo_helper.proxy.capture import Mark, Patience, Reached, Sent, Whose, read_capture
from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import parse
from colo_helper.proxy.pcapng import PcapngError
from colo_helper.proxy.verdicts import Checkpoint, Limits, Verdict

#: The cut at which what is counted begins: a capture begins with one.
_LEARNS = 2


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
    """The comparators of all NICs, given what ``traffic.primary`` was given. None: they wait as long as those did."""

    def __init__(self, secondary_ms: int | None = None, primary_ms: int | None = None) -> None:
        self.found = Replayed()
        self._limits = Limits()
        self._wished_ms = secondary_ms, primary_ms
        self._comparators: dict[int, Comparator] = {}
        self._cuts = 0
        self._waits = False
        #: What comes between a cut and the moment when the secondary runs from it.
        self._between: list[Sent] | None = None

    def take(self, kept: Sent | Reached | Patience) -> None:
        """Take the next thing of a capture."""
        if isinstance(kept, Patience):
            secondary_ms, primary_ms = (
                wished or then for wished, then in zip(self._wished_ms, kept, strict=True)
            )
            self._limits = Limits(secondary_s=secondary_ms / 1000, primary_s=primary_ms / 1000)
            return
        self.found.end_s = kept.time_s
        if isinstance(kept, Reached):
            self._reach(kept)
        elif kept.whose is not Whose.NETWORK:
            self._expire(kept.time_s)
            self._send(kept)

    def _reach(self, reached: Reached) -> None:
        if reached.mark is Mark.CUT:
            self._expire(reached.time_s)
            self._cuts += 1
            self.found.made += 1
            if self._cuts <= _LEARNS:
                self.found = Replayed(start_s=reached.time_s, end_s=reached.time_s)
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
        while not self._waits and self._between is None:
            due = [
                (at_s, nic) for nic, one in self._comparators.items() if (at_s := one.deadline()) is not None
            ]
            if not due or min(due)[0] > until_s:
                break
            due_s, nic = min(due)
            self._conclude(self._comparators[nic].expire(due_s), due_s)

    def _conclude(self, verdict: Verdict, now_s: float) -> None:
        self.found.agreed += len(verdict.release)
        if verdict.checkpoint and not self._waits:
            self._waits = True
            self.found.asked.append((now_s, verdict.checkpoint))


def report(found: Replayed) -> Iterator[str]:
    """Yield the lines that are printed."""
    if not found.made:
        yield "It has one epoch only, from which a comparator learns what there is: capture for longer."
        return
    yield (
        f"{found.primary} packets of the primary, {found.secondary} of the secondary, {found.made} checkpoints made, "
        f"in {found.end_s - found.start_s:.1f} s"
    )
    yield f"{found.agreed} left without a checkpoint, {found.primary - found.agreed} needed one"
    yield f"{len(found.asked)} checkpoints asked for"
    for time_s, checkpoint in found.asked:
        yield f"{time_s - found.start_s:+10.3f} s {checkpoint.cause.name.lower()}: {checkpoint.sentence}"


def show(path: Path, secondary_ms: int | None = None, primary_ms: int | None = None) -> int:
    """Print the report of a file, with these limits or those of then; returns the exit status: 2 when it cannot be read."""
    running = Replay(secondary_ms, primary_ms)
    try:
        with path.open("rb") as file:
            for kept in read_capture(str(path), file):
                running.take(kept)
    except (OSError, PcapngError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(report(running.found)) + "\n")
    return 0
