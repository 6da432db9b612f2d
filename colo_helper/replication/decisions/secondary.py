"""What the secondary does, as pure functions of what it knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, unique
from typing import Any

from colo_helper.replication.decisions.session import Cause


@unique
class Step(Enum):
    """How far the secondary is."""

    COPYING = "the first copy is arriving"
    READY = "the first copy is complete and has not run"
    STANDING = "the copy, the VM until a switch-over, stands still"
    RUNNING = "the copy runs"
    PARTIAL = "the copy stands still and a checkpoint is arriving"
    APPLYING = "a complete checkpoint is being applied"
    APPLIED = "the checkpoint is applied and the copy stands still"
    TORN = "the copy is neither of two states"


@dataclass(frozen=True, slots=True)
class SecondaryEnd:
    """How a session ends on the secondary. ``copy`` is ``destroy``, ``run`` (off the network) or ``hold`` (still).

    An empty ``phase`` is the one before the session.
    """

    phase: str
    copy: str
    exit_code: int | None
    sentence: str


_RUN_ON = {
    Step.RUNNING: "the copy runs on",
    Step.PARTIAL: "the partial checkpoint was dropped and the copy runs on from its own state",
    Step.APPLIED: "the checkpoint had arrived completely, and the copy runs on from it",
}


def secondary_end(vm: str, peer: str, step: Step, cause: Cause, why: str) -> SecondaryEnd:
    """Decide what becomes of the copy; ``exit_code`` None means: wait for the next session or for an operator.

    It goes only when the primary says so, or when it is of no use. Somebody who asked this side to stop asked while there was
    a primary; without one the copy may be all that is left of the VM.
    """
    why = why.rstrip(".")
    if cause is Cause.SWITCHED:
        return SecondaryEnd(
            "unprotected", "run", 0, f"{why}; {vm} runs here, unprotected until {peer} is its secondary."
        )
    if cause is Cause.END:
        return stopped_end(vm, why)
    if cause is Cause.RENEW:
        return SecondaryEnd("waiting", "destroy", None, f"{why}; the copy of {vm} was destroyed.")
    return _unplanned_end(vm, peer, step, cause, why)


def stopped_end(vm: str, why: str) -> SecondaryEnd:
    """Decide the end that somebody asked for."""
    return SecondaryEnd("stopped", "destroy", 0, f"{why.rstrip('.')}; the copy of {vm} was destroyed.")


def not_destroyed(end: SecondaryEnd, vm: str) -> SecondaryEnd:
    """Return what an end comes to whose copy did not go: it says so, and it is no success."""
    sentence = f"The copy of {vm} was to be destroyed, and may still be here: look with 'xl list'."
    if end.exit_code is None:
        return replace(end, sentence=sentence)
    return replace(end, phase="failed", exit_code=1, sentence=sentence)


def _unplanned_end(vm: str, peer: str, step: Step, cause: Cause, why: str) -> SecondaryEnd:
    if step is Step.TORN:
        return SecondaryEnd(
            "torn",
            "hold",
            None,
            f"{why}; the copy of {vm} is still not whole and stands still until its primary comes back.",
        )
    if step is Step.STANDING:
        return SecondaryEnd("", "hold", None, f"{why}; the copy of {vm} stands by as before.")
    if step in (Step.COPYING, Step.READY):
        return SecondaryEnd("waiting", "destroy", None, f"{why}; the unfinished copy of {vm} was destroyed.")
    if cause is Cause.LOCAL_ERROR or step is Step.APPLYING:
        sentence = f"{why}; the copy of {vm} cannot be used and was destroyed. Waiting for the primary to make another."
        return SecondaryEnd("waiting", "destroy", None, sentence)
    if cause is Cause.GUEST_DIED:
        sentence = f"The primary on {peer} says: {why}; {_RUN_ON[step]}, off the network, unless an operator lets it take over."
        return SecondaryEnd("peer_lost", "run", None, sentence)
    gave_up = cause is Cause.ABORT
    what = f"gave up: {why}; its guest runs there" if gave_up else f"was lost: {why}"
    sentence = (
        f"The primary on {peer} {what}; {_RUN_ON[step]}, off the network, until it is decided who goes on."
    )
    return SecondaryEnd("peer_lost", "run", None, sentence)


@dataclass(frozen=True, slots=True)
class SecondaryStart:
    """``action`` is ``wait`` or ``hold`` (go on with the copy an earlier replicator left, in ``phase``)."""

    action: str
    phase: str
    sentence: str


#: Phases of a copy that was the VM until a switch-over, and stands still since.
STANDING_BY = ("standby", "handed_over")


def secondary_start(
    vm: str, domid: int | None, saved: dict[str, Any] | None, boot_id: str, torn: bool
) -> SecondaryStart:
    """Decide how a secondary starts, from the domain that exists here and the state file of an earlier run.

    ``torn``: that run ended while it applied a checkpoint.
    """
    if domid is None:
        return SecondaryStart("wait", "waiting", "Waiting for the primary.")
    mine = saved is not None and saved.get("boot_id") == boot_id and saved.get("domid") == domid
    if saved is None or not mine or saved.get("role") != "secondary":
        return SecondaryStart("wait", "waiting", exists_refusal(vm, domid))
    phase = str(saved.get("phase"))
    if phase in ("peer_lost", "active", *STANDING_BY):
        return SecondaryStart("hold", phase, f"Going on with domain {domid}: {saved.get('reason', '')}")
    if phase == "torn" or torn:
        return SecondaryStart(
            "hold",
            "torn",
            f"The replicator ended while it changed the copy of {vm} (domain {domid}): that is neither of two states and "
            "cannot run; the primary can make it whole again.",
        )
    if phase in ("replicating", "resyncing"):
        return SecondaryStart(
            "hold",
            "peer_lost",
            f"The replicator was started anew; the copy of {vm} (domain {domid}) goes on from its own state, off the network, "
            "until its primary comes back or it is decided who goes on.",
        )
    return SecondaryStart("wait", "waiting", exists_refusal(vm, domid))


def was_receiving(saved: dict[str, Any] | None, boot_id: str) -> bool:
    """Tell whether an earlier run, of this boot, ended while a first copy arrived: it begins only where no such domain is."""
    known = saved or {}
    return (known.get("role"), known.get("phase"), known.get("boot_id")) == (
        "secondary",
        "receiving",
        boot_id,
    )


def exists_refusal(vm: str, domid: int) -> str:
    """Return the sentence that refuses a copy because the secondary's host has such a domain already."""
    return f"The secondary's host already has a domain named {vm} (number {domid}); it must go before a copy can come."


def foreign_refusal(vm: str) -> str:
    """Return the sentence that refuses a primary whose guest the copy here does not come from."""
    return (
        f"The copy of {vm} here lost its primary and is of another first copy than this primary's; it waits for an operator: "
        "takeover, or stop."
    )
