"""The secondary: the copy that runs off the network and is made equal at each checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from colo_helper import __version__
from colo_helper.arbiter.decisions import Do
from colo_helper.channel.session import Session
from colo_helper.channel.wire import Frame, Kind
from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.monitor.state import kept_state
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import STEP_TIMEOUT_S, Conversation, moves_in, number
from colo_helper.replication.decisions.refusals import verb_refusal
from colo_helper.replication.decisions.secondary import (
    STANDING_BY,
    SecondaryEnd,
    SecondaryStart,
    Step,
    exists_refusal,
    foreign_refusal,
    not_destroyed,
    secondary_end,
    secondary_start,
    stopped_end,
    was_receiving,
)
from colo_helper.replication.decisions.session import PROTOCOL, Cause, SessionEndedError
from colo_helper.replication.guest import LOCAL_ERRORS, Guest, attempt
from colo_helper.replication.host import Host, RestoreStream
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.moved import left_behind
from colo_helper.replication.packing import PackingError, unpack
from colo_helper.replication.secondary_epochs import SecondaryEpochs
from colo_helper.replication.succession import ASK_AGAIN_S, Succession
from colo_helper.replication.verify import answer_hash
from colo_helper.traffic.moves import Moves
from colo_helper.traffic.sides import SecondarySide, Untouched, to_nobody

_PROGRESS_S = 1.0
#: How long a primary that comes back may take to say who it is, in seconds.
_HELLO_TIMEOUT_S = 10.0
#: How often it is looked whether connections still need their numbers moved after a take-over.
_FOLLOWED_S = 10.0


@dataclass(slots=True)
class Secondary:
    """One VM's secondary. ``run`` does everything and returns the exit status."""

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    succession: Succession
    saved: dict[str, Any] | None = None
    guest: Guest | None = None
    restore: RestoreStream | None = None
    step: Step = Step.COPYING
    stop_sent_s: float = 0.0
    packets: SecondarySide | Untouched = field(default_factory=Untouched)

    def run(self) -> int:
        """Wait for sessions, and serve them, until somebody stops it or something fails."""
        self.monitor.restore(**kept_state(self.saved))
        domid = self.host.find(self.config.vm)
        guest = self.host.open_guest(domid) if domid is not None and self._is_ours(domid) else None
        start = secondary_start(
            self.config.vm, domid, self.saved, boot_id(), guest is not None and guest.torn.there
        )
        if start.action == "hold" and guest:
            self._take_up(guest, start)
        else:
            if guest:
                guest.close()
            self.monitor.enter("waiting", start.sentence)
        try:
            while True:
                end = self._hold() if self.guest else self._wait()
                if end is not None:
                    return end
        finally:
            if self.monitor.state.phase == "active" and (
                sentence := left_behind(self.config.vm, self.packets.moves())
            ):
                self.monitor.event("moved_connections", sentence)
            for problem in self._let_packets_flow():
                self.monitor.event("close", problem)

    def _is_ours(self, domid: int) -> bool:
        return self.saved is not None and self.saved.get("domid") == domid

    def _take_up(self, guest: Guest, start: SecondaryStart) -> None:
        """Go on with the copy that an earlier replicator left."""
        self.guest = guest
        saved = self.saved or {}
        self.monitor.restore(generation=str(saved.get("generation", "")), epoch=int(saved.get("epoch", 0)))
        if start.phase == "peer_lost":
            guest.nics.isolate()
            problems = guest.recover()
        else:
            problems = guest.let_packets_flow()
        if start.phase in ("torn", *STANDING_BY):
            guest.nics.isolate()
            guest.hold_still()
        if start.phase == "active":
            problems += attempt([self._go_on_moving, lambda: self._join_network(guest)])
        self.monitor.enter(start.phase, " ".join([start.sentence, *problems]), domid=guest.domain.domid)

    def _wait(self) -> int | None:
        """Wait for a primary and serve it; returns an exit status when that is to be the end."""
        while not (self.inbox.sessions or self.inbox.stop_reason):
            self.succession.obey(self.inbox)
            self._refuse_waiting("no_copy", f"There is no copy of {self.config.vm} here.")
            self.inbox.wait_forever()
        if self.inbox.stop_reason:
            self.monitor.enter("stopped", self.inbox.stop_reason)
            return 0
        return self._session().exit_code

    # ------------------------------------------------------------------------------------------ one session

    def _session(self) -> SecondaryEnd:
        """Serve one session to its end and carry out what becomes of the copy."""
        phase, self.stop_sent_s = self.monitor.state.phase, 0.0
        self.succession.open()
        self.step = {"torn": Step.TORN, **dict.fromkeys(STANDING_BY, Step.STANDING)}.get(
            phase, Step.RUNNING if self.guest else Step.COPYING
        )
        session = self.inbox.sessions.pop()
        while self.inbox.sessions:
            self.inbox.sessions.pop().close()  # its client gave up and came again
        conversation = Conversation(session, self.inbox)
        try:
            self._begin(conversation)
            raise AssertionError("a session ends by an exception")
        except SessionEndedError as error:
            cause, why = error.cause, str(error)
        except LOCAL_ERRORS as error:
            # Before anything was done to it, a copy that was there is as good as it was.
            untouched = self.guest is not None and self.monitor.state.phase == phase
            cause, why = Cause.PEER_REFUSED if untouched else Cause.LOCAL_ERROR, str(error)
        if cause is Cause.LOCAL_ERROR:
            conversation.tell(Kind.REFUSE, {"code": "failed", "error": why})
        end = secondary_end(self.config.vm, self.config.peer_name, self.step, cause, why)
        problems = {"run": self._let_run, "hold": list, "destroy": self._destroy}[end.copy]()
        if cause is Cause.END and not problems:
            conversation.tell(Kind.ENDED, {})
        conversation.close()
        if end.exit_code is not None and self.guest:
            problems += self.guest.close()
        domid = self.guest.domain.domid if self.guest else None
        self._refuse_waiting(
            "primary_alive", "The primary was attached meanwhile; look again, then ask again."
        )
        if end.exit_code is None and self.guest:
            self.inbox.refuse_stops("peer_lost", f"{end.sentence} Look again, then ask again.")
        if end.copy == "destroy" and problems:
            end = not_destroyed(end, self.config.vm)
        self.monitor.enter(end.phase or phase, " ".join([end.sentence, *problems]), domid=domid)
        return end

    def _refuse_waiting(self, code: str, sentence: str) -> None:
        """What was asked before or during a session was asked of another situation; it must not happen later."""
        while self.inbox.requests:
            self.inbox.requests.popleft().refuse(code, sentence)

    def _begin(self, conversation: Conversation) -> None:
        """Agree with the primary on what there is already, bring it about, and serve checkpoints. Ends by an exception."""
        hello = conversation.expect(Kind.HELLO).head
        if self.guest is None and was_receiving(self.saved, boot_id()):
            self._remove_unfinished()
        refusal = self._hello_refusal(hello)
        if refusal:
            conversation.tell(Kind.REFUSE, {"code": "refused", "error": refusal})
            raise SessionEndedError(Cause.PEER_REFUSED, refusal)
        if self.guest and self._is_of_ended(hello):
            self.monitor.event(
                "discarded", f"The guest that the copy of {self.config.vm} comes from has ended."
            )
            if problems := self._destroy():
                raise SessionEndedError(Cause.LOCAL_ERROR, " ".join(problems))
            self.step = Step.COPYING
        conversation.send(
            Kind.HELLO,
            {
                "protocol": PROTOCOL,
                "version": __version__,
                "release": self.host.release,
                "holds": self.monitor.state.generation if self.guest else "",
            },
        )
        frame = conversation.expect(
            Kind.RESYNC if self.guest else Kind.COPY, interrupted=self._pass_stop_on(conversation)
        )
        if frame.kind is Kind.COPY:
            self._receive_copy(conversation, str(frame.head.get("generation")))
        else:
            self._be_compared(conversation)
        self._replicate(conversation)

    def _be_compared(self, conversation: Conversation) -> None:
        """The primary is back: the copy stands still from now on, and the primary looks what differs."""
        guest = self.guest
        assert guest is not None
        self.monitor.enter(
            "resyncing", f"The copy of {self.config.vm} stands still to be compared and made equal."
        )
        guest.hold_still()
        self.step = Step.PARTIAL if self.step is Step.RUNNING else self.step
        guest.nics.isolate()
        conversation.send(Kind.COPIED, self._facts(guest))

    @staticmethod
    def _facts(guest: Guest) -> dict[str, Any]:
        domain = guest.domain
        return {"domid": domain.domid, "frames": domain.nr_frames(), "pages": domain.info().pages}

    def _receive_copy(self, conversation: Conversation, generation: str) -> None:
        vm = self.config.vm
        text = f"The first copy of {vm} is coming from {self.config.peer_name}."
        self.monitor.enter("receiving", text, generation=generation)
        started = reported = time.monotonic()
        received = 0
        frame = conversation.expect(Kind.CHUNK, interrupted=self._pass_stop_on(conversation))
        self.restore = self.host.restore(vm)
        while frame.kind is Kind.CHUNK:
            data = _unpacked(frame)
            self.restore.write(data)
            received += len(data)
            if time.monotonic() - reported >= _PROGRESS_S:
                reported = time.monotonic()
                self.monitor.progress("copy", received, reported - started)
            frame = conversation.expect(
                Kind.CHUNK, Kind.COPY_END, interrupted=self._pass_stop_on(conversation)
            )
        self.monitor.progress("restore", received, time.monotonic() - started)
        self.guest = guest = self.host.open_guest(self.restore.finish())
        self.restore = None
        guest.nics.isolate()  # at once: the guest itself is on the network, on the primary's host
        guest.adopt_halt()
        self.step = Step.READY
        conversation.send(Kind.COPIED, self._facts(guest))

    def _remove_unfinished(self) -> None:
        """An earlier replicator was killed while a first copy arrived: what xl has made of it all the same never ran."""
        domid, self.saved = self.host.find(self.config.vm), None
        if domid is None:
            return
        with closing(self.host.open_guest(domid)) as unfinished:
            never_ran = unfinished.domain.info().paused
        if never_ran:
            self.host.destroy(domid)
            self.monitor.event(
                "discarded", f"The unfinished copy of {self.config.vm} (domain {domid}) was destroyed."
            )

    def _hello_refusal(self, hello: dict[str, Any]) -> str:
        if hello.get("protocol") != PROTOCOL:
            return f"The primary speaks version {hello.get('protocol')} of the protocol, this host speaks {PROTOCOL}."
        if bool(hello.get("arbiter")) is not self.succession.right.automatic:
            return "One side asks an arbiter and the other does not: run playbooks/protect.yml, which tells both the same."
        domid = self.host.find(self.config.vm)
        if self.guest is None and domid is not None:
            return exists_refusal(self.config.vm, domid)
        if (
            self.guest
            and hello.get("generation") != self.monitor.state.generation
            and not self._is_of_ended(hello)
        ):
            return foreign_refusal(self.config.vm)
        return ""

    def _is_of_ended(self, hello: dict[str, Any]) -> bool:
        """Whether the copy here comes from a guest that, its primary says, has ended."""
        generation = self.monitor.state.generation
        return generation != "" and hello.get("ended") == generation

    def _replicate(self, conversation: Conversation) -> None:
        """Serve checkpoints; the primary sets the pace. Ends by an exception."""
        guest = self.guest
        assert guest is not None
        interrupted = self._pass_stop_on(conversation)
        while (frame := conversation.expect(Kind.HASH, Kind.ARM, interrupted=interrupted)).kind is Kind.HASH:
            answer_hash(guest.domain, conversation, frame.head)
        guest.start_logging()
        moves = moves_in(frame.parts[0] if frame.parts else b"")
        guest.moved.write(moves)  # for whoever serves this copy when it is the VM
        if frame.head.get("packets") is True:
            self._take_hold(conversation, guest, moves)
        epochs = SecondaryEpochs(
            self.host,
            self.monitor,
            conversation,
            guest,
            self.packets,
            interrupted,
            self._running,
            self._handed_over,
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

    def _take_hold(self, conversation: Conversation, guest: Guest, moves: Moves) -> None:
        """Take hold of the copy's packets; those of an earlier session are void, for its state will be another."""
        self._let_packets_flow()
        packets = SecondarySide(guest.filters, conversation.send_packets, self.inbox.put_trouble, moves)
        conversation.carry_packets(packets)
        self.packets = packets

    def _go_on_moving(self) -> None:
        """Take hold of the packets of a copy that is the VM, when some of its connections need it."""
        assert self.guest is not None
        if moves := self.guest.moved.read():
            self.packets = SecondarySide(self.guest.filters, to_nobody, self.inbox.put_trouble, moves)
            self.packets.take_over()

    def _let_packets_flow(self) -> list[str]:
        """Take the filters away; returns what went wrong."""
        packets, self.packets = self.packets, Untouched()
        return attempt([packets.close])

    def _running(self) -> None:
        assert self.guest is not None
        text = f"The copy of {self.config.vm} runs, off the network."
        self.monitor.enter("replicating", text, domid=self.guest.domain.domid)

    def _handed_over(self) -> None:
        """This side is the primary from now on; written down before the guest runs on the network.

        Whatever fails, this copy is the VM: the primary has written down that its own is not.
        """
        assert self.guest is not None
        guest, text = self.guest, f"{self.config.vm} was handed over by {self.config.peer_name}."
        problems = attempt([lambda: self.monitor.enter("unprotected", text, role="primary")])
        self.monitor.restore(phase="unprotected", role="primary")
        problems += self._let_packets_flow()  # all connections have the same numbers on both sides now
        problems += attempt([lambda: self._join_network(guest), guest.devices.announce])
        for problem in problems:
            self.monitor.event("handed_over", problem)

    def _join_network(self, guest: Guest) -> None:
        guest.nics.connect([replace(tap, bridge=self.config.bridge) for tap in guest.nics.taps()])

    def _pass_stop_on(self, conversation: Conversation) -> Callable[[], None]:
        """Return what asks the primary for an orderly end, once, when somebody stops this side."""

        def interrupted() -> None:
            self.succession.obey(self.inbox)
            if self.inbox.stopped_by_service and not self.stop_sent_s and self.host.going_down():
                # Not the end of the protection: the primary looks for its secondary until this host is there again.
                raise SessionEndedError(Cause.LOCAL_ERROR, "The secondary's host is being shut down.")
            if self.inbox.stop_reason and not self.stop_sent_s:
                self.stop_sent_s = time.monotonic()
                conversation.send(Kind.STOP, {"reason": self.inbox.stop_reason})
            elif self.stop_sent_s and time.monotonic() - self.stop_sent_s > STEP_TIMEOUT_S:
                raise SessionEndedError(Cause.STOP, self.inbox.stop_reason)

        return interrupted

    # ------------------------------------------------------------------------------------------ ends

    def _let_run(self) -> list[str]:
        """Let the copy run, off the network, without logging; returns what went wrong."""
        problems = self.guest.release() if self.guest else []
        self.packets.resumed()
        return problems

    def _destroy(self) -> list[str]:
        """Make nothing of the copy stay; returns what went wrong."""
        problems = []
        try:
            if self.restore:
                self.restore.abandon()
            if self.guest:
                problems += self._let_packets_flow()
                problems += self.guest.close()
                self.host.destroy(self.guest.domain.domid)
                self.guest.forget_marks()
        except LOCAL_ERRORS as error:
            problems.append(str(error))
        self.restore, self.guest = None, None
        return problems

    def _hold(self) -> int | None:
        """The primary is gone: keep the copy until it comes back, or until it is decided who goes on.

        Returns an exit status when that is to be the end.
        """
        active = self.monitor.state.phase == "active"
        self.succession.obey(self.inbox)
        if active:
            self._note_moves()
        if self.inbox.requests:
            self._answer_takeover(self.inbox.requests.popleft())
        elif self.inbox.sessions and not active:
            return self._session().exit_code
        elif self.inbox.sessions:
            self._turn_away(self.inbox.sessions.pop())
        elif self.inbox.stop_reason and not active and (self.inbox.stop_requests or self.host.going_down()):
            # A copy must not be saved with its host, to run on the network after the next boot.
            end = stopped_end(self.config.vm, self.inbox.stop_reason)
            if problems := self._destroy():
                end = not_destroyed(end, self.config.vm)
            self.monitor.enter(end.phase, " ".join([end.sentence, *problems]), domid=None)
            return end.exit_code
        elif self.inbox.stop_reason:
            # The service manager ends this program, not the only copy there may be: it runs on, and the next
            # replicator goes on with it.
            return 0
        elif active:
            self._be_the_vm()
        elif self.succession.pending:
            self._ask_for_the_vm()
        else:
            self.inbox.wait_forever()
        return None

    def _turn_away(self, session: Session) -> None:
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
            stale = state.generation in theirs and state.generation != "" and not self._unable()
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

    def _be_the_vm(self) -> None:
        """What is left to do after a takeover."""
        if self.succession.unconfirmed:
            self._confirm()
        elif isinstance(self.packets, SecondarySide):
            self._keep_in_step(self.packets)
        else:
            self.inbox.wait_forever()

    def _ask_for_the_vm(self) -> None:
        """Ask the arbiter once whether this copy is to go on, if it can."""
        problem, wait_s = self._unable(), ASK_AGAIN_S
        if not problem:
            problem, wait_s = self.succession.ask(self._take_over)
        if problem:
            self.succession.say(problem)
            self.inbox.wait(wait_s)

    def _unable(self) -> str:
        """Return why the copy could not go on, whoever allowed it; an empty text when it can."""
        assert self.guest is not None
        try:
            info = self.guest.domain.info()
        except LOCAL_ERRORS as error:
            return str(error)
        if info.shutdown:
            return f"Domain {info.domid}, the copy, has ended by itself ({info.shutdown_reason})."
        if info.paused and not self.guest.halted:
            return f"Domain {info.domid} is paused, and not by us."
        return ""

    def _confirm(self) -> None:
        """An operator has let this copy take over without the arbiter: that is to be written down, or undone."""
        ruling = self.succession.confirm()
        if ruling is None:
            self.inbox.wait(ASK_AGAIN_S)
        elif ruling.do is Do.STOP and self.guest:
            self.packets.halting()
            problems = self.guest.put_aside()
            self.monitor.enter("standby", " ".join([ruling.sentence, "This copy stands by.", *problems]))

    def _keep_in_step(self, packets: SecondarySide) -> None:
        """After a take-over, stay between the guest and its clients as long as a connection needs its numbers moved."""
        if packets.followed and not self.inbox.trouble:
            self.inbox.wait(_FOLLOWED_S)
            return
        text = self.inbox.trouble or "Every connection has its own numbers."
        self.monitor.event(
            "packets_flow", " ".join([text, *self._let_packets_flow(), "Packets flow by themselves."])
        )

    def _note_moves(self) -> None:
        """Write down what the next replicator of this guest has to know of its connections."""
        guest, packets = self.guest, self.packets
        if guest and isinstance(packets, SecondarySide):
            for problem in attempt([lambda: guest.moved.write(packets.moves())]):
                self.monitor.event("moved_connections", problem)

    def _answer_takeover(self, request: Request) -> None:
        refusal = verb_refusal(
            self.config.vm,
            "secondary",
            self.monitor.state.phase,
            request.verb,
            arbiter=self.succession.right.automatic,
        )
        if refusal:
            code, sentence = refusal.code, refusal.sentence
        else:
            code, sentence = self.succession.ask_for_operator(self.config.vm, self._take_over, request)
        if code:
            self.monitor.event(code, sentence)
            request.refuse(code, sentence)
        else:
            request.succeed(self.monitor.snapshot())

    def _take_over(self, reason: str) -> tuple[str, str]:
        """Go on alone, on the network; returns (code, sentence) of a failure, or two empty texts."""
        guest = self.guest
        assert guest is not None
        try:
            # Logging is off since the primary was lost, unless that failed, or an earlier replicator left it on.
            guest.logging = True
            problems = guest.release()
            if unable := self._unable():
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
            if isinstance(self.packets, SecondarySide):
                self.packets.take_over()
            else:  # a few connections are no reason to refuse
                for problem in attempt([self._go_on_moving]):
                    self.monitor.event("moved_connections", problem)
            self._join_network(guest)
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
                lambda: self.monitor.enter("active", reason, followed=self.packets.followed),
                guest.devices.announce,
            ]
        ):
            self.monitor.event("active", problem)  # it is the VM all the same


def _unpacked(frame: Frame) -> bytes:
    """Return the bytes of a piece of the first copy; raises SessionEndedError when they cannot be believed."""
    try:
        return unpack(frame)
    except PackingError as error:
        raise SessionEndedError(Cause.PEER_LOST, f"The first copy is damaged: {error}") from error
