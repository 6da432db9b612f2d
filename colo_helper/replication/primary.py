"""The primary: its guest is protected in one session after another, and runs on whatever ends them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from colo_helper.channel.wire import Kind
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.monitor.state import kept_state
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.primary import (
    PrimaryEnd,
    awaits_guest,
    cause_behind,
    primary_end,
    primary_start,
    retry_wait,
)
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.guest import LOCAL_ERRORS, attempt
from colo_helper.replication.host import Host
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.ownership import Ownership
from colo_helper.replication.primary_guest import PrimaryGuest
from colo_helper.replication.primary_packets import PrimaryPackets
from colo_helper.replication.primary_session import PrimarySession

#: Makes the conversation with the secondary; raises SessionEndedError.
Connector = Callable[[Config, Monitor, Inbox], Conversation]


@dataclass(slots=True)
class Primary:
    """One VM's primary. ``run`` does everything and returns the exit status.

    ``saved`` is the state file of an earlier run, if there is one.
    """

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    connect: Connector
    ownership: Ownership
    saved: dict[str, Any] | None = None
    conversation: Conversation | None = None
    packets: PrimaryPackets = field(init=False)
    here: PrimaryGuest = field(init=False)

    def __post_init__(self) -> None:
        permits = self.ownership.right.permits
        self.packets = PrimaryPackets(self.config, self.monitor, self.inbox, permits)
        self.here = PrimaryGuest(
            self.config,
            self.host,
            self.monitor,
            self.ownership,
            self.packets,
            self._stop_if_asked,
            self.saved,
        )

    def run(self) -> int:
        """Protect the VM until somebody stops it or something fails for good; the guest runs on in every case.

        A secondary that was lost is looked for again and again.
        """
        before = primary_start(self.saved, self.host.find(self.config.vm), boot_id())
        self.monitor.restore(ended_generation=before.ended, **kept_state(self.saved))
        self.here.awaiting = awaits_guest(self.saved, before.ended, boot_id())
        wait_s = 0.0
        while True:
            checkpoints = self.monitor.state.totals.checkpoints
            try:
                cause, why = self._protect()
            except SessionEndedError as error:
                cause, why = error.cause, str(error)
            except LOCAL_ERRORS as error:
                cause, why = Cause.LOCAL_ERROR, str(error)
            except BaseException as error:
                self._finish(Cause.LOCAL_ERROR, f"The replicator itself failed: {error!r}", last=True)
                raise
            cause, why = self._behind(cause, why)
            exit_code = self._finish(cause, why)
            if exit_code is not None:
                return exit_code
            wait_s = retry_wait(wait_s, cause, self.monitor.state.totals.checkpoints - checkpoints)
            self._rest(wait_s)

    def _protect(self) -> tuple[Cause, str]:
        """Make one attempt: open the guest, unless it is open, find the secondary, and protect the one with the other."""
        self._stop_if_asked()
        if ended := self.here.how_ended():
            raise ended
        guest = self.here.open()
        self.conversation = self.connect(self.config, self.monitor, self.inbox)
        session = PrimarySession(
            self.config,
            self.host,
            self.monitor,
            self.inbox,
            self.ownership,
            self.packets,
            self.here,
            guest,
            self.conversation,
            self._stop_if_asked,
            str((self.saved or {}).get("generation", "")),
        )
        return session.run()

    def _behind(self, cause: Cause, why: str) -> tuple[Cause, str]:
        """Return what is behind the end of a session: the guest, or its device model, may have ended first."""
        ended = self.here.how_ended(failing=cause is Cause.LOCAL_ERROR)
        if ended is None:
            return cause, why
        shared, by_service = self.ownership.right.shared, self.inbox.stopped_by_service
        behind = cause_behind(cause, ended.cause, shared=shared, stopped_by_service=by_service)
        if behind is not ended.cause:
            return behind, f"{ended}, and {why}" if behind is Cause.GIVEN_UP else why
        if behind is Cause.NO_DEVICES:
            self.inbox.refuse_stops(
                "no_devices",
                f"{ended}: its copy on {self.config.peer_name} may be all that can run, and is not given up. Look with "
                f"playbooks/status.yml. 'xl destroy {self.config.vm}' ends it here; then playbooks/failover.yml lets the copy "
                "go on.",
            )
        return behind, str(ended)

    def _stop_if_asked(self) -> None:
        self.inbox.wait(0)
        self.ownership.obey()
        if not self.ownership.right.shared:
            self._flow_if_failed()
        if self.inbox.stop_reason:
            raise SessionEndedError(Cause.STOP, self.inbox.stop_reason)

    def _rest(self, seconds: float) -> None:
        """Wait before the next attempt; a stop ends that, and what operators want of who may run."""
        deadline = time.monotonic() + seconds
        while not self.inbox.stop_reason and self.inbox.wait(deadline - time.monotonic()):
            if self.inbox.wishes:
                return
            self._flow_if_failed()

    def _flow_if_failed(self) -> None:
        """What moves packets has failed, and the guest must not fall silent; unless somebody else may come to own the VM."""
        if self.packets.failure:
            for problem in self.packets.let_flow():
                self.monitor.event("close", problem)

    # ------------------------------------------------------------------------------------------ who has the VM

    def _settled(self, cause: Cause, why: str) -> tuple[Cause, str]:
        """Return why the session ends once it is known who has the VM."""

        def unanswered(still: bool) -> list[str]:
            problems = self.here.keep_quiet(still)
            # The secondary, which hears us, would wait for a checkpoint that never comes; it may have to go on itself.
            # But not with a guest that has ended.
            if cause not in (Cause.GUEST_ENDED, Cause.GUEST_DIED):
                self._hang_up()
            return problems

        try:
            if self._to_give_up(cause):
                # Nobody hears of it but by the channels' end. The guest here has said its last: its packets went through its
                # device model.
                return (Cause.GIVEN_UP if self.ownership.give_up(why, unanswered) else cause), why
            self.ownership.settle(why, unanswered)
        except SessionEndedError as error:
            return self._behind(error.cause, str(error))
        if cause is Cause.STOP and not self.inbox.stop_reason:
            return Cause.PEER_LOST, "The stop that was asked for was refused meanwhile"
        return cause, why

    def _to_give_up(self, cause: Cause) -> bool:
        """Whether the copy is to be the VM, because the guest here can do nothing any more."""
        if cause is not Cause.NO_DEVICES or not self.ownership.right.shared:
            return False
        try:
            if self.conversation:
                self.conversation.check()
        except SessionEndedError as error:  # a secondary that is only gone may come back
            return error.cause not in (Cause.PEER_FAILED, Cause.PEER_REFUSED)
        return True

    def _hang_up(self) -> None:
        if self.conversation:
            self.conversation.close()
            self.conversation = None

    # ------------------------------------------------------------------------------------------ the end

    def _finish(self, cause: Cause, why: str, *, last: bool = False) -> int | None:
        """Let the guest run at once, then tell the peer, the file and whoever waits; None when it is to be tried again.

        ``last``: nobody tries again.
        """
        vm, peer, step = self.config.vm, self.config.peer_name, self.here.step
        keeps = self.conversation is not None and self.conversation.peer_keeps
        if cause is Cause.GUEST_ENDED or (cause is Cause.GUEST_DIED and keeps):
            # Before anybody is asked, which may take long: the copy must not go on from a guest that has ended.
            self._part(primary_end(vm, peer, step, cause, why).tell, why)
        cause, why = self._settled(cause, why)
        if cause is Cause.STOP:  # its guest may have ended while the arbiter was asked
            cause, why = self._behind(cause, why)
        ended = self.here.how_ended() if cause is Cause.STOP else None
        headless = ended is not None and ended.cause is Cause.NO_DEVICES
        lives = ended is None or headless
        if cause is Cause.LEFT:
            self.monitor.event("left", f"{why} {self.config.vm} is left as it is.")
            return 0
        if cause is Cause.SUCCEEDED:
            self.here.stand_aside()
        if cause is Cause.GIVEN_UP:
            self.packets.side.discard()
            self._hang_up()  # the copy waits for that, and to destroy a domain takes seconds
            self.monitor.restore(role="secondary")
            lives = not self.here.discard()
        end = primary_end(vm, peer, self.here.step, cause, why, lives=lives, headless=headless)
        if last and end.exit_code is None:
            end = replace(end, phase="failed", exit_code=1, sentence=f"{why}; {vm} runs on unprotected.")
        problems = self._let_go(cause, end, why)
        sentence = " ".join([end.sentence, *problems])
        if end.exit_code is None:
            if end.guest == "gone":
                self.here.forget()
            if (self.monitor.state.phase, self.monitor.state.reason) != (end.phase, sentence):
                self.monitor.enter(end.phase, sentence)
            self._answer_waiting(sentence)
            return None
        self._leave(end.phase, sentence)
        return end.exit_code

    def _leave(self, phase: str, sentence: str) -> None:
        for problem in self.here.guest.close() if self.here.guest else []:
            self.monitor.event("close", problem)
        if self.monitor.takes_up and phase == "failed":
            self.monitor.event(phase, sentence)  # the next replicator has still to put the guest in order
        else:
            self.monitor.enter(phase, sentence)

    def _let_go(self, cause: Cause, end: PrimaryEnd, why: str) -> list[str]:
        """Let the guest run, its packets leave, and the peer know; returns what of the guest could not be put back."""
        if cause is Cause.GUEST_DIED:
            self.packets.side.discard()  # its copy is kept, and may be the VM yet
        elif end.tell != "end":
            self.packets.side.release()
        problems = self.here.guest.release() if self.here.guest and end.guest != "hold" else []
        if end.guest == "run":
            problems += attempt([self.here.rejoin])
        tell = end.tell
        if tell == "end" and end.guest == "run" and (ended := self.here.how_ended(failing=problems != [])):
            problems.append(f"{ended}: its copy on {self.config.peer_name} is kept.")
            tell = "keep"
        self._part(tell, why)
        # After an orderly end the copy is gone, and nobody can go on from before what clients are shown now.
        self.packets.side.release()
        if self.here.guest and end.guest != "gone":
            stays, runs = end.exit_code is None, end.guest == "run"
            return problems + self.packets.part(self.here.guest, stays=stays, runs=runs)
        unclosed = self.packets.let_flow()
        return [] if end.guest == "gone" else problems + unclosed

    def _answer_waiting(self, sentence: str) -> None:
        """Whoever waits for a checkpoint learns that there is none."""
        while self.inbox.requests:
            self.inbox.requests.popleft().refuse("not_replicating", sentence)

    def _part(self, tell: str, why: str) -> None:
        """Say the last word to the peer, if there is one who hears it, and hang up."""
        problem = ""
        if self.conversation and tell == "end":
            problem = self.conversation.tell(Kind.END, {"reason": why}) or self._await_ended(
                self.conversation
            )
        elif self.conversation and tell:
            # The peer may be in the middle of something and hears it only when the session is over.
            kind = Kind.RENEW if tell == "renew" else Kind.ABORT
            problem = self.conversation.tell(
                kind, {"reason": why, "guest": "runs" if tell == "abort" else "ended"}
            )
        self._hang_up()
        if problem:
            self.monitor.event(
                "peer_not_told", f"The secondary may not know that the protection ended: {problem}"
            )

    def _await_ended(self, conversation: Conversation) -> str:
        """Wait until the copy is gone; returns why that is not known, or an empty string."""
        try:
            conversation.expect(Kind.ENDED, regardless=True, interrupted=self._flow_if_failed)
        except SessionEndedError as error:
            return str(error)
        return ""
