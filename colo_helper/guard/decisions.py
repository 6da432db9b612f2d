"""Whether the toolstack may start a protected VM on this host when it boots: pure, with one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colo_helper.arbiter.record import ALONE, Record


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of one VM when its host boots.

    ``host`` is this host's name at the arbiter, empty when nobody but operators decides; ``record`` is what the arbiter keeps,
    ``problem`` why it could not be asked. ``known`` is what the last replicator wrote down, empty when there was none.
    """

    vm: str
    role: str
    peer: str
    host: str = ""
    record: Record | None = None
    problem: str = ""
    known: Mapping[str, Any] | None = None

    @property
    def copied(self) -> bool:
        """Whether there has ever been a whole copy of it, as far as this host knows."""
        return bool((self.known or {}).get("generation"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it may be started here, and why; ``final`` unless another look may find something else soon."""

    may_start: bool
    sentence: str
    final: bool = True


def verdict(look: Look) -> Verdict:
    """Return whether the VM may be started on this host."""
    return _by_arbiter(look) if look.host else _by_hand(look)


def _by_arbiter(look: Look) -> Verdict:
    record = look.record
    if look.problem:
        return Verdict(False, f"nobody can tell who has it: {look.problem}", final=False)
    if record is None:
        if look.copied:
            return Verdict(False, f"the arbiter has lost what it knew, and the VM may run on {look.peer}.")
        return Verdict(True, "there has never been a copy of it.")
    since = f"since epoch {record.epoch} ({record.cause})"
    if record.owner != look.host:
        return Verdict(False, f"it is {record.owner}'s {since}.")
    if record.mode != ALONE:
        return Verdict(False, f"{record.secondary} has a copy of it that may go on {since}.", final=False)
    return Verdict(True, f"nobody else has a copy of it that may run {since}.")


def _by_hand(look: Look) -> Verdict:
    phase = (look.known or {}).get("phase", "")
    if look.role == "secondary":
        if phase == "active":
            return Verdict(True, "its copy here had taken over.")
        return Verdict(False, f"it is {look.peer}'s, and what is here was a copy.")
    if not look.copied:
        return Verdict(True, "there has never been a copy of it.")
    if phase == "awaiting_guest":
        return Verdict(True, "its guest had ended, and its copy with it.")
    return Verdict(
        False, f"{look.peer} had a copy of it, and only an operator can tell whether that has gone on."
    )
