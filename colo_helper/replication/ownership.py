"""The primary before the arbiter: what it must have to go on, and what it does until it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from colo_helper.arbiter.decisions import Do, Ruling
from colo_helper.arbiter.interface import ArbiterError
from colo_helper.arbiter.right import Right
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.inbox import Inbox

#: How often an arbiter that does not answer is asked again, in seconds.
_ASK_AGAIN_S = 1.0


@dataclass(slots=True)
class Ownership:
    """Only the main thread uses it."""

    vm: str
    peer: str
    monitor: Monitor
    inbox: Inbox
    right: Right

    def share(self) -> None:
        """The secondary has a whole copy: from now on it may go on when this side is not heard. Raises SessionEndedError."""
        self._require(lambda: self.right.protect(self.peer, self.monitor.state.generation))

    def hand_over(self) -> None:
        """The secondary's copy is the VM from now on. Raises SessionEndedError when that is not written down."""
        self._require(lambda: self.right.hand_over(self.peer))

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

        def waiting() -> list[str]:
            problems = keep_quiet(self.right.must_stand_still())
            self.refuse()
            return problems

        if self.right.shared:
            self._settled(why.rstrip("."), waiting)

    def refuse(self) -> None:
        """Refuse what operators ask for while nobody can tell who may run.

        When the service manager ends this program the cause is LEFT: everything stays as it is, and the next one asks.
        """
        sentence = self.monitor.state.reason
        self.inbox.refuse_stops("asking", sentence)
        while self.inbox.requests:
            self.inbox.requests.popleft().refuse("asking", sentence)
        if self.inbox.stop_reason:
            raise SessionEndedError(Cause.LEFT, self.inbox.stop_reason)

    def _settled(self, why: str, waiting: Callable[[], list[str]]) -> None:
        said = ""
        problems: list[str] = []
        while True:
            try:
                ruling = self.right.alone(why)
            except ArbiterError as error:
                pause = str(error)
            else:
                if ruling.do is Do.RUN:
                    return
                if ruling.do is Do.STOP:
                    raise SessionEndedError(Cause.SUCCEEDED, ruling.sentence)
                pause = ruling.sentence
            pause = " ".join([pause, *problems])
            if pause != said:
                self.monitor.enter("asking", f"{why}; whether {self.vm} may go on here is not known. {pause}")
            said = pause
            problems = waiting()
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
