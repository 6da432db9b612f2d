"""Who may run, decided from one look at what the arbiter keeps: pure, each answer with one sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, unique

from colo_helper.arbiter.record import ALONE, PROTECTED, Lease, Record, Seen


@unique
class Do(Enum):
    """What follows from a look."""

    RUN = "this copy is the VM, and nobody else can come to be"
    CLAIM = "ask the arbiter to put ``record`` down; this copy is the VM when it says yes"
    WAIT = "look again: somebody else may still let output leave"
    STOP = "this copy must not run: another one is the VM"


@dataclass(frozen=True, slots=True)
class Ruling:
    """What to do, and why; with CLAIM the record that is to be put down, with RUN the one that says so, if one does."""

    do: Do
    sentence: str
    record: Record | None = None


def protected_by(seen: Seen, me: str, vm: str, secondary: str, generation: str, now_s: int) -> Ruling:
    """Decide whether the primary may give its secondary the right to go on without it."""
    ruling = _owned(seen, me, vm)
    if ruling:
        return ruling
    cause = f"{secondary} has a copy of {vm}"
    return Ruling(Do.CLAIM, f"{cause}.", _next(seen, vm, me, PROTECTED, cause, now_s, secondary, generation))


def secondary_lost(seen: Seen, me: str, vm: str, why: str, now_s: int, *, given: bool = False) -> Ruling:
    """Decide for the primary without a secondary: what was said after the last checkpoint may leave, or never.

    ``given``: the secondary was given the right to go on, and it is not known that it was taken back.
    """
    ruling = _owned(seen, me, vm)
    if ruling:
        return ruling
    if seen.record is None and given:
        return Ruling(
            Do.WAIT,
            f"The arbiter knows nothing of {vm}, although the secondary was given the right to go on with it: it has lost what "
            "it knew. Look whether the copy is the VM there; when not, say so with playbooks/maintenance.yml and colo_confirm.",
        )
    if seen.record is None or seen.record.mode == ALONE:
        return Ruling(Do.RUN, f"Nobody else has a copy of {vm} that may run.")
    return Ruling(Do.CLAIM, f"{vm} goes on alone here.", _next(seen, vm, me, ALONE, why, now_s))


def primary_lost(seen: Seen, me: str, vm: str, generation: str, why: str, now_s: int) -> Ruling:
    """Decide for a secondary whose primary is not heard, and whose copy is of ``generation``."""
    record, lease = seen.record, seen.lease
    if record is None:
        return Ruling(
            Do.STOP, f"The arbiter knows nothing of {vm}, so nobody was given the right to go on with it."
        )
    if record.owner == me:
        return _ours(record)
    if record.mode == ALONE or record.secondary != me or record.generation != generation:
        return Ruling(
            Do.STOP,
            f"{vm} runs on {record.owner} ({record.cause}), and the copy here is not what it was protected by.",
        )
    if lease is not None:
        return _lasting(lease, vm)
    return Ruling(Do.CLAIM, f"The lease of {record.owner} has ended.", _next(seen, vm, me, ALONE, why, now_s))


def given_to(seen: Seen, me: str, vm: str) -> Ruling:
    """Decide for a secondary in maintenance: it goes on when its owner has given it the VM, never by itself."""
    record = seen.record
    if record is not None and record.owner == me and record.given_by:
        return _ours(record)
    return Ruling(
        Do.WAIT, f"The copy of {vm} here does not take over by itself, because it is in maintenance."
    )


def operator_decided(seen: Seen, me: str, vm: str, generation: str, why: str, now_s: int) -> Ruling:
    """Decide what an operator's takeover comes to that the arbiter hears of later: they said that the owner is off.

    It stands, lease or not, unless the owner has gone on alone meanwhile.
    """
    record = seen.record
    if record is None:
        return Ruling(Do.RUN, "Nobody else knows of it.")
    if record.owner == me:
        return _ours(record)
    if record.mode == PROTECTED and (record.secondary, record.generation) == (me, generation):
        return Ruling(Do.CLAIM, why, _next(seen, vm, me, ALONE, why, now_s))
    return Ruling(Do.STOP, f"{vm} runs on {record.owner} ({record.cause}).")


def overridden(seen: Seen, me: str, vm: str, why: str, now_s: int) -> Ruling:
    """Decide for a secondary that has no right, and whose operator answers for it that no other copy runs.

    A lease that lasts tells that one does.
    """
    record, lease = seen.record, seen.lease
    if lease is not None and lease.holder != me:
        return _lasting(lease, vm)
    if record is None or record.owner == me:
        return Ruling(Do.RUN, "Nobody else has it.")
    cause = f"{why} Before that it was {record.owner}'s ({record.cause})."
    return Ruling(Do.CLAIM, cause, _next(seen, vm, me, ALONE, cause, now_s))


def handed_over(seen: Seen, me: str, vm: str, heir: str, now_s: int, why: str = "") -> Ruling:
    """Decide whether the primary, whose guest stands still for good, may make its secondary the owner."""
    ruling = _owned(seen, me, vm)
    if ruling:
        return ruling
    cause = f"{vm} was handed over by {me}" + (f": {why}" if why else "")
    return Ruling(Do.CLAIM, f"{cause}.", replace(_next(seen, vm, heir, ALONE, cause, now_s), given_by=me))


def _owned(seen: Seen, me: str, vm: str) -> Ruling | None:
    """Return what follows when another is the owner; None otherwise."""
    record, lease = seen.record, seen.lease
    if record is not None and record.owner != me:
        return Ruling(Do.STOP, f"{vm} is {record.owner}'s since epoch {record.epoch} ({record.cause}).")
    if lease is not None and lease.holder != me:
        return _lasting(lease, vm)
    return None


def _ours(record: Record) -> Ruling:
    return Ruling(Do.RUN, f"The copy of {record.vm} here is the VM ({record.cause}).", record)


def _lasting(lease: Lease, vm: str) -> Ruling:
    return Ruling(Do.WAIT, f"{lease.holder} may still let output of {vm} leave: its lease has not ended.")


def _next(
    seen: Seen,
    vm: str,
    owner: str,
    mode: str,
    cause: str,
    now_s: int,
    secondary: str = "",
    generation: str = "",
) -> Record:
    epoch = seen.record.epoch + 1 if seen.record else 1
    return Record(vm, owner, epoch, mode, cause, now_s, secondary, generation)
