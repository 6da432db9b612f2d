"""The secondary without its primary: it asks the arbiter, or an operator asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from colo_helper.arbiter.decisions import Do, Ruling
from colo_helper.arbiter.fencing import Fenced
from colo_helper.arbiter.interface import ArbiterError
from colo_helper.arbiter.right import Right
from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.inbox import Inbox

#: Takes over, for the reason given; returns (code, sentence) of a failure, or two empty texts.
TakeOver = Callable[[str], tuple[str, str]]
#: Switches the primary's host off; None when nobody has said how.
Fence = Callable[[], Fenced | None]
_REFUSED = "takeover_refused"
#: How often the arbiter is asked for the VM, and how often it is tried to switch the primary's host off, in seconds.
ASK_AGAIN_S, FENCE_AGAIN_S = 0.5, 10.0
#: How often it is looked whether the owner has given the VM to a copy in maintenance, in seconds.
_MAINTAINED_AGAIN_S = 5.0
#: How long an attempt is waited for before the inbox is looked at again.
_FENCE_AT_ONCE_S = 0.2


class _Attempt:
    """Runs ``fence`` in a thread: it may take minutes, in which operators and peers are to be heard."""

    def __init__(self, fence: Fence) -> None:
        self.outcome: Fenced | None = None
        self.told = False
        self._thread = threading.Thread(target=self._run, args=(fence,), name="fencing", daemon=True)
        self._thread.start()
        self._thread.join(_FENCE_AT_ONCE_S)

    @property
    def over(self) -> bool:
        """Whether there is an outcome."""
        return not self._thread.is_alive()

    def _run(self, fence: Fence) -> None:
        try:
            self.outcome = fence()
        except Exception as error:  # (whatever it is, the host may be on)
            self.outcome = Fenced(False, False, f"Fencing itself failed: {error!r}")


@dataclass(slots=True)
class Succession:
    """Whether the copy may be the VM. Only the main thread uses it."""

    monitor: Monitor
    right: Right
    fence: Fence = lambda: None
    #: Whether there is an answer for good until the next session.
    _settled: bool = False
    #: Whether the arbiter has written down that the copy here is the VM.
    _written: bool = False
    _said: str = ""
    #: The attempt to switch the primary's host off that runs or has succeeded.
    _fencing: _Attempt | None = None

    def open(self) -> None:
        """There is a primary: what was said before says nothing any more."""
        self._settled, self._written, self._said, self._fencing = False, False, "", None
        self.monitor.restore(override="", guest_ended=False)

    @property
    def pending(self) -> bool:
        """Whether the arbiter is to be asked without anybody asking for it."""
        state = self.monitor.state
        return (
            self.right.automatic
            and not self._settled
            and not state.guest_ended
            and state.phase == "peer_lost"
        )

    @property
    def unconfirmed(self) -> bool:
        """Whether a copy that has taken over is not known to the arbiter, as far as we know."""
        return self.right.automatic and not self._written

    def obey(self, inbox: Inbox) -> None:
        """Carry out what operators want: whether the copy here may take over by itself."""
        while inbox.wishes:
            request = inbox.wishes.popleft()
            try:
                self.monitor.note(maintenance=request.reason if request.verb == "maintenance" else "")
            except OSError as error:
                request.refuse("failed", f"That cannot be written down: {error.strerror}.")
                continue
            self.monitor.event(
                request.verb,
                f"The copy here does not take over by itself until maintenance ends: {request.reason}."
                if request.verb == "maintenance"
                else "Maintenance has ended: the copy here may take over by itself.",
            )
            request.succeed(self.monitor.snapshot())

    def ask(self, take_over: TakeOver) -> tuple[str, float]:
        """Ask once, and take over when that is the answer.

        Returns what is in the way and may pass, and when to ask again, in seconds.
        """
        maintained = self.monitor.state.maintenance != ""
        ruling, sentence = self._ask(self.right.given if maintained else self.right.take_over)
        if ruling is None or ruling.do is Do.WAIT:
            return sentence, _MAINTAINED_AGAIN_S if maintained else ASK_AGAIN_S
        if ruling.do is Do.STOP:
            self._settled = True
            self.monitor.event(_REFUSED, sentence)
            return "", 0.0
        self._written = True  # from here on no other copy comes to run: the primary's is to be silent, and fencing makes sure
        if ruling.record and ruling.record.given_by:
            _, problem = take_over(sentence)  # that host has let go by itself, and may well have other VMs
            return problem, ASK_AGAIN_S
        if self._fencing is None:
            self._fencing = _Attempt(self.fence)
        fenced = self._fencing.outcome
        if not self._fencing.over:
            return "The primary's host is being switched off.", ASK_AGAIN_S
        if fenced and not self._fencing.told:
            self._fencing.told = True
            self.monitor.event("fencing", fenced.sentence)
        if fenced and not fenced.may_go_on:
            self._fencing = None
            return fenced.sentence, FENCE_AGAIN_S
        return take_over(f"{sentence} {fenced.sentence}" if fenced else sentence)[1], ASK_AGAIN_S

    def ask_for_operator(self, vm: str, take_over: TakeOver, request: Request) -> tuple[str, str]:
        """Ask because an operator wants it, who says by that that the primary is off: no answer is no hindrance then.

        Returns (code, sentence) of a refusal or a failure, or two empty texts.
        """
        override = f"An operator decided: {request.reason}." if request.forced else ""
        with suppress(OSError):  # it is an operator's word either way
            self.monitor.note(override=override)
        ruling, sentence = self._ask(self.right.take_over)
        if override and ruling is not None and ruling.do is Do.STOP:
            ruling, sentence = self._ask(self._ask_to_override)
        if ruling is not None and ruling.do is not Do.RUN:
            return _REFUSED, sentence
        self._written = ruling is not None
        why = f": {request.reason}" if request.reason else ""
        decided = f"An operator decided that this copy of {vm} takes over{why}."
        return take_over(f"{decided} {sentence}" if self.right.automatic else decided)

    def confirm(self) -> Ruling | None:
        """Have written down that the copy here is the VM; None when there is no answer."""
        ruling, sentence = self._ask(self.right.taken_over)
        if ruling is not None and ruling.do is Do.STOP and self.monitor.state.override:
            ruling, sentence = self._ask(self._ask_to_override)
        if ruling is None:
            self.say(sentence)
            return None
        self._written = True
        # WAIT: another host's lease lasts, so it lives, and what was said of it was wrong.
        return replace(ruling, do=Do.STOP) if ruling.do is Do.WAIT else ruling

    def say(self, sentence: str) -> None:
        """Write down why the copy does not go on, or not in order, when that is new."""
        if sentence != self._said:
            self.monitor.event("takeover_waits", sentence)
        self._said = sentence

    def _ask_to_override(self, _generation: str, _why: str) -> Ruling:
        return self.right.override(self.monitor.state.override)

    def _ask(self, ask: Callable[[str, str], Ruling]) -> tuple[Ruling | None, str]:
        state = self.monitor.state
        try:
            ruling = ask(state.generation, state.reason)
        except ArbiterError as error:
            return None, str(error)
        return ruling, ruling.sentence
