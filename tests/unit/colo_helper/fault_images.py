"""Images for restorers to fail on, what the copy is after each of their checkpoints, and what holds after each failure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from colo_helper.stream.libxc import RecordType
from tests.unit.colo_helper.fault_bench import CONSOLE, STORE, STREAM, Point, Run, inside
from tests.unit.colo_helper.fault_runs import (
    BASELINE,
    EPOCHS,
    LIBXL,
    OWN_WRITES,
    Mode,
    Restoring,
    Saving,
    equal_target,
)


@dataclass(frozen=True)
class Image:
    """What a saver of one mode has written, and what the copy is after each of its checkpoints.

    ``ends`` are the places behind each checkpoint and libxl's part of it. ``untouched[k]`` is the copy when it waits for
    checkpoint k + 1, ``taken_over[k]`` when it has taken over from checkpoint k; of k = 0 something is known only from a
    baseline: that copy is kept as it was from the saver's offer on, which ends at ``kept_from``.
    """

    data: bytes
    ends: list[int]
    places: list[int]
    untouched: list[object]
    taken_over: list[object]
    seen: list[Point]
    kept_from: int

    def kept(self, place: int) -> bool:
        """Whether a stream that ends here leaves a copy that can go on."""
        return place >= self.kept_from

    @property
    def helpers_places(self) -> list[int]:
        """The places that the helper itself reads up to: not inside of libxl's part."""
        return [
            place for place in self.places if not any(end - len(LIBXL) < place < end for end in self.ends)
        ]

    def complete(self, place: int) -> int:
        """How many checkpoints are complete when the stream ends here."""
        return sum(end <= place for end in self.ends)


@cache
def image(mode: Mode) -> Image:
    saving = Saving(mode)
    data = saving.run().stream
    assert data.count(LIBXL) == len(saving.states) == (EPOCHS if mode.last else 0)
    ends = [at + len(LIBXL) for at in range(len(data)) if data.startswith(LIBXL, at)]
    restoring = Restoring(mode, data)
    run = restoring.run()
    assert (run.completed, run.side.broken, run.parent.errors) == ((0, 0), "", []), run
    assert run.bench.moved[STREAM] == len(data), "all of it has been read"
    kept_from = ends[0] if ends else len(data) + 1
    if mode is BASELINE:
        kept_from = next(
            found.at + 8 + len(found.body) for found in records(data) if found.kind == RecordType.COLO_OFFER
        )
    taken_over: list[object] = [equal_target().state() if mode is BASELINE else None]
    for k, end in enumerate(ends):
        there = Restoring(mode, data[:end]).run()
        assert there.completed == (0, 0)
        taken_over.append(there.domain.state())
        assert_is_checkpoint(mode, there, saving.states[k], k)
    places = list(inside(run.bench.pieces, len(data)))
    assert len(places) > 100
    return Image(data, ends, places, restoring.states, taken_over, run.bench.seen, kept_from)


def assert_is_checkpoint(mode: Mode, run: Run, source: object, k: int) -> None:
    """The copy is the guest of checkpoint k + 1, and in COLO what it has done itself since."""
    memory, context, tsc, params = source
    if mode.colo:
        memory = dict(memory)
        for gfn in OWN_WRITES[k]:
            memory[gfn] = b"the secondary's own" + memory[gfn][len(b"the secondary's own") :]
    got = run.domain.state()
    assert got[0] == memory
    assert (got[1], got[2]) == (context, tsc)
    assert {index: got[3].get(index) for index in params} == params
    assert (run.domain.grants is None) is (mode is BASELINE)


def assert_ended(run: Run, where: object) -> None:
    note = f"{where}: {run}"
    assert (run.side.status, run.side.error, run.side.broken) == (0, None, ""), note
    assert run.domain.mapped_now == 0, note
    assert run.domain.journal[-1] == "close", note
    assert run.parent.called[-1] == "restore_results", note


def assert_failed(run: Run, where: object, completed: tuple[int, int], words: str) -> None:
    assert_ended(run, where)
    note = f"{where}: {run}"
    assert run.completed == completed, note
    assert any(number == completed[1] and words in text for number, text in run.parent.errors), note


def assert_took_over(run: Run, where: object, mode: Mode, k: int) -> None:
    assert_ended(run, where)
    note = f"{where}: {run}"
    assert (run.completed, run.parent.errors) == ((0, 0), []), note
    assert any("Failover" in line for line in run.parent.lines), note
    assert run.domain.state() == image(mode).taken_over[k], note
    assert run.parent.results[-1] == ((STORE, CONSOLE) if k else (0, 0)), note


def asked(seen: list[Point], *kinds: str) -> list[Point]:
    found = [point for point in seen if point.what.split()[0] in kinds]
    assert found
    return found


@dataclass(frozen=True)
class Found:
    """A record in an image."""

    at: int
    kind: int
    body: bytes


def records(data: bytes) -> Iterator[Found]:
    at = 40
    while at < len(data):
        if data.startswith(LIBXL, at):
            at += len(LIBXL)
            continue
        kind, length = struct.unpack_from("<II", data, at)
        yield Found(at, kind, data[at + 8 : at + 8 + length])
        at += 8 + length + -length % 8
