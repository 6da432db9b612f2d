"""What is kept for each VM: who owns it, and whether somebody else may come to own it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1
#: Nobody else has a copy that may run; or the secondary has one that may, once the owner's lease has ended.
ALONE, PROTECTED = "alone", "protected"
#: A field that a release before this one does not write.
_ADDED = "given_by"


class RecordError(ValueError):
    """What is kept cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """One VM. ``epoch`` goes up by one with every change; ``since_s`` is wall-clock time, for people."""

    vm: str
    owner: str
    epoch: int
    mode: str
    cause: str
    since_s: int
    secondary: str = ""
    generation: str = ""
    #: Who put the owner's name down, when that was not the owner: what its own guest says never leaves any more.
    given_by: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The owner's right to let output leave. ``number`` is the arbiter's name for it."""

    holder: str
    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One look. ``version`` changes with every change of the record, and is 0 while there is none."""

    record: Record | None = None
    version: int = 0
    lease: Lease | None = None


def pack_record(record: Record) -> bytes:
    """Return the JSON that is kept."""
    return json.dumps({"format": FORMAT, **asdict(record)}).encode()


def parse_record(data: bytes) -> Record:
    """Read a record; raises RecordError."""
    value = _object(data)
    known = {_ADDED: "", **value}
    try:
        record = Record(**{name: known[name] for name in Record.__dataclass_fields__})
    except KeyError as error:
        raise RecordError(f"The record has no field {error}.") from None
    for name, kind in Record.__annotations__.items():
        if type(getattr(record, name)).__name__ != kind:
            raise RecordError(f"Field {name!r} of the record is {getattr(record, name)!r}.")
    if record.mode not in (ALONE, PROTECTED) or not record.owner or record.epoch < 1:
        raise RecordError(f"The record makes no sense: {record}.")
    return record


def pack_lease(holder: str, epoch: int) -> bytes:
    """Return the JSON that is kept as long as the lease lasts."""
    return json.dumps({"format": FORMAT, "holder": holder, "epoch": epoch}).encode()


def parse_lease(data: bytes, number: int) -> Lease:
    """Read who holds a lease; raises RecordError."""
    value = _object(data)
    holder, epoch = value.get("holder"), value.get("epoch")
    if not isinstance(holder, str) or type(epoch) is not int:
        raise RecordError(f"The lease is {value!r}.")
    return Lease(holder, epoch, number)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise RecordError(f"What is kept is not JSON: {error}.") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise RecordError(f"What is kept is not of format {FORMAT}: {value!r}.")
    return value
