"""When an owner that cannot renew its lease stops, from one knob.

The owner counts from the moment in which it *asked* for the renewal that was granted last, the arbiter from the moment in
which it granted it, which is later. So the owner's lease ends first, but for clocks that do not run alike:

    asked ---- mute ---- still ---- | lease, by a clock that is DRIFT slow | ---- lease, as the arbiter counts
               output    guest
               stops     paused

Only after that does the arbiter let anybody else have the VM. etcd ends no lease earlier than granted: a new leader counts
anew.
"""

from __future__ import annotations

from dataclasses import dataclass

#: How much faster a host's clock may run than another's: far more than a crystal's 0.01 % or what NTP corrects (0.05 %).
DRIFT = 0.01
#: From the decision to pause a guest to its standing still, in seconds: one hypercall, on a host that is busy.
PAUSING_S = 0.5
#: etcd leases last whole seconds, and with its default election time-out at least 2.
SHORTEST_S, LONGEST_S = 3, 600


class TimesError(ValueError):
    """The knob makes no sense; the text says why."""


@dataclass(frozen=True, slots=True)
class Times:
    """All in seconds on the owner's clock; ``mute_s`` and ``still_s`` count from asking for the renewal granted last."""

    lease_s: int
    renew_s: float
    mute_s: float
    still_s: float


def times(lease_s: int) -> Times:
    """Derive an owner's times from the length of its lease in seconds; raises TimesError."""
    if not SHORTEST_S <= lease_s <= LONGEST_S:
        raise TimesError(f"A lease of {lease_s} s makes no sense: it lasts {SHORTEST_S} to {LONGEST_S} s.")
    still_s = lease_s * (1 - DRIFT) - 2 * PAUSING_S
    mute_s = still_s - max(PAUSING_S, lease_s * 0.05)
    return Times(lease_s, mute_s / 4, mute_s, still_s)
