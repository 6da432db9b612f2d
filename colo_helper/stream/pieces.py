"""Two states of one machine, cut into named pieces and compared field by field.

Used for what Xen keeps of the vCPUs (``hvm_context``) and for what the device model saves (``device_state``). A field may
differ between two copies that stand still and are equal only if it is a clock: ``Clock`` says which bits, and why. What
the fields hold is not told, because it is the guest's (keys may lie in registers) and the answer is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

UNEXPLAINED = "Nothing known explains it: the copies are not equal."
#: Differing runs named in one piece; if there are more, runs that lie close to each other are told as one.
MAX_RUNS = 32
#: Runs with fewer equal bytes than this between them are told as one.
_RUN_GAP_BYTES = 4


class Field(NamedTuple):
    """A part of a piece's body."""

    name: str
    offset: int
    length: int


def _always(_ours: bytes, _theirs: bytes) -> bool:
    return True


class Clock(NamedTuple):
    """Why a field may differ. ``mask``: those of its bits, little endian, that may. ``when``: asked with both bodies."""

    reason: str
    mask: int = -1
    when: Callable[[bytes, bytes], bool] = _always


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of a piece's body; bytes in none of the ``fields`` are told by their offset.

    ``extended``: why the body may be longer on one side by bytes that are all 0; empty if it may not.
    """

    fields: tuple[Field, ...] = ()
    clocks: dict[str, Clock] | None = None
    extended: str = ""

    def clock(self, field: str) -> Clock | None:
        """Return why a field may differ, if it may."""
        return (self.clocks or {}).get(field)


class Piece(NamedTuple):
    """One record or section."""

    name: str
    instance: int
    body: bytes
    layout: Layout = Layout()

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the other pieces of a state."""
        return self.name, self.instance


@dataclass(frozen=True, slots=True)
class Difference:
    """Bytes of one piece that are not the same; ``offset`` is within its body, ``explained`` if they belong to a clock."""

    record: str
    instance: int
    field: str
    offset: int
    length: int
    reason: str = UNEXPLAINED
    explained: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as part of the answer to ``verify``."""
        return {
            "record": self.record,
            "instance": self.instance,
            "field": self.field,
            "offset": self.offset,
            "length": self.length,
            "reason": self.reason,
        }


def fields(text: str) -> tuple[Field, ...]:
    """Return the fields of ``name:bytes`` or ``name:bytes*count``, one after the other; ``-`` names what has no name."""
    found = []
    offset = 0
    for word in text.split():
        name, _, size = word.partition(":")
        length, _, count = size.partition("*")
        for index in range(int(count or 1)):
            if name != "-":
                found.append(Field(f"{name}[{index}]" if count else name, offset, int(length)))
            offset += int(length)
    return tuple(found)


def compare_pieces(ours: Sequence[Piece], theirs: Sequence[Piece], unlike: str = "") -> list[Difference]:
    """Return what differs, piece by piece; a piece that only one side has is a difference of its whole body.

    ``unlike``: why a piece whose body has another length on each side is not compared; empty when it is.
    """
    other = {piece.key: piece for piece in theirs}
    different: list[Difference] = []
    for piece in ours:
        twin = other.pop(piece.key, None)
        if twin and unlike and len(twin.body) != len(piece.body):
            different.append(_not_compared(piece, twin, unlike))
        else:
            different += _compare_piece(piece, twin) if twin else [_alone(piece, "primary")]
    return different + [_alone(piece, "secondary") for piece in other.values()]


def _alone(piece: Piece, side: str) -> Difference:
    reason = f"Only the {side} has it. {UNEXPLAINED}"
    return Difference(*piece.key, "all of it", 0, len(piece.body), reason)


def _not_compared(ours: Piece, theirs: Piece, unlike: str) -> Difference:
    reason = f"{_lengths(ours, theirs)} {unlike}"
    return Difference(*ours.key, "all of it", 0, len(ours.body), reason, explained=True)


def _lengths(ours: Piece, theirs: Piece) -> str:
    return f"It has {len(ours.body)} bytes on the primary, {len(theirs.body)} on the secondary."


def _compare_piece(ours: Piece, theirs: Piece) -> Iterator[Difference]:
    if ours.body == theirs.body:
        return
    if len(ours.body) != len(theirs.body):
        shorter, longer = sorted((ours.body, theirs.body), key=len)
        at, more = len(shorter), len(longer) - len(shorter)
        explained = bool(ours.layout.extended) and not any(longer[at:])
        reason = f"{_lengths(ours, theirs)} {ours.layout.extended if explained else UNEXPLAINED}"
        yield Difference(*ours.key, "length", at, more, reason, explained)
        ours, theirs = ours._replace(body=ours.body[:at]), theirs._replace(body=theirs.body[:at])
    covered = bytearray(len(ours.body))
    for field in ours.layout.fields:
        end = field.offset + field.length
        covered[field.offset : end] = b"\1" * (min(end, len(covered)) - min(field.offset, len(covered)))
        mine, its = ours.body[field.offset : end], theirs.body[field.offset : end]
        if mine != its:
            yield _judge(ours, theirs, field, int.from_bytes(mine, "little") ^ int.from_bytes(its, "little"))
    yield from (
        Difference(*ours.key, "", offset, length) for offset, length in _runs(ours.body, theirs.body, covered)
    )


def _judge(ours: Piece, theirs: Piece, field: Field, changed: int) -> Difference:
    clock = ours.layout.clock(field.name)
    if clock and not changed & ~clock.mask and clock.when(ours.body, theirs.body):
        return Difference(*ours.key, field.name, field.offset, field.length, clock.reason, explained=True)
    return Difference(*ours.key, field.name, field.offset, field.length)


def _runs(ours: bytes, theirs: bytes, covered: bytes | bytearray) -> list[tuple[int, int]]:
    """Return (offset, length) of what differs outside the fields, at most MAX_RUNS of them."""
    places = [
        at
        for at, (mine, its, known) in enumerate(zip(ours, theirs, covered, strict=True))
        if mine != its and not known
    ]
    gap = _RUN_GAP_BYTES
    while True:
        runs: list[list[int]] = []
        for at in places:
            if runs and at - runs[-1][1] <= gap:
                runs[-1][1] = at
            else:
                runs.append([at, at])
        if len(runs) <= MAX_RUNS:
            return [(first, last + 1 - first) for first, last in runs]
        gap *= 2
