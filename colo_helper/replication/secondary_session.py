"""One session of the secondary with its primary: what both have is agreed on and made equal, and checkpoints are served."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from colo_helper import __version__
from colo_helper.channel.wire import Frame, Kind
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import STEP_TIMEOUT_S, Conversation, moves_in, number
from colo_helper.replication.decisions.secondary import Step, exists_refusal, foreign_refusal
from colo_helper.replication.decisions.session import PROTOCOL, Cause, SessionEndedError
from colo_helper.replication.guest import Guest, attempt
from colo_helper.replication.host import Host
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.packing import PackingError, unpack
from colo_helper.replication.secondary_copy import Copy
from colo_helper.replication.secondary_epochs import SecondaryEpochs
from colo_helper.replication.succession import Succession
from colo_helper.replication.verify import answer_hash

_PROGRESS_S = 1.0


@dataclass(slots=True)
class SecondarySession:
    """``run`` serves it to its end; ``step`` tells at any moment, and after it, how far the copy is."""

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    succession: Succession
    copy: Copy
    conversation: Conversation
    step: Step
    _stop_sent_s: float = 0.0

    def run(self) -> None:
        """Agree with the primary on what there is already, bring it about, and serve checkpoints. Ends by an exception."""
        hello = self.conversation.expect(Kind.HELLO).head
        self.copy.remove_unfinished()
        if self.copy.condemned:
            self._destroy()
        refusal = self._hello_refusal(hello)
        if refusal:
            self.conversation.tell(Kind.REFUSE, {"code": "refused", "error": refusal})
            raise SessionEndedError(Cause.PEER_REFUSED, refusal)
        if useless := self._useless(hello):
            self.monitor.event("discarded", useless)
            self.step = Step.COPYING
            self._destroy()
        guest = self.copy.guest
        self.conversation.send(
            Kind.HELLO,
            {
                "protocol": PROTOCOL,
                "version": __version__,
                "release": self.host.release,
                "holds": self.monitor.state.generation if guest else "",
                "keeps": True,  # knows ABORT with a guest that has ended, which a release before this one does not
            },
        )
        frame = self.conversation.expect(Kind.RESYNC if guest else Kind.COPY, interrupted=self._pass_stop_on)
        if guest:
            self._be_compared(guest)
        else:
            guest = self._receive_copy(str(frame.head.get("generation")))
        self._replicate(guest)

    def _destroy(self) -> None:
        if problems := self.copy.destroy():
            raise SessionEndedError(Cause.LOCAL_ERROR, " ".join(problems))

    def _hello_refusal(self, hello: dict[str, Any]) -> str:
        if hello.get("protocol") != PROTOCOL:
            return f"The primary speaks version {hello.get('protocol')} of the protocol, this host speaks {PROTOCOL}."
        if bool(hello.get("arbiter")) is not self.succession.right.automatic:
            return "One side asks an arbiter and the other does not: run playbooks/protect.yml, which tells both the same."
        domid = self.host.find(self.config.vm)
        if self.copy.guest is None and domid is not None:
            return exists_refusal(self.config.vm, domid)
        if (
            self.copy.guest
            and hello.get("generation") != self.monitor.state.generation
            and not self._is_of_ended(hello)
        ):
            return foreign_refusal(self.config.vm)
        return ""

    def _useless(self, hello: dict[str, Any]) -> str:
        """Return why the copy here, if there is one, is worth nothing to a primary that is there."""
        if self.copy.guest and self._is_of_ended(hello):
            return f"The guest that the copy of {self.config.vm} comes from has ended."
        if self.copy.guest and self.copy.guest.devices.ended():
            return f"The device model of the copy of {self.config.vm} has ended."
        return ""

    def _is_of_ended(self, hello: dict[str, Any]) -> bool:
        """Whether the copy here comes from a guest that, its primary says, has ended."""
        generation = self.monitor.state.generation
        return generation != "" and hello.get("ended") == generation

    # ------------------------------------------------------------------------------------------ a copy to build on

    def _be_compared(self, guest: Guest) -> None:
        """The primary is back: the copy stands still from now on, and the primary looks what differs."""
        self.monitor.enter(
            "resyncing", f"The copy of {self.config.vm} stands still to be compared and made equal."
        )
        guest.hold_still()
        self.step = Step.PARTIAL if self.step is Step.RUNNING else self.step
        guest.nics.isolate()
        self._tell_copied(guest)

    def _receive_copy(self, generation: str) -> Guest:
        vm = self.config.vm
        text = f"The first copy of {vm} is coming from {self.config.peer_name}."
        self.monitor.enter("receiving", text, generation=generation, domid=None)
        started = reported = time.monotonic()
        received = 0
        frame = self.conversation.expect(Kind.CHUNK, interrupted=self._pass_stop_on)
        self.copy.restore = restore = self.host.restore(vm)
        while frame.kind is Kind.CHUNK:
            data = _unpacked(frame)
            restore.write(data)
            received += len(data)
            if time.monotonic() - reported >= _PROGRESS_S:
                reported = time.monotonic()
                self.monitor.progress("copy", received, reported - started)
            frame = self.conversation.expect(Kind.CHUNK, Kind.COPY_END, interrupted=self._pass_stop_on)
        self.monitor.progress("restore", received, time.monotonic() - started)
        self.copy.guest = guest = self.host.open_guest(restore.finish())
        self.copy.restore = None
        guest.nics.isolate()  # at once: the guest itself is on the network, on the primary's host
        guest.adopt_halt()
        self.step = Step.READY
        self._tell_copied(guest)
        return guest

    def _tell_copied(self, guest: Guest) -> None:
        domain = guest.domain
        facts = {"domid": domain.domid, "frames": domain.nr_frames(), "pages": domain.info().pages}
        self.conversation.send(Kind.COPIED, facts)

    # ------------------------------------------------------------------------------------------ checkpoints

    def _replicate(self, guest: Guest) -> None:
        """Serve checkpoints; the primary sets the pace. Ends by an exception."""
        conversation = self.conversation
        while (
            frame := conversation.expect(Kind.HASH, Kind.ARM, interrupted=self._pass_stop_on)
        ).kind is Kind.HASH:
            answer_hash(guest.domain, conversation, frame.head)
        guest.start_logging()
        moves = moves_in(frame.parts[0] if frame.parts else b"")
        guest.moved.write(moves)  # for whoever serves this copy when it is the VM
        if frame.head.get("packets") is True:
            self.copy.take_hold(conversation, moves)
        epochs = SecondaryEpochs(
            self.host,
            self.monitor,
            conversation,
            guest,
            self.copy.packets,
            self._pass_stop_on,
            lambda: self._running(guest),
            lambda: self._handed_over(guest),
            self.step,
            number(frame.head, "epoch"),
            moves,
        )
        epochs.start()
        conversation.send(Kind.ARMED)
        try:
            epochs.run()
        finally:
            self.step = epochs.step

    def _running(self, guest: Guest) -> None:
        text = f"The copy of {self.config.vm} runs, off the network."
        self.monitor.enter("replicating", text, domid=guest.domain.domid)

    def _handed_over(self, guest: Guest) -> None:
        """This copy is the VM from now on; written down before the guest runs on the network.

        Whatever fails, this copy is the VM: the primary has written down that its own is not. A replicator that comes after
        this one, killed here, goes on with it as with one that took over; the roles are swapped when it runs.
        """
        text = f"{self.config.vm} was handed over by {self.config.peer_name}."
        problems = attempt([lambda: self.monitor.enter("active", text)])
        self.monitor.restore(phase="active", reason=text)
        problems += self.copy.let_packets_flow()  # all connections have the same numbers on both sides now
        problems += attempt([self.copy.join_network, guest.devices.announce])
        for problem in problems:
            self.monitor.event("handed_over", problem)

    def _pass_stop_on(self) -> None:
        """Ask the primary for an orderly end, once, when somebody stops this side."""
        self.succession.obey(self.inbox)
        if self.inbox.stopped_by_service and not self._stop_sent_s and self.host.going_down():
            # Not the end of the protection: the primary looks for its secondary until this host is there again.
            raise SessionEndedError(Cause.LOCAL_ERROR, "The secondary's host is being shut down.")
        if self.inbox.stop_reason and not self._stop_sent_s:
            self._stop_sent_s = time.monotonic()
            self.conversation.send(Kind.STOP, {"reason": self.inbox.stop_reason})
        elif self._stop_sent_s and time.monotonic() - self._stop_sent_s > STEP_TIMEOUT_S:
            raise SessionEndedError(Cause.STOP, self.inbox.stop_reason)


def _unpacked(frame: Frame) -> bytes:
    """Return the bytes of a piece of the first copy; raises SessionEndedError when they cannot be believed."""
    try:
        return unpack(frame)
    except PackingError as error:
        raise SessionEndedError(Cause.PEER_LOST, f"The first copy is damaged: {error}") from error
