"""What to do next, as pure functions: a snapshot goes in, an action and one sentence why come out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Any

from colo_helper.hypervisor.interface import DomainInfo

PROTOCOL = 5

#: (primary's release, secondary's release) that were seen to work beside equal releases. A guest goes to a newer Xen,
#: never back: that way was not tried.
UPGRADE_PAIRS = frozenset({("4.17", "4.20")})


@unique
class Cause(Enum):
    """Why a session ended."""

    PEER_LOST = "the channel is gone or the peer is silent"
    PEER_REFUSED = "the peer said that it will not go on"
    PEER_FAILED = "something failed on the peer, and its copy is gone"
    GUEST_ENDED = "the guest has rebooted or was shut down, in order"
    GUEST_DIED = "the guest has crashed, or its domain is gone without a word"
    RENEW = "the primary's guest has ended, and another copy will come"
    LOCAL_ERROR = "something failed on this host"
    STOP = "somebody asked this side to stop"
    END = "the primary ended the protection in order"
    ABORT = "the primary gave up and its guest runs on"
    SWITCHED = "the roles have been swapped"


class SessionEndedError(Exception):
    """The session is over; ``cause`` and the sentence say why."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


def pair_refusal(primary: str, secondary: str) -> str:
    """Return why a guest of one Xen release cannot be copied to another, or an empty string."""
    if primary == secondary or (primary, secondary) in UPGRADE_PAIRS:
        return ""
    return f"A primary on Xen {primary} cannot have a secondary on Xen {secondary}; only equal releases and 4.17 to 4.20."


# ------------------------------------------------------------------------------------------------ the primary


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What the primary's guest is, before it is protected."""

    vm: str
    hvm: bool
    shutdown: bool
    pv_drivers: bool
    writable_disks: tuple[str, ...]


def guest_refusal(facts: GuestFacts) -> str:
    """Return why a guest cannot be protected, or an empty string."""
    if not facts.hvm:
        return f"{facts.vm} is not an HVM guest; only those can be replaced while they run."
    if facts.shutdown:
        return f"{facts.vm} is shut down or suspended."
    if facts.pv_drivers:
        return (
            f"{facts.vm} uses PV drivers, which cannot be stopped without its help; start it with 'xen_nopv'."
        )
    if facts.writable_disks:
        disks = ", ".join(facts.writable_disks)
        return f"{facts.vm} can write to the disks {disks}, which are not copied yet."
    return ""


@dataclass(frozen=True, slots=True)
class PrimaryStart:
    """What an earlier run left: whether it crashed, and the copy the peer may still have of its guest.

    ``ended`` is the generation whose guest has ended since; a copy of it is worth nothing any more.
    """

    crashed: bool
    generation: str
    epoch: int
    sentence: str
    ended: str = ""


def primary_start(saved: dict[str, Any] | None, domid: int | None, boot_id: str) -> PrimaryStart:
    """Decide what to take over from the state file of an earlier run, which must be of this boot.

    When the host itself has been started anew, the peer's copy may be worth more than what runs here.
    """
    if saved is None or saved.get("role") != "primary" or saved.get("boot_id") != boot_id:
        return PrimaryStart(False, "", 0, "Nothing is left of an earlier run.")
    phase = str(saved.get("phase"))
    crashed = phase in ("connecting", "copying", "resyncing", "replicating", "unprotected")
    ended = str(saved.get("ended_generation") or "")
    if crashed and domid is not None and saved.get("domid") not in (domid, None):
        ended = str(saved.get("generation") or ended)
        return PrimaryStart(False, "", 0, "The guest has ended since the replicator did.", ended)
    if not crashed:
        return PrimaryStart(False, "", 0, "Nothing is left of an earlier run.", ended)
    known = phase in ("resyncing", "replicating", "unprotected")
    generation = str(saved.get("generation", "")) if known else ""
    return PrimaryStart(
        crashed,
        generation,
        int(saved.get("epoch", 0)) if generation else 0,
        f"The replicator before this one ended while {phase}; the guest runs on, not logged.",
        ended,
    )


@dataclass(frozen=True, slots=True)
class Idle:
    """The primary between two checkpoints; times are seconds of the monotonic clock."""

    now_s: float
    due_s: float
    stop_reason: str
    requested: str
    #: Why the packets need a checkpoint, empty when they do not.
    wanted: str = ""
    #: Somebody else has paused the guest, and caught it in the middle of an I/O request.
    caught: bool = False


@dataclass(frozen=True, slots=True)
class IdleStep:
    """``action`` is ``wait`` (for ``wait_s``), ``checkpoint`` or ``stop``."""

    action: str
    wait_s: float
    sentence: str


#: How often it is looked whether a guest that somebody else paused runs again, in seconds.
CAUGHT_S = 0.5


def idle_step(idle: Idle) -> IdleStep:
    """Decide what the primary does while both copies run."""
    if idle.stop_reason:
        return IdleStep("stop", 0.0, idle.stop_reason)
    if idle.caught:
        return IdleStep(
            "wait",
            CAUGHT_S,
            "Somebody else has paused the guest in the middle of an I/O request, and a copy of that would not be exact: the "
            "next checkpoint comes when it runs again.",
        )
    if idle.requested:
        return IdleStep("checkpoint", 0.0, f"A checkpoint was asked for ({idle.requested}).")
    if idle.wanted:
        return IdleStep("checkpoint", 0.0, idle.wanted)
    if idle.now_s >= idle.due_s:
        return IdleStep("checkpoint", 0.0, "The interval has passed.")
    return IdleStep("wait", idle.due_s - idle.now_s, "The interval has not passed yet.")


@unique
class PrimaryStep(Enum):
    """How far the primary is."""

    NO_GUEST = "there is no guest, or it was not opened"
    UNPROTECTED = "the first copy is not complete"
    PROTECTED = "both copies ran, of this guest or of the one before it"
    HANDED_OVER = "the secondary was told that its copy is the VM from now on"


@dataclass(frozen=True, slots=True)
class PrimaryEnd:
    """How a session ends on the primary. ``tell`` is what the peer hears: ``end``, ``renew``, ``abort`` or nothing.

    ``exit_code`` None means: stay, and try to protect the guest again. ``guest`` is ``run``, ``gone``, or ``hold`` (still,
    and off the network: this side is the secondary from now on).
    """

    phase: str
    tell: str
    exit_code: int | None
    sentence: str
    guest: str = "run"


def primary_end(vm: str, peer: str, step: PrimaryStep, cause: Cause, why: str) -> PrimaryEnd:
    """Decide how the primary ends a session: its guest runs on at once, with log-dirty off, unless it was handed over."""
    why = why.rstrip(".")
    if step is PrimaryStep.HANDED_OVER:
        return _handed_over_end(vm, peer, cause, why)
    if cause in (Cause.GUEST_ENDED, Cause.GUEST_DIED):
        return _guest_ended_end(vm, peer, step, why, by_itself=cause is Cause.GUEST_ENDED)
    if cause is Cause.STOP and step is not PrimaryStep.NO_GUEST:
        return PrimaryEnd("stopped", "end", 0, f"{why}; {vm} runs on unprotected.")
    if step is PrimaryStep.PROTECTED:
        return _protected_end(vm, peer, cause, why)
    if step is PrimaryStep.UNPROTECTED:
        tell = "abort" if cause is Cause.LOCAL_ERROR else ""
        return PrimaryEnd("failed", tell, 1, f"{why}; {vm} was not protected yet and runs on.")
    failed = cause is not Cause.STOP
    return PrimaryEnd("failed" if failed else "stopped", "", int(failed), f"{why}.")


def _protected_end(vm: str, peer: str, cause: Cause, why: str) -> PrimaryEnd:
    """What was protected once is protected again as soon as that can be, unless the peer does not want it."""
    if cause is Cause.LOCAL_ERROR:
        return PrimaryEnd(
            "unprotected", "abort", None, f"{why}; {vm} runs on unprotected, and it is tried again."
        )
    refused = cause is Cause.PEER_REFUSED
    lost = {Cause.PEER_REFUSED: "gave up", Cause.PEER_FAILED: "failed"}.get(cause, "was lost")
    sentence = f"The secondary on {peer} {lost}: {why}; {vm} runs on unprotected."
    return PrimaryEnd("unprotected", "", 1 if refused else None, sentence)


def _guest_ended_end(vm: str, peer: str, step: PrimaryStep, why: str, by_itself: bool) -> PrimaryEnd:
    """A copy of a guest that ended in order is worth nothing; otherwise it is kept until another guest runs here."""
    if step is PrimaryStep.NO_GUEST:
        return PrimaryEnd("awaiting_guest", "", None, f"{why}. It is protected again when it runs.", "gone")
    copy = "given up" if by_itself else "kept, off the network"
    sentence = f"{why}; its copy on {peer} is {copy}. {vm} is protected again when it runs."
    return PrimaryEnd("awaiting_guest", "renew" if by_itself else "abort", None, sentence, "gone")


def _handed_over_end(vm: str, peer: str, cause: Cause, why: str) -> PrimaryEnd:
    if cause is Cause.SWITCHED:
        return PrimaryEnd(
            "standby", "", 0, f"{why}; the copy of {vm} here stands by, off the network.", "hold"
        )
    sentence = (
        f"{vm} was handed over to {peer}, which did not confirm it: {why}. It may run there, so it stands still here, until "
        "an operator decides."
    )
    return PrimaryEnd("handed_over", "", 1, sentence, "hold")


def guest_ended(vm: str, info: DomainInfo | None) -> SessionEndedError | None:
    """Return how a guest has ended, or None while it has not.

    ``info`` None: its domain is gone. A suspended one has not ended: whoever suspended it saves or moves it.
    """
    if info is None or info.dying:
        return SessionEndedError(
            Cause.GUEST_DIED,
            f"{vm} is gone from this host: it has rebooted, or it was shut down, destroyed or moved",
        )
    if info.shutdown and not info.suspended:
        cause = Cause.GUEST_ENDED if info.shutdown_reason in ("poweroff", "reboot") else Cause.GUEST_DIED
        return SessionEndedError(cause, f"{vm} has ended by itself ({info.shutdown_reason})")
    return None


#: A guest that waits for its device model more than this share of the time does nothing else.
BUSY_WITH_IO = 0.5
#: A new guest is given so long for its firmware, in seconds.
FIRMWARE_S = 300.0


def not_yet(vm: str, info: DomainInfo | None, io_share: float = 0.0, there_s: float = 0.0) -> str:
    """Return why a guest that had ended cannot be protected yet, or an empty string.

    A domain that is still being built is paused. ``io_share`` is in which share of the time its vCPUs wait for the device
    model, ``there_s`` how long it has been there. A firmware that reads a kernel or a disk through a port does little else,
    and while the guest is copied, QEMU makes a hypercall for each byte of that.
    """
    if info is None:
        return f"There is no domain {vm}"
    if info.shutdown:
        return (
            f"The domain {vm} (number {info.domid}) has ended ({info.shutdown_reason}) and is still there; if its xl does not "
            f"remove it, 'xl destroy {vm}' does"
        )
    if info.paused or info.dying:
        return f"The domain {vm} (number {info.domid}) does not run"
    if io_share > BUSY_WITH_IO and there_s < FIRMWARE_S:
        return f"The domain {vm} (number {info.domid}) is being booted: it waits for its devices {io_share:.0%} of the time"
    return ""


#: Wait between attempts to protect again, in seconds: doubled from the first to the last, as long as they fail.
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
#: How often a guest that has ended is looked for, in seconds.
AWAIT_S = 2.0


def retry_wait(last_s: float, cause: Cause, checkpoints: int) -> float:
    """Return how long to wait before the next attempt, in seconds, after one that made so many checkpoints."""
    if cause in (Cause.GUEST_ENDED, Cause.GUEST_DIED):
        return AWAIT_S if checkpoints else min(LAST_RETRY_S, max(AWAIT_S, last_s * 1.5))
    if checkpoints > 1:  # one alone may be followed by the same failure again and again
        return FIRST_RETRY_S
    return min(LAST_RETRY_S, max(FIRST_RETRY_S, last_s * 2))


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a session begins. ``action`` is ``copy``, ``resync`` (what differs is found by comparing), or ``refuse``."""

    action: str
    sentence: str


def beginning(vm: str, peer: str, ours: str, theirs: str) -> Beginning:
    """Decide from the generations that the primary and the secondary have; empty where there is no copy."""
    if not theirs:
        return Beginning("copy", f"{vm} runs on while its first copy goes to {peer}.")
    if theirs == ours:
        return Beginning(
            "resync", f"{peer} still has a copy of {vm}: only what differs goes there, while {vm} runs on."
        )
    return Beginning(
        "refuse",
        f"{peer} has a copy of {vm} that does not come from this one; it must be given up there first.",
    )


# ---------------------------------------------------------------------------------------------- the secondary


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


def secondary_end(vm: str, peer: str, step: Step, cause: Cause, why: str, stop_asked: bool) -> SecondaryEnd:
    """Decide what becomes of the copy; ``exit_code`` None means: wait for the next session or for an operator."""
    why = why.rstrip(".")
    if cause is Cause.SWITCHED:
        return SecondaryEnd(
            "unprotected", "run", 0, f"{why}; {vm} runs here, unprotected until {peer} is its secondary."
        )
    if cause in (Cause.END, Cause.STOP) or stop_asked:
        return SecondaryEnd("stopped", "destroy", 0, f"{why}; the copy of {vm} was destroyed.")
    if cause is Cause.RENEW:
        return SecondaryEnd("waiting", "destroy", None, f"{why}; the copy of {vm} was destroyed.")
    return _unplanned_end(vm, peer, step, cause, why)


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
    gave_up = cause is Cause.ABORT
    what = f"gave up: {why}; its guest runs there" if gave_up else f"was lost: {why}"
    sentence = f"The primary on {peer} {what}; {_RUN_ON[step]}, off the network, until an operator decides."
    return SecondaryEnd("peer_lost", "run", None, sentence)


@dataclass(frozen=True, slots=True)
class SecondaryStart:
    """``action`` is ``wait`` or ``hold`` (go on with the copy an earlier replicator left, in ``phase``)."""

    action: str
    phase: str
    sentence: str


def role_refusal(vm: str, role: str, saved: dict[str, Any] | None, boot_id: str, domid: int | None) -> str:
    """Return why the domain here cannot have the role that the configuration names, or an empty string.

    After a switch-over each side has the other role. A replicator that was started with its old configuration must not
    let a copy run as if it were the VM, nor take the VM for a copy.
    """
    if saved is None or domid is None or (saved.get("boot_id"), saved.get("domid")) != (boot_id, domid):
        return ""
    was, phase = str(saved.get("role")), str(saved.get("phase"))
    held = {
        "secondary": (*STANDING_BY, "torn", "peer_lost", "resyncing", "replicating"),
        "primary": ("connecting", "copying", "resyncing", "replicating", "unprotected"),
    }
    if was == role or phase not in held.get(was, ()):
        return ""
    return (
        f"The configuration says that this host is the {role} of {vm}, but it is its {was} ({phase}): "
        f"{saved.get('reason', '')} Run the playbook that swaps the roles to its end, or end the protection first."
    )


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
            "until its primary comes back or an operator decides.",
        )
    return SecondaryStart("wait", "waiting", exists_refusal(vm, domid))


def exists_refusal(vm: str, domid: int) -> str:
    """Return the sentence that refuses a copy because the secondary's host has such a domain already."""
    return f"The secondary's host already has a domain named {vm} (number {domid}); it must go before a copy can come."


def foreign_refusal(vm: str) -> str:
    """Return the sentence that refuses a primary whose guest the copy here does not come from."""
    return (
        f"The copy of {vm} here lost its primary and is of another first copy than this primary's; it waits for an operator: "
        "takeover, or stop."
    )


# ----------------------------------------------------------------------------------------------- control verbs


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a verb is not carried out: one word and one sentence."""

    code: str
    sentence: str


def verb_refusal(vm: str, role: str, phase: str, verb: str) -> Refusal | None:
    """Decide whether a verb may be carried out in a phase; None means yes."""
    if verb in ("checkpoint", "verify", "switchover"):
        return _checkpoint_refusal(vm, role, phase, verb)
    if verb == "takeover":
        return _takeover_refusal(vm, role, phase)
    if verb == "stop" and phase == "active":
        return Refusal(
            "active",
            f"{vm} was taken over and this is the copy in use; it will not be destroyed. Shut it down with xl.",
        )
    return None


def _checkpoint_refusal(vm: str, role: str, phase: str, verb: str) -> Refusal | None:
    if role != "primary":
        return Refusal("wrong_side", f"'{verb}' is asked of the primary; this is the secondary of {vm}.")
    if phase != "replicating":
        return Refusal("not_replicating", f"{vm} is {phase}, not replicating, so there can be no checkpoint.")
    return None


def _takeover_refusal(vm: str, role: str, phase: str) -> Refusal | None:
    if role != "secondary":
        return Refusal("wrong_side", f"'takeover' is asked of the secondary; this is the primary of {vm}.")
    if phase in ("receiving", "resyncing", "replicating"):
        return Refusal("primary_alive", f"The primary of {vm} is alive: its channels are up. Stop it first.")
    if phase == "active":
        return Refusal("already_active", f"{vm} was taken over before; it is active here.")
    if phase not in ("peer_lost", *STANDING_BY):
        return Refusal("no_copy", f"There is no copy of {vm} here that could take over (it is {phase}).")
    return None


def attach_refusal(vm: str, phase: str) -> str:
    """Return why no primary may attach in this phase of the secondary, or an empty string."""
    if phase in ("waiting", "peer_lost", "torn", *STANDING_BY):
        return ""
    if phase in ("receiving", "resyncing", "replicating"):
        return f"Another primary of {vm} is attached already."
    if phase == "active":
        return f"{vm} was taken over and is active here."
    return f"The secondary of {vm} is {phase}."
