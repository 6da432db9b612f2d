"""The secondary without its primary: it asks the arbiter, or an operator asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from colo_helper.arbiter.decisions import Do, Ruling
from colo_helper.arbiter.interface import ArbiterError
from colo_helper.arbiter.right import Right
from colo_helper.monitor.monitor import Monitor

#: Takes over, for the reason given; returns (code, sentence) of a failure, or two empty texts.
TakeOver = Callable[[str], tuple[str, str]]
_REFUSED = "takeover_refused"


@dataclass(slots=True)
class Succession:
    """Whether the copy may be the VM. Only the main thread uses it."""

    monitor: Monitor
    right: Right
    #: Whether there is an answer for good until the next session.
    _settled: bool = False
    #: Whether the arbiter has written down that the copy here is the VM.
    _written: bool = False
    _said: str = ""

    def open(self) -> None:
        """There is a primary: what was said before says nothing any more."""
        self._settled, self._written, self._said = False, False, ""

    @property
    def pending(self) -> bool:
        """Whether the arbiter is to be asked without anybody asking for it."""
        return self.right.automatic and not self._settled and self.monitor.state.phase == "peer_lost"

    @property
    def unconfirmed(self) -> bool:
        """Whether a copy that has taken over is not known to the arbiter, as far as we know."""
        return self.right.automatic and not self._written

    def ask(self, take_over: TakeOver) -> str:
        """Ask once, and take over when that is the answer; returns what is in the way and may pass."""
        ruling, sentence = self._ask(self.right.take_over)
        if ruling is None or ruling.do is Do.WAIT:
            return sentence
        if ruling.do is Do.STOP:
            self._settled = True
            self.monitor.event(_REFUSED, sentence)
            return ""
        self._written = True
        return take_over(sentence)[1]

    def ask_for_operator(self, vm: str, take_over: TakeOver) -> tuple[str, str]:
        """Ask because an operator wants it, who says by that that the primary is off: no answer is no hindrance then.

        Returns (code, sentence) of a refusal or a failure, or two empty texts.
        """
        ruling, sentence = self._ask(self.right.take_over)
        if ruling is not None and ruling.do is not Do.RUN:
            return _REFUSED, sentence
        self._written = ruling is not None
        decided = f"An operator decided that this copy of {vm} takes over."
        return take_over(f"{decided} {sentence}" if self.right.automatic else decided)

    def confirm(self) -> Ruling | None:
        """Have written down that the copy here is the VM; None when there is no answer."""
        ruling, sentence = self._ask(self.right.taken_over)
        if ruling is None or ruling.do is Do.WAIT:
            self.say(sentence)
            return None
        self._written = True
        return ruling

    def say(self, sentence: str) -> None:
        """Write down why the copy does not go on, or not in order, when that is new."""
        if sentence != self._said:
            self.monitor.event("takeover_waits", sentence)
        self._said = sentence

    def _ask(self, ask: Callable[[str, str], Ruling]) -> tuple[Ruling | None, str]:
        state = self.monitor.state
        try:
            ruling = ask(state.generation, state.reason)
        except ArbiterError as error:
            return None, str(error)
        return ruling, ruling.sentence
