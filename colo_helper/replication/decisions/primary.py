"""What the primary does, as pure functions of what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Any

from colo_helper.hypervisor.interface import DomainInfo
from colo_helper.monitor.state import kept_state
from colo_helper.replication.decisions.session import Cause, SessionEndedError


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What the primary's guest is, before it is protected."""

    vm: str
    hvm: bool
    shutdown: bool
    pv_drivers: bool
    writable_disks: tuple[str, ...]
    #: Where its taps are, and where those of a copy are put.
    bridges: frozenset[str]
    bridge: str


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
    if others := sorted(facts.bridges - {facts.bridge}):
        return (
            f"{facts.vm} has a network card on {', '.join(others)}, and its copy would have it on {facts.bridge}: "
            "set its bridge in colo_vms, or put all of its cards on one."
        )
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


#: Phases of a primary whose replicator keeps the guest.
AT_WORK = ("connecting", "copying", "resyncing", "replicating", "asking", "unprotected")


def primary_start(saved: dict[str, Any] | None, domid: int | None, boot_id: str) -> PrimaryStart:
    """Decide what to take over from the state file of an earlier run, which must be of this boot.

    When the host itself has been started anew, the peer's copy may be worth more than what runs here. A copy that took over
    comes from the same first copy as what its primary had, which may stand by there.
    """
    if saved is None or saved.get("boot_id") != boot_id:
        return PrimaryStart(False, "", 0, "Nothing is left of an earlier run.")
    phase = str(saved.get("phase"))
    took_over = (saved.get("role"), phase, saved.get("domid")) == ("secondary", "active", domid)
    if saved.get("role") != "primary" and not took_over:
        return PrimaryStart(False, "", 0, "Nothing is left of an earlier run.")
    crashed = phase in AT_WORK or took_over
    ended = str(saved.get("ended_generation") or "")
    if crashed and domid is not None and saved.get("domid") not in (domid, None):
        ended = str(saved.get("generation") or ended)
        return PrimaryStart(False, "", 0, "The guest has ended since the replicator did.", ended)
    if not crashed:
        return PrimaryStart(False, "", 0, "Nothing is left of an earlier run.", ended)
    known = phase in ("resyncing", "replicating", "asking", "unprotected", "active")
    generation = str(saved.get("generation", "")) if known else ""
    return PrimaryStart(
        crashed,
        generation,
        int(saved.get("epoch", 0)) if generation else 0,
        f"The replicator before this one ended while {phase}; the guest runs on, not logged.",
        ended,
    )


def awaits_guest(saved: dict[str, Any] | None, ended: str, boot_id: str) -> bool:
    """Tell whether a guest is waited for: it has ended under an earlier replicator, or this host was started anew since."""
    known = saved or {}
    if known.get("boot_id") != boot_id:
        return saved is not None
    return known.get("phase") == "awaiting_guest" and ended != ""


def maybe_succeeded(saved: dict[str, Any] | None) -> bool:
    """Tell whether somebody else had the right to go on with the VM when an earlier run ended, in this boot or before."""
    return saved is not None and (
        saved.get("phase") in ("standby", "handed_over") or kept_state(saved)["shared"] is True
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
    #: The stop is that of the whole host.
    host_ends: bool = False


@dataclass(frozen=True, slots=True)
class IdleStep:
    """``action`` is ``wait`` (for ``wait_s``), ``checkpoint``, ``stop``, or ``leave``: a switch-over, then a stop."""

    action: str
    wait_s: float
    sentence: str


#: How often it is looked whether a guest that somebody else paused runs again, in seconds.
CAUGHT_S = 0.5


def idle_step(idle: Idle) -> IdleStep:
    """Decide what the primary does while both copies run."""
    if idle.stop_reason:
        return _stop_step(idle)
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


def _stop_step(idle: Idle) -> IdleStep:
    if idle.host_ends and not idle.caught:
        return IdleStep("leave", 0.0, f"{idle.stop_reason} The host is being shut down.")
    return IdleStep("stop", 0.0, idle.stop_reason)


@unique
class PrimaryStep(Enum):
    """How far the primary is."""

    NO_GUEST = "there is no guest, or it was not opened"
    UNPROTECTED = "the first copy is not complete"
    PROTECTED = "both copies ran, of this guest or of the one before it"
    HANDED_OVER = "the secondary was told that its copy is the VM from now on"


@dataclass(frozen=True, slots=True)
class PrimaryEnd:
    """How a session ends on the primary. ``tell`` is what the peer hears: ``end``, ``renew``, ``abort``, ``keep`` or nothing.

    ``exit_code`` None means: stay, and try to protect the guest again. ``guest`` is ``run``, ``gone``, or ``hold`` (still,
    and off the network: this side is the secondary from now on).
    """

    phase: str
    tell: str
    exit_code: int | None
    sentence: str
    guest: str = "run"


def cause_behind(cause: Cause, ended: Cause | None, *, shared: bool, stopped_by_service: bool) -> Cause:
    """Return why a session has ended when the guest has ``ended`` meanwhile, or its device model (NO_DEVICES).

    ``shared``: the secondary may come to own the VM. ``stopped_by_service``: an operator's stop can be refused, this one not.
    """
    if ended is None or cause in (Cause.SWITCHED, Cause.GIVEN_UP, Cause.LEFT):
        return cause
    if ended is Cause.GUEST_DIED:  # its copy is kept, whoever stops this side
        return cause if cause is Cause.SUCCEEDED else ended
    if ended is not Cause.NO_DEVICES:
        return cause if cause in (Cause.STOP, Cause.SUCCEEDED) else ended
    if cause is Cause.SUCCEEDED:
        return Cause.GIVEN_UP
    no_copy = cause in (Cause.PEER_FAILED, Cause.PEER_REFUSED)  # that could go on
    leaves = cause is Cause.STOP and stopped_by_service and not shared
    return cause if no_copy or leaves else ended


def primary_end(
    vm: str,
    peer: str,
    step: PrimaryStep,
    cause: Cause,
    why: str,
    *,
    lives: bool = True,
    headless: bool = False,
) -> PrimaryEnd:
    """Decide how the primary ends a session: its guest runs on at once, with log-dirty off, unless it was handed over.

    ``lives`` False: the guest, or its domain, is gone, and that is not the cause. ``headless``: so is its device model alone.
    """
    why = why.rstrip(".")
    if step is PrimaryStep.HANDED_OVER or cause in (Cause.SUCCEEDED, Cause.GIVEN_UP):
        return _handed_over_end(vm, peer, cause, why, lives=lives)
    if cause in (Cause.GUEST_ENDED, Cause.GUEST_DIED):
        return _guest_ended_end(vm, peer, step, why, by_itself=cause is Cause.GUEST_ENDED)
    if cause is Cause.STOP:
        return _stopped_end(vm, peer, step, why, lives=lives, headless=headless)
    if step is PrimaryStep.PROTECTED:
        return _protected_end(vm, peer, cause, why)
    if step is PrimaryStep.UNPROTECTED:
        runs = "." if cause is Cause.NO_DEVICES else " and runs on."
        tell = {Cause.LOCAL_ERROR: "abort", Cause.NO_DEVICES: "keep"}.get(cause, "")
        return PrimaryEnd("failed", tell, 1, f"{why}; {vm} was not protected yet{runs}")
    return PrimaryEnd("failed", "", 1, f"{why}.")


def _stopped_end(
    vm: str, peer: str, step: PrimaryStep, why: str, *, lives: bool, headless: bool
) -> PrimaryEnd:
    if step is PrimaryStep.NO_GUEST:
        return PrimaryEnd("stopped", "", 0, f"{why}.")
    if headless:
        sentence = f"{why}; the device model of {vm} has ended, so {vm} stays as it is, and its copy on {peer} is kept."
        return PrimaryEnd("stopped", "keep", 0, sentence)
    what = "runs on unprotected" if lives else "has ended, and its copy goes"
    return PrimaryEnd("stopped", "end", 0, f"{why}; {vm} {what}.", "run" if lives else "gone")


def _protected_end(vm: str, peer: str, cause: Cause, why: str) -> PrimaryEnd:
    """What was protected once is protected again as soon as that can be, unless the peer does not want it."""
    if cause is Cause.LOCAL_ERROR:
        return PrimaryEnd(
            "unprotected", "abort", None, f"{why}; {vm} runs on unprotected, and it is tried again."
        )
    if cause is Cause.NO_DEVICES:
        sentence = (
            f"{why}; {vm} stays as it is. 'xl destroy {vm}' ends it here; then playbooks/failover.yml lets its copy on {peer}, "
            "if there is one, go on."
        )
        return PrimaryEnd("unprotected", "keep", None, sentence)
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
    return PrimaryEnd("awaiting_guest", "renew" if by_itself else "keep", None, sentence, "gone")


def _handed_over_end(vm: str, peer: str, cause: Cause, why: str, *, lives: bool) -> PrimaryEnd:
    if cause is Cause.GIVEN_UP:
        here = f"is still there: 'xl destroy {vm}' ends it" if lives else "is gone"
        sentence = f"{why}; the copy on {peer} is {vm} now, and its domain here {here}."
        return PrimaryEnd("standby", "", 0, sentence, "gone")
    if cause in (Cause.SWITCHED, Cause.SUCCEEDED):
        return PrimaryEnd(
            "standby", "", 0, f"{why}; the copy of {vm} here stands by, off the network.", "hold"
        )
    sentence = (
        f"{vm} was handed over to {peer}, which did not confirm it: {why}. It may run there, so it stands still here, until "
        "an operator decides."
    )
    return PrimaryEnd("handed_over", "", 1, sentence, "hold")


def guest_ended(
    vm: str, info: DomainInfo | None, *, headless: bool = False, held: bool = False
) -> SessionEndedError | None:
    """Return how a guest has ended, or None while it has not.

    ``info`` None: its domain is gone. A suspended one has not ended: whoever suspended it saves or moves it. ``headless``: its
    device model has ended. libxl ends that of a domain that it destroys (libxl__destroy_domid), and then its devices, which
    takes seconds, before the domain; it has paused it before, and one that it has saved or moved is suspended. ``held``: it is
    we who have paused it.
    """
    if info is None or info.dying:
        return SessionEndedError(
            Cause.GUEST_DIED,
            f"{vm} is gone from this host: it has rebooted, or it was shut down, destroyed or moved",
        )
    if info.shutdown and not info.suspended:
        cause = Cause.GUEST_ENDED if info.shutdown_reason in ("poweroff", "reboot") else Cause.GUEST_DIED
        return SessionEndedError(cause, f"{vm} has ended by itself ({info.shutdown_reason})")
    if not headless:
        return None
    if info.suspended or (info.paused and not held):
        how = "suspended" if info.suspended else "paused"
        return SessionEndedError(
            Cause.GUEST_DIED,
            f"{vm} is {how}, and its device model has ended: it is being destroyed, saved or moved (if by nobody, 'xl destroy "
            f"{vm}' ends it)",
        )
    return SessionEndedError(
        Cause.NO_DEVICES, f"The device model of {vm} has ended, so it can do and say nothing any more"
    )


#: A guest that waits for its device model more than this share of the time does nothing else.
BUSY_WITH_IO = 0.5


#: A new guest is given so long for its firmware, in seconds.
FIRMWARE_S = 300.0


def not_yet(vm: str, info: DomainInfo | None) -> str:
    """Return why a guest that had ended cannot be protected yet, or an empty string.

    A domain that is still being built is paused.
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
    return ""


def still_booting(vm: str, io_share: float, waited_s: float) -> str:
    """Return why a guest is left alone for a moment before it is copied, or an empty string.

    ``io_share`` is in which share of the time its vCPUs wait for the device model. A firmware that reads a kernel or a disk
    through a port does little else, and while the guest is copied, QEMU makes a hypercall for each byte of that.
    """
    if io_share <= BUSY_WITH_IO or waited_s >= FIRMWARE_S:
        return ""
    return f"{vm} is being booted: it waits for its devices {io_share:.0%} of the time. It is copied when its firmware is done."


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
