"""One host's dealings with the arbiter over one VM: it asks, renews, and knows when it may not go on any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from colo_helper.arbiter.decisions import (
    Do,
    Ruling,
    given_to,
    handed_over,
    operator_decided,
    overridden,
    primary_lost,
    protected_by,
    secondary_lost,
)
from colo_helper.arbiter.interface import Arbiter, ArbiterError, RefusedError
from colo_helper.arbiter.record import Lease, Seen
from colo_helper.arbiter.times import Times

Rule = Callable[[Seen], Ruling]


def boot_clock() -> float:
    """Return seconds that also pass while a host is suspended (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_NEVER = float("-inf")
_SUCCEEDED = "The VM is another host's."


class Tenure:
    """The right of the host ``me`` to let output of ``vm`` leave. ``say`` takes an event's name and its sentence.

    It begins without the right, until ``alone`` or ``take_over`` says RUN. While a secondary may come to own the VM
    (from ``protect`` until ``alone`` or ``hand_over``) a thread renews the lease, and the right ends ``mute_s`` after the
    renewal that was granted last was asked for. ``lost`` is called by that thread when another owns the VM by now. While
    ``stuck`` returns why this side does not get on, nothing is renewed: the secondary is to go on then.
    """

    def __init__(
        self,
        arbiter: Arbiter,
        vm: str,
        me: str,
        times: Times,
        say: Callable[[str, str], None],
        lost: Callable[[str], None],
        clock: Callable[[], float] = boot_clock,
        stuck: Callable[[], str] = lambda: "",
    ) -> None:
        self.automatic = True
        self.times = times
        self._arbiter = arbiter
        self._vm = vm
        self._me = me
        self._say = say
        self._lost = lost
        self._clock = clock
        self._stuck = stuck
        self._lease: Lease | None = None
        #: Since when the lease counts; None while none is needed.
        self._asked_s: float | None = _NEVER
        #: How the right is asked for again when the lease has ended; None while no secondary can have a right.
        self._rule: Rule | None = None
        #: Whether the VM is being handed over: nothing may be said, and nothing renewed, until it is known to be ours.
        self._handing = False
        #: Whether the arbiter has lost what it knew, and the lease of this side had ended before that was noticed.
        self.forgotten = False
        #: Held while the arbiter is asked for a change.
        self._settling = threading.Lock()
        self._changed = threading.Condition()
        self._renewer: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------ any thread

    @property
    def shared(self) -> bool:
        """Tell whether a secondary may come to own the VM now, or may have: it was to be handed over, and no answer came."""
        return self._rule is not None or self._handing

    def permits(self) -> bool:
        """Tell whether output may leave now."""
        asked_s = self._asked_s
        return not self._handing and (asked_s is None or self._clock() < asked_s + self.times.mute_s)

    def must_stand_still(self) -> bool:
        """Tell whether the guest must not even run."""
        asked_s = self._asked_s
        return asked_s is not None and self._clock() >= asked_s + self.times.still_s

    # -------------------------------------------------------------------------------------------- the main thread

    def protect(self, secondary: str, generation: str) -> Ruling:
        """Give the secondary the right to go on when the lease of this side has ended. Raises ArbiterError."""

        def rule(seen: Seen) -> Ruling:
            return protected_by(seen, self._me, self._vm, secondary, generation, int(time.time()))

        ruling = self._settle(rule, guarded=True)
        if ruling.do is Do.RUN and self._renewer is None:
            self._renewer = threading.Thread(target=self._renew_on, name="lease", daemon=True)
            self._renewer.start()
        return ruling

    def alone(self, why: str, *, given: bool = False) -> Ruling:
        """Take the secondary's right back: what was not let go yet may leave after RUN, never after STOP.

        ``given``: it was given, as far as is known. Raises ArbiterError.
        """
        return self._settle(
            lambda seen: secondary_lost(seen, self._me, self._vm, why, int(time.time()), given=given)
        )

    def hand_over(self, heir: str, why: str = "") -> Ruling:
        """Make the secondary the owner; the guest stands still and says nothing any more. Raises ArbiterError."""
        self._handing = True
        ruling = self._settle(
            lambda seen: handed_over(seen, self._me, self._vm, heir, int(time.time()), why), after=_NEVER
        )
        self._handing = False  # WAIT: nothing was put down
        return ruling

    def take_over(self, generation: str, why: str) -> Ruling:
        """Ask for the VM whose primary is not heard. Raises ArbiterError."""
        return self._settle(
            lambda seen: primary_lost(seen, self._me, self._vm, generation, why, int(time.time()))
        )

    def given(self, _generation: str, _why: str) -> Ruling:
        """Ask whether the owner has made this side the owner. Raises ArbiterError."""
        return self._settle(lambda seen: given_to(seen, self._me, self._vm))

    def taken_over(self, generation: str, why: str) -> Ruling:
        """Have it written down that an operator has decided, without the arbiter, that the copy here is the VM.

        Raises ArbiterError.
        """
        return self._settle(
            lambda seen: operator_decided(seen, self._me, self._vm, generation, why, int(time.time()))
        )

    def override(self, why: str) -> Ruling:
        """Make this host the owner although it has no right, as an operator wants it. Raises ArbiterError."""
        return self._settle(lambda seen: overridden(seen, self._me, self._vm, why, int(time.time())))

    def decided(self) -> None:
        """An operator has decided, without the arbiter, that the VM stays here."""
        with self._settling:
            self._now(None, None, None)

    def close(self) -> None:
        """Renew no more. A lease that lasts ends by itself, or who comes after this takes it up."""
        with self._changed:
            self._rule = self._lease = None
            self._changed.notify_all()
            renewer, self._renewer = self._renewer, None
        if renewer:
            renewer.join()

    # ------------------------------------------------------------------------------------------------------------

    def _settle(
        self, rule: Rule, *, guarded: bool = False, again: bool = False, after: float | None = None
    ) -> Ruling:
        """Decide from a look, and put it down; decide anew when somebody else was first.

        ``guarded``: from RUN on the right is only as long as the lease. The lease counts before the arbiter's answer comes,
        because the secondary's right does. ``again``: only while nothing else was decided meanwhile; and a STOP is the main
        thread's to hear, which finds it by asking. ``after``: since when the right counts after RUN, None for always.
        """
        with self._settling:
            if again and self._rule is not rule:
                return Ruling(Do.WAIT, "")
            seen = self._arbiter.read(self._vm)
            # While the lease lasts nobody else can have come to own the VM, whatever the arbiter has lost. After that one may.
            self.forgotten = again and seen.record is None and not self.permits()
            if self.forgotten:
                return Ruling(Do.WAIT, f"the arbiter knows nothing of {self._vm} any more.")
            while (ruling := rule(seen)).do is Do.CLAIM:
                assert ruling.record is not None
                asked_s = self._clock()
                if guarded:
                    self._rule = rule
                    if self._asked_s is None:
                        self._asked_s = asked_s
                try:
                    seen = self._arbiter.change(seen, ruling.record, self.times.lease_s)
                except RefusedError as no:
                    seen = no.seen
                    continue
                self._now(rule if guarded else None, seen.lease, asked_s if guarded else after)
                self._tell("arbiter", ruling.sentence)
                return Ruling(Do.RUN, ruling.sentence, ruling.record)
            if ruling.do is Do.RUN:
                self._now(None, None, after)
            elif ruling.do is Do.STOP:
                self._now(rule if again else None, None, _NEVER)
            return ruling

    def _tell(self, event: str, sentence: str) -> None:
        with suppress(OSError):  # a full disk is no reason to lose the lease
            self._say(event, sentence)

    def _now(self, rule: Rule | None, lease: Lease | None, asked_s: float | None) -> None:
        with self._changed:
            self._rule, self._lease, self._asked_s, self._handing = rule, lease, asked_s, False
            self._changed.notify_all()

    def _renew_on(self) -> None:
        """Renew as long as a secondary has a right, and until another has the VM."""
        trouble = ""
        while True:
            with self._changed:
                rule, lease = self._rule, self._lease
                if rule is None or trouble is _SUCCEEDED:
                    self._renewer = None
                    return
            try:
                problem = "" if self._handing else self._stuck() or self._renew(rule, lease)
            except ArbiterError as error:
                problem = str(error)
            if problem and problem != trouble:
                self._tell("lease", f"The lease of {self._vm} was not renewed: {problem}")
            elif trouble and not problem:
                self._tell("lease", f"The lease of {self._vm} is renewed again.")
            trouble = problem
            with self._changed:
                if self._rule is rule:
                    self._changed.wait(self.times.renew_s)

    def _renew(self, rule: Rule, lease: Lease | None) -> str:
        """Renew once, or ask for another lease; returns what is wrong."""
        asked_s = self._clock()
        if lease is not None and self._arbiter.renew(lease):
            with self._changed:
                if self._lease == lease and self._rule is rule:
                    self._asked_s = asked_s
            return ""
        ruling = self._settle(rule, guarded=True, again=True)
        if ruling.do is Do.STOP:
            self._lost(ruling.sentence)
            return _SUCCEEDED
        return "" if ruling.do is Do.RUN else ruling.sentence
