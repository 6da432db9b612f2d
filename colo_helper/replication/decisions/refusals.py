"""What is refused to operators and to peers, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colo_helper.replication.decisions.primary import AT_WORK
from colo_helper.replication.decisions.secondary import STANDING_BY

#: Phases, by role, in which a replicator holds a guest or a copy that the next one has to take up.
_HELD = {
    "secondary": (*STANDING_BY, "torn", "peer_lost", "resyncing", "replicating"),
    "primary": AT_WORK,
}


def leaves_a_guest(saved: dict[str, Any] | None, boot_id: str) -> bool:
    """Tell whether an earlier replicator's state says what the next one has to take up, and must outlast until then."""
    known = saved or {}
    phases = (*_HELD.get(str(known.get("role")), ()), "active")
    return known.get("boot_id") == boot_id and known.get("phase") in phases


def role_refusal(vm: str, role: str, saved: dict[str, Any] | None, boot_id: str, domid: int | None) -> str:
    """Return why the domain here cannot have the role that the configuration names, or an empty string.

    After a switch-over each side has the other role. A replicator that was started with its old configuration must not
    let a copy run as if it were the VM, nor take the VM for a copy.
    """
    if saved is None or domid is None or (saved.get("boot_id"), saved.get("domid")) != (boot_id, domid):
        return ""
    was, phase = str(saved.get("role")), str(saved.get("phase"))
    if was == role or phase not in _HELD.get(was, ()):
        return ""
    return (
        f"The configuration says that this host is the {role} of {vm}, but it is its {was} ({phase}): "
        f"{saved.get('reason', '')} Run the playbook that swaps the roles to its end, or end the protection first."
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a verb is not carried out: one word and one sentence."""

    code: str
    sentence: str


def verb_refusal(
    vm: str, role: str, phase: str, verb: str, *, arbiter: bool, reason: str = "", forced: bool = False
) -> Refusal | None:
    """Decide whether a verb may be carried out in a phase, which was entered for a reason; None means yes.

    ``forced``: an operator has confirmed it by the VM's name.
    """
    if verb in ("maintenance", "automatic") and not arbiter:
        return Refusal("no_arbiter", f"{vm} has no arbiter, so nobody takes over by itself in any case.")
    if verb in ("checkpoint", "verify", "capture", "switchover"):
        return _checkpoint_refusal(vm, role, phase, reason, verb)
    if verb == "takeover":
        return _takeover_refusal(vm, role, phase)
    if verb == "stop":
        return stop_refusal(vm, role, phase, forced=forced)
    return None


#: Phases of a copy that may be all that is left of the VM.
LAST_COPY = ("peer_lost", *STANDING_BY)


def stop_refusal(vm: str, role: str, phase: str, *, forced: bool) -> Refusal | None:
    """Decide whether an operator may end a replicator, and with it the copy that it keeps, if it does; None means yes."""
    if phase == "active":
        return Refusal(
            "active",
            f"{vm} was taken over and this is the copy in use; it will not be destroyed. Shut it down with xl.",
        )
    if role == "secondary" and phase in LAST_COPY and not forced:
        return Refusal(
            "alone",
            f"The copy of {vm} here has no primary that keeps it ({phase}), and may be all that is left of {vm}: "
            "playbooks/failover.yml lets it go on, and playbooks/unprotect.yml destroys it when its name is confirmed "
            f"(-e colo_confirm={vm}).",
        )
    return None


def _checkpoint_refusal(vm: str, role: str, phase: str, reason: str, verb: str) -> Refusal | None:
    if role != "primary":
        return Refusal("wrong_side", f"'{verb}' is asked of the primary; this is the secondary of {vm}.")
    if phase != "replicating":
        sentence = f"{vm} is {phase}, not replicating, so there can be no checkpoint. {reason}"
        return Refusal("not_replicating", sentence.rstrip())
    return None


def _takeover_refusal(vm: str, role: str, phase: str) -> Refusal | None:
    if role != "secondary":
        return Refusal("wrong_side", f"'takeover' is asked of the secondary; this is the primary of {vm}.")
    if phase in ("receiving", "resyncing", "replicating"):
        return Refusal(
            "primary_alive",
            f"The primary of {vm} is alive: its channels are up. Hand it over with playbooks/switchover.yml.",
        )
    if phase == "active":
        return Refusal("already_active", f"{vm} was taken over before; it is active here.")
    if phase not in LAST_COPY:
        return Refusal("no_copy", f"There is no copy of {vm} here that could take over (it is {phase}).")
    return None


def attach_refusal(vm: str, phase: str, *, arbiter: bool) -> str:
    """Return why no primary may attach in this phase of the secondary, or an empty string.

    Where no arbiter tells a primary that it is not the VM any more, the copy that took over does.
    """
    if phase in ("waiting", "peer_lost", "torn", *STANDING_BY) or (phase == "active" and not arbiter):
        return ""
    if phase in ("receiving", "resyncing", "replicating"):
        return f"Another primary of {vm} is attached already."
    if phase == "active":
        return f"{vm} was taken over and is active here."
    return f"The secondary of {vm} is {phase}."
