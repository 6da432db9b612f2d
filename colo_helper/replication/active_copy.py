"""The copy after it has taken over: it is the VM, and its replicator serves what its clients and a stale primary need."""

from __future__ import annotations

from dataclasses import dataclass

from colo_helper.arbiter.decisions import Do
from colo_helper.channel.session import Session
from colo_helper.channel.wire import Kind
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.session import SessionEndedError
from colo_helper.replication.guest import attempt
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.moved import left_behind
from colo_helper.replication.secondary_copy import Copy
from colo_helper.replication.succession import ASK_AGAIN_S, Succession
from colo_helper.traffic.sides import SecondarySide

#: How long a primary that comes back may take to say who it is, in seconds.
_HELLO_TIMEOUT_S = 10.0
#: How often it is looked whether connections still need their numbers moved after a take-over.
_FOLLOWED_S = 10.0


@dataclass(slots=True)
class ActiveCopy:
    """To be used in the phase ``active``, and ``standby`` after that."""

    config: Config
    monitor: Monitor
    inbox: Inbox
    succession: Succession
    copy: Copy
    #: Whether this copy was handed over and has not run since: it does when the arbiter, if there is one, says that it may.
    resting: bool = False
    #: Whether this copy could not be taken off the network or stopped when it was to stand by.
    _unstopped: bool = False

    def go_on(self) -> None:
        """What is left to do after a takeover, or after it was undone."""
        held = self.copy.packets if isinstance(self.copy.packets, SecondarySide) else None
        if self.unstopped:
            self._stop_again()
        elif self.succession.unconfirmed and not (held and self.copy.failure):
            self._confirm()
        elif self.resting:
            self._run()
        elif held:
            self._keep_in_step(held)
        else:
            self.inbox.wait_forever()

    def _confirm(self) -> None:
        """An operator has let this copy take over without the arbiter: that is to be written down, or undone."""
        ruling = self.succession.confirm()
        if ruling is None:
            self.inbox.wait(ASK_AGAIN_S)
        elif ruling.do is Do.STOP:
            self._stand_by(ruling.sentence)

    def _run(self) -> None:
        """Put the copy on the network and let it run; what fails is tried again."""
        guest = self.copy.guest
        assert guest is not None
        guest.logging = True  # an earlier replicator may have left it on
        problems = attempt([self.copy.go_on_moving, self.copy.join_network, guest.devices.announce])
        problems += guest.release()
        self.resting = problems != []
        if problems:
            self.succession.say(" ".join(problems))
            self.inbox.wait(ASK_AGAIN_S)
        else:
            self.monitor.event("runs", f"{self.config.vm} had been handed over, and runs here now.")

    def _stand_by(self, why: str) -> None:
        """Another copy is the VM; that is written down, whatever can be done about this one now."""
        self.copy.packets.halting()
        problems = self._put_aside()
        self.monitor.enter("standby", " ".join([why, "This copy stands by.", *problems]))

    @property
    def unstopped(self) -> bool:
        """Whether this copy stands by and is not off the network, or not still, yet."""
        return self._unstopped and self.monitor.state.phase == "standby"

    def _stop_again(self) -> None:
        """Try once more what could not be done when the copy was to stand by."""
        if self._put_aside():
            self.inbox.wait(ASK_AGAIN_S)
        else:
            self.monitor.event("stand_aside", "This copy is off the network and stands still now.")

    def _put_aside(self) -> list[str]:
        assert self.copy.guest is not None
        problems = self.copy.guest.put_aside()
        self._unstopped = problems != []
        return problems

    def _keep_in_step(self, packets: SecondarySide) -> None:
        """After a take-over, stay between the guest and its clients as long as a connection needs its numbers moved."""
        if packets.followed and not self.copy.failure:
            self.inbox.wait(_FOLLOWED_S)
            return
        text = self.copy.failure or "Every connection has its own numbers."
        problems = self.copy.let_packets_flow()
        after = [] if problems else ["Packets flow by themselves."]
        self.monitor.event("packets_flow", " ".join([text, *problems, *after]))

    def note_moves(self) -> None:
        """Write down what the next replicator of this guest has to know of its connections."""
        guest, packets = self.copy.guest, self.copy.packets
        if guest and isinstance(packets, SecondarySide):
            for problem in attempt([lambda: guest.moved.write(packets.moves())]):
                self.monitor.event("moved_connections", problem)

    def leave(self) -> None:
        """Say what becomes of the connections when the replicator ends and the VM runs on."""
        if sentence := left_behind(self.config.vm, self.copy.packets.moves()):
            self.monitor.event("moved_connections", sentence)

    def turn_away(self, session: Session) -> None:
        """There is a primary although this copy is the VM. Without an arbiter nobody else tells it so.

        That is told of a guest only which this copy comes from, or which was started anew where that one was.
        """
        if self.succession.right.automatic:
            session.close()  # it began before the takeover
            return
        primary, state = Conversation(session, self.inbox), self.monitor.state
        try:
            hello = primary.expect(Kind.HELLO, timeout_s=_HELLO_TIMEOUT_S).head
            theirs = hello.get("generation"), hello.get("before")
            stale = state.generation in theirs and state.generation != "" and not self.copy.unable()
            text = f"{self.config.vm} was taken over and is active there: {state.reason}"
            primary.tell(Kind.REFUSE, {"code": "taken_over" if stale else "failed", "error": text})
            self.monitor.event(
                "primary_told", f"The primary on {self.config.peer_name} came back, and was told."
            )
        except SessionEndedError as error:
            self.monitor.event(
                "primary_told", f"The primary on {self.config.peer_name} came back, and went: {error}"
            )
        finally:
            primary.close()
