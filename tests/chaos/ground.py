"""What a campaign asks of the ground that it runs on, and what it gets for each fault."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tests.chaos.plan import Fault

#: Who answers after a fault: the copy that was the VM before, the other one, or neither.
SAME, OTHER, NOBODY = "same", "other", "nobody"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the pair came through one fault.

    ``silence_s`` is the longest time between two answers that the clients' bridge heard, in the seconds that leases are
    counted in; ``took_ms`` what fault, mending and protecting again took, by the machine. ``cause`` is what was written down
    of it, by the arbiter when the VM has another owner now and by the replicators otherwise; empty when nobody noticed.
    ``exceptions`` has a sentence for all that must not be, ``notes`` what an author of faults wants to know.
    """

    number: int
    label: str
    sentence: str
    runs: str
    silence_s: float
    took_ms: int
    cause: str
    exceptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as the journal keeps it."""
        return asdict(self)


def outcome_from(value: dict[str, Any]) -> Outcome:
    """Read what ``to_json`` returned; raises TypeError or KeyError."""
    return Outcome(
        **{**value, "exceptions": tuple(value["exceptions"]), "notes": tuple(value.get("notes", ()))}
    )


class Ground(Protocol):
    """A protected pair, its network, its arbiter, and a listener where the clients are.

    A ground is made with a protected pair, or makes it at the first fault. Faults come one after the other on the pair that
    lives; a ground makes a new one when the old one cannot be protected again, and says so in ``notes``.
    """

    def run(self, fault: Fault) -> Outcome:
        """Inject one fault, wait for what follows, mend, protect again, and judge. Raises only when the ground itself fails."""

    def close(self) -> None:
        """Leave nothing behind."""
