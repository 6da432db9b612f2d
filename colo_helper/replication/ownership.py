"""The primary before the arbiter: what it must have to go on, and what it does until it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from colo_helper.arbiter.decisions import Do, Ruling
from colo_helper.arbiter.interface import ArbiterError
from colo_helper.arbiter.right import Right
from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.inbox import Inbox

#: How often an arbiter that does not answer is asked again, in seconds.
_ASK_AGAIN_S = 1.0
#: How often it is tried to tell it what an operator has decided: checkpoints wait meanwhile.
_CONFIRM_AGAIN_S = 10.0


@dataclass(slots=True)
class Ownership:
    """Only the main thread uses it."""

    vm: str
    peer: str
    monitor: Monitor
    inbox: Inbox
    right: Right
    #: Whether the secondary has a whole copy that is kept equal.
    _copied: bool = False
    #: What an operator has decided, and the arbiter has not been told.
    _unwritten: str = ""
    #: When the arbiter is told again, in seconds of the monotonic clock.
    _confirm_s: float = 0.0
    #: The epoch in which it was noticed that the arbiter has lost what it knew.
    _forgotten_at: int | None = None

    def share(self) -> None:
        """The secondary has a whole copy: from now on it may go on when this side is not heard, but for maintenance.

        Raises SessionEndedError.
        """
        if not self.monitor.state.maintenance:
            self._require(self._protect)
        elif self._unwritten or self.right.shared or not self.right.permits():
            self._require(self._keep_alone)  # otherwise it is known to be written
        self._copied, self._unwritten = True, ""

    def hand_over(self) -> None:
        """The secondary's copy is the VM from now on. Raises SessionEndedError when that is not written down."""
        self._require(lambda: self.right.hand_over(self.peer))
        self._copied = False

    def begin(self, waiting: Callable[[], list[str]]) -> None:
        """Wait until it is known that the guest here is the VM; raises SessionEndedError when it is not.

        ``waiting`` is called at every look without an answer; it may raise, and returns what it could not do.
        """
        self._settled("The replicator starts", waiting)

    def settle(self, why: str, keep_quiet: Callable[[bool], list[str]]) -> None:
        """Wait until it is known that the guest may go on here without its secondary; raises SessionEndedError when not.

        ``keep_quiet`` is called at every look without an answer: it sees to it that nothing of the VM reaches the network, and
        that no vCPU runs when its argument is true; it returns what it could not do. See ``refuse`` for stops.
        """
        self._copied = False
        if self.right.shared:
            self._settled(why.rstrip("."), self._quiet(keep_quiet))

    def give_up(self, why: str, keep_quiet: Callable[[bool], list[str]]) -> bool:
        """Wait until it is written down that the secondary's copy is the VM, which alone can do something; see ``settle``.

        False: an operator wants the VM to stay here. Raises SessionEndedError when it is known to be another's already.
        """

        def ask() -> Ruling | None:
            return self.right.hand_over(self.peer, why) if self.right.shared else None

        self._copied = False
        return self._settled(why, self._quiet(keep_quiet), ask)

    def _quiet(self, keep_quiet: Callable[[bool], list[str]]) -> Callable[[], list[str]]:
        def waiting() -> list[str]:
            problems = keep_quiet(self.right.must_stand_still())
            self.refuse()
            return problems

        return waiting

    def obey(self) -> None:
        """Carry out what operators want of who may run. Raises SessionEndedError when another has the VM."""
        while self.inbox.wishes:
            request = self.inbox.wishes.popleft()
            try:
                refusal = self._maintain(request) if request.verb == "maintenance" else self._automatic()
            except SessionEndedError as error:
                request.refuse("succeeded" if error.cause is Cause.SUCCEEDED else "no_answer", str(error))
                raise
            except OSError as error:
                request.refuse("not_written", f"That cannot be written down: {error.strerror}.")
                continue
            if refusal:
                request.refuse("no_answer", refusal)
            else:
                request.succeed(self.monitor.snapshot())
        self._confirm()
        self._remind()

    def _remind(self) -> None:
        """Tell an arbiter that has lost all anew: a checkpoint that began since shows that the secondary has not gone on."""
        if not (self._copied and self.right.forgotten):
            self._forgotten_at = None
        elif self._forgotten_at is None:
            self._forgotten_at = self.monitor.state.epoch
        elif self.monitor.state.epoch >= self._forgotten_at + 2:
            self._forgotten_at = None
            self._try(self._protect)

    def _try(self, ask: Callable[[], Ruling]) -> bool:
        """Ask for what can wait; whether that was done. Raises SessionEndedError when another has the VM."""
        try:
            self._require(ask)
        except SessionEndedError as error:
            if error.cause is Cause.SUCCEEDED:
                raise
            return False
        return True

    def _confirm(self) -> None:
        """Have written down, now and then, what an operator decided without the arbiter."""
        if self._unwritten and time.monotonic() >= self._confirm_s:
            self._confirm_s = time.monotonic() + _CONFIRM_AGAIN_S
            if self._try(self._keep_alone):
                self._unwritten = ""

    def _keep_alone(self) -> Ruling:
        ruling = self.right.alone(f"maintenance: {self.monitor.state.maintenance}", given=self._given)
        self._is_alone(ruling)
        return ruling

    def _protect(self) -> Ruling:
        if self.right.automatic and not self.monitor.state.shared:
            # A full disk must not let the next replicator believe that it is alone.
            self.monitor.note(shared=True)
        return self.right.protect(self.peer, self.monitor.state.generation)

    @property
    def _given(self) -> bool:
        """Whether the secondary, which is not heard, may have gone on: nobody has taken its right back, or answers for it."""
        return self.monitor.state.shared is True and not self._copied and not self._unwritten

    def _is_alone(self, ruling: Ruling) -> None:
        if ruling.do is Do.RUN and self.monitor.state.shared:
            with suppress(OSError):  # then the next replicator asks although it need not
                self.monitor.note(shared=False)

    def _maintain(self, request: Request) -> str:
        """Let nobody take over by itself from now on; returns why that cannot be."""
        before = self.monitor.state.maintenance
        self.monitor.note(maintenance=request.reason)
        try:
            self._require(self._keep_alone)
        except SessionEndedError as error:
            if error.cause is Cause.SUCCEEDED or not request.forced:
                with suppress(OSError):
                    self.monitor.note(maintenance=before)
            if error.cause is Cause.SUCCEEDED:
                raise
            if not request.forced:
                return (
                    f"{error} Nothing was changed on this host. An operator who knows that the copy on {self.peer} does not "
                    "run, and shall not, can say so (colo_confirm)."
                )
            self._unwritten = request.reason
            self._confirm_s = time.monotonic() + _CONFIRM_AGAIN_S
            self.right.decided()
        else:
            self._unwritten = ""
        told = " The arbiter does not know yet." if self._unwritten else ""
        self.monitor.event(
            "maintenance",
            f"{self.vm} stays here, whatever happens, until maintenance ends: {request.reason}.{told}",
        )
        return ""

    def _automatic(self) -> str:
        """End maintenance; returns why that cannot be."""
        before = self.monitor.state.maintenance
        self.monitor.note(maintenance="")
        if self._copied and not self.right.shared:
            try:
                self._require(self._protect)
            except SessionEndedError as error:
                with suppress(OSError):
                    self.monitor.note(maintenance=before)
                if error.cause is Cause.SUCCEEDED or self.right.shared:  # it may be written down all the same
                    raise
                return f"{error} The maintenance of {self.vm} goes on."
            self._unwritten = ""
        self.monitor.event("automatic", f"Maintenance of {self.vm} has ended.")
        return ""

    def refuse(self) -> None:
        """Refuse what operators ask for while nobody can tell who may run, but what makes an end of that.

        When the service manager ends this program the cause is LEFT: everything stays as it is, and the next one asks.
        """
        sentence = self.monitor.state.reason
        self.inbox.refuse_stops("asking", sentence)
        self.obey()
        while self.inbox.requests:
            self.inbox.requests.popleft().refuse("asking", sentence)
        if self.inbox.stop_reason:
            raise SessionEndedError(Cause.LEFT, self.inbox.stop_reason)

    def _settled(
        self, why: str, waiting: Callable[[], list[str]], ask: Callable[[], Ruling | None] | None = None
    ) -> bool:
        """Wait for the arbiter's yes, or for what an operator says (False). ``ask`` returns None when that was said.

        Without ``ask``: whether the VM may go on here alone.
        """
        what = f"its copy on {self.peer} is {self.vm} by now" if ask else f"{self.vm} may go on here"

        def alone() -> Ruling:
            ruling = self.right.alone(why, given=self._given)
            self._is_alone(ruling)
            return ruling

        said = self._unwritten = ""  # what an operator said before was of another situation
        problems: list[str] = []
        while True:
            try:
                ruling = (ask or alone)()
            except ArbiterError as error:
                pause = str(error)
            else:
                if ruling is None or ruling.do is Do.RUN:
                    return ruling is not None
                if ruling.do is Do.STOP:
                    raise SessionEndedError(Cause.SUCCEEDED, ruling.sentence)
                pause = ruling.sentence
            pause = " ".join([pause, *problems])
            if pause != said:
                self.monitor.enter("asking", f"{why}; whether {what} is not known. {pause}")
            said = pause
            problems = waiting()
            if self._unwritten:
                return False
            self.inbox.wait(_ASK_AGAIN_S)

    def _require(self, ask: Callable[[], Ruling]) -> None:
        """Ask for what this session cannot go on without."""
        try:
            ruling = ask()
        except ArbiterError as error:
            raise SessionEndedError(Cause.LOCAL_ERROR, str(error)) from error
        if ruling.do is not Do.RUN:
            cause = Cause.SUCCEEDED if ruling.do is Do.STOP else Cause.LOCAL_ERROR
            raise SessionEndedError(cause, ruling.sentence)
