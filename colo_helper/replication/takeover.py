"""How a copy without its primary becomes the VM: when the arbiter lets it, or when an operator says so."""

from __future__ import annotations

from dataclasses import dataclass

from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.decisions.refusals import verb_refusal
from colo_helper.replication.guest import LOCAL_ERRORS, Guest, attempt
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.secondary_copy import Copy
from colo_helper.replication.succession import ASK_AGAIN_S, Succession
from colo_helper.traffic.sides import SecondarySide


@dataclass(slots=True)
class Takeover:
    """There is a copy, and no session. ``succession`` knows who may allow it; what is done then stands here."""

    config: Config
    monitor: Monitor
    inbox: Inbox
    succession: Succession
    copy: Copy

    def ask(self) -> None:
        """Ask the arbiter once whether this copy is to go on, if it can."""
        problem, wait_s = self.copy.unable(), ASK_AGAIN_S
        if not problem:
            problem, wait_s = self.succession.ask(self._take_over)
        if problem:
            self.succession.say(problem)
            self.inbox.wait(wait_s)

    def answer(self, request: Request) -> None:
        """Do what an operator asks for, unless that cannot be; whoever waits for it is told."""
        refusal = verb_refusal(
            self.config.vm,
            "secondary",
            self.monitor.state.phase,
            request.verb,
            arbiter=self.succession.right.automatic,
        )
        if refusal:
            code, sentence = refusal.code, refusal.sentence
        elif unable := self.copy.unable():  # before anything is written down
            code, sentence = "takeover_failed", unable
        else:
            code, sentence = self.succession.ask_for_operator(self.config.vm, self._take_over, request)
        if code:
            self.monitor.event(code, sentence)
            request.refuse(code, sentence)
        else:
            request.succeed(self.monitor.snapshot())

    def _take_over(self, reason: str) -> tuple[str, str]:
        """Go on alone, on the network; returns (code, sentence) of a failure, or two empty texts."""
        guest = self.copy.guest
        assert guest is not None
        try:
            # Logging is off since the primary was lost, unless that failed, or an earlier replicator left it on.
            guest.logging = True
            problems = guest.release()
            if unable := self.copy.unable():
                problems.append(unable)
            if problems:
                return "takeover_failed", " ".join(problems)
            self._become_active(guest, reason)
        except LOCAL_ERRORS as error:
            return "takeover_failed", str(error)
        return "", ""

    def _become_active(self, guest: Guest, reason: str) -> None:
        """Be the VM on the network, which is written down first: whoever comes after a crash must not take it for a copy."""
        before = self.monitor.state
        try:
            self.monitor.note(phase="active", reason=reason)
        except OSError:
            if not self.succession.right.automatic:  # otherwise the arbiter has it written down
                raise
        try:
            if isinstance(self.copy.packets, SecondarySide):
                self.copy.packets.take_over()
            else:  # a few connections are no reason to refuse
                for problem in attempt([self.copy.go_on_moving]):
                    self.monitor.event("moved_connections", problem)
            self.copy.join_network()
        except LOCAL_ERRORS:
            undo = [
                guest.nics.isolate,
                lambda: self.monitor.note(phase=before.phase, reason=before.reason),
            ]
            for problem in attempt(undo):
                self.monitor.event("takeover_failed", problem)
            raise
        for problem in attempt(
            [
                lambda: self.monitor.enter(
                    "active", reason, followed=self.copy.packets.followed, guest_ended=False
                ),
                guest.devices.announce,
                self.copy.packets.say_again,
            ]
        ):
            self.monitor.event("active", problem)  # it is the VM all the same
