"""The right to let a VM's output leave, as the replicators ask for it; and the one that operators give by hand."""

from __future__ import annotations

from typing import Protocol

from colo_helper.arbiter.decisions import Do, Ruling


class Right(Protocol):
    """See Tenure. What asks raises ArbiterError when nobody can tell."""

    #: Whether a copy may go on by itself when its primary is not heard.
    automatic: bool

    @property
    def shared(self) -> bool:
        """Whether a secondary may come to own the VM now."""

    @property
    def forgotten(self) -> bool:
        """Whether the arbiter has lost what it knew, and only who hears the secondary can tell that it has not gone on."""

    def permits(self) -> bool:
        """Tell whether output may leave now. Any thread."""

    def must_stand_still(self) -> bool:
        """Tell whether the guest must not even run. Any thread."""

    def protect(self, secondary: str, generation: str) -> Ruling:
        """Let a secondary have the right to go on."""

    def alone(self, why: str, *, given: bool = False) -> Ruling:
        """Go on without a secondary, which was ``given`` the right to go on as far as is known."""

    def hand_over(self, heir: str, why: str = "") -> Ruling:
        """Make the secondary the owner."""

    def take_over(self, generation: str, why: str) -> Ruling:
        """Ask for the VM whose primary is not heard."""

    def given(self, generation: str, why: str) -> Ruling:
        """Ask whether the owner has given the VM away to this side."""

    def taken_over(self, generation: str, why: str) -> Ruling:
        """Have an operator's takeover written down."""

    def override(self, why: str) -> Ruling:
        """Have the VM although the arbiter says no, because an operator wants it."""

    def decided(self) -> None:
        """Keep the VM although nobody can tell, because an operator wants it."""

    def close(self) -> None:
        """Ask no more."""


class ByHand:
    """No arbiter: whoever has the guest runs it, and a copy goes on only when an operator says so."""

    automatic = False
    shared = False
    forgotten = False

    def permits(self) -> bool:
        """See Right."""
        return True

    def must_stand_still(self) -> bool:
        """See Right."""
        return False

    def protect(self, secondary: str, generation: str) -> Ruling:  # noqa: ARG002
        """See Right."""
        return _RUN

    def alone(self, why: str, *, given: bool = False) -> Ruling:  # noqa: ARG002
        """See Right."""
        return _RUN

    def hand_over(self, heir: str, why: str = "") -> Ruling:  # noqa: ARG002
        """See Right."""
        return _RUN

    def take_over(self, generation: str, why: str) -> Ruling:  # noqa: ARG002
        """See Right: who asks for it is an operator."""
        return _RUN

    def given(self, generation: str, why: str) -> Ruling:  # noqa: ARG002
        """See Right: nobody writes it down."""
        return _RUN

    def taken_over(self, generation: str, why: str) -> Ruling:  # noqa: ARG002
        """See Right."""
        return _RUN

    def override(self, why: str) -> Ruling:  # noqa: ARG002
        """See Right."""
        return _RUN

    def decided(self) -> None:
        """See Right."""

    def close(self) -> None:
        """See Right."""


_RUN = Ruling(Do.RUN, "No arbiter is asked.")
