"""The secondary: it waits for sessions of its primary, and decides what becomes of the copy between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from colo_helper.channel.wire import Kind
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.monitor.state import kept_state
from colo_helper.replication.active_copy import ActiveCopy
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.refusals import stop_refusal
from colo_helper.replication.decisions.secondary import (
    STANDING_BY,
    SecondaryEnd,
    SecondaryStart,
    Step,
    not_destroyed,
    secondary_end,
    secondary_start,
    stopped_end,
    was_receiving,
)
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.guest import LOCAL_ERRORS, Guest, attempt
from colo_helper.replication.host import Host
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.secondary_copy import Copy
from colo_helper.replication.secondary_session import SecondarySession
from colo_helper.replication.succession import Succession
from colo_helper.replication.takeover import Takeover


@dataclass(slots=True)
class Secondary:
    """One VM's secondary. ``run`` does everything and returns the exit status.

    ``saved`` is the state file of an earlier run, if there is one.
    """

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    succession: Succession
    saved: dict[str, Any] | None = None
    copy: Copy = field(init=False)
    takeover: Takeover = field(init=False)
    active: ActiveCopy = field(init=False)

    def __post_init__(self) -> None:
        self.copy = Copy(self.config, self.host, self.monitor, self.inbox)
        self.takeover = Takeover(self.config, self.monitor, self.inbox, self.succession, self.copy)
        self.active = ActiveCopy(self.config, self.monitor, self.inbox, self.succession, self.copy)

    def run(self) -> int:
        """Wait for sessions, and serve them, until somebody stops it or something fails."""
        self.monitor.restore(**kept_state(self.saved))
        self.copy.unfinished = was_receiving(self.saved, boot_id())
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
                end = self._hold() if self.copy.guest else self._wait()
                if end is not None:
                    return end
        finally:
            if self.monitor.state.phase == "active":
                self.active.leave()
            for problem in self.copy.let_packets_flow():
                self.monitor.event("close", problem)

    def _is_ours(self, domid: int) -> bool:
        return self.saved is not None and self.saved.get("domid") == domid

    def _take_up(self, guest: Guest, start: SecondaryStart) -> None:
        """Go on with the copy that an earlier replicator left."""
        self.copy.guest = guest
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
        if start.phase == "active" and guest.held.there:  # it was handed over, and did not run yet
            guest.nics.isolate()
            guest.hold_still()
            self.active.resting = True
        elif start.phase == "active":
            problems += attempt([self.copy.go_on_moving, self.copy.join_network])
        self.monitor.enter(start.phase, " ".join([start.sentence, *problems]), domid=guest.domain.domid)

    # ------------------------------------------------------------------------------------------ without a session

    def _wait(self) -> int | None:
        """Wait for a primary and serve it; returns an exit status when that is to be the end."""
        while not (self.inbox.sessions or self.inbox.stop_reason):
            self.succession.obey(self.inbox)
            self._refuse_waiting("no_copy", f"There is no copy of {self.config.vm} here.")
            self.inbox.wait_forever()
        if self.inbox.stop_reason:
            self.monitor.enter("stopped", self.inbox.stop_reason)
            return 0
        return self._serve().exit_code

    def _hold(self) -> int | None:
        """The primary is gone: keep the copy until it comes back, or until it is decided who goes on.

        Returns an exit status when that is to be the end.
        """
        active = self.monitor.state.phase == "active"
        self.succession.obey(self.inbox)
        if active:
            self.active.note_moves()
        if self.inbox.sessions and not active:  # before a request to take over: the primary is there
            return self._serve().exit_code
        if self.inbox.requests:
            self.takeover.answer(self.inbox.requests.popleft())
        elif self.inbox.sessions:
            self.active.turn_away(self.inbox.sessions.pop())
        elif self.inbox.stop_reason and not active and self._copy_may_go():
            # A copy must not be saved with its host, to run on the network after the next boot.
            end = stopped_end(self.config.vm, self.inbox.stop_reason)
            if problems := self.copy.destroy():
                end = not_destroyed(end, self.config.vm)
            self.monitor.enter(end.phase, " ".join([end.sentence, *problems]), domid=None)
            return end.exit_code
        elif self.inbox.stop_reason:
            # The service manager ends this program, not the only copy there may be: it runs on, and the next
            # replicator goes on with it.
            return 0
        elif active or self.active.unstopped:
            self.active.go_on()
        elif self.succession.pending:
            self.takeover.ask()
        else:
            self._wait_with_copy()
        return None

    def _copy_may_go(self) -> bool:
        """Whether whoever stops this side takes the copy with it. What was asked in a session was asked of another copy."""
        requests = self.inbox.stop_requests
        if not requests:
            return self.host.going_down()
        forced = any(request.forced for request in requests)
        refusal = stop_refusal(self.config.vm, "secondary", self.monitor.state.phase, forced=forced)
        if refusal:
            self.inbox.refuse_stops(refusal.code, refusal.sentence)
        return refusal is None

    def _wait_with_copy(self) -> None:
        if self.copy.failure:
            self.succession.say(self.copy.failure)
        self.inbox.wait_forever()

    def _refuse_waiting(self, code: str, sentence: str) -> None:
        """What was asked before or during a session was asked of another situation; it must not happen later."""
        while self.inbox.requests:
            self.inbox.requests.popleft().refuse(code, sentence)

    # ------------------------------------------------------------------------------------------ one session

    def _serve(self) -> SecondaryEnd:
        """Serve one session to its end and carry out what becomes of the copy."""
        phase = self.monitor.state.phase
        session = self._next_session(phase)
        try:
            session.run()
            raise AssertionError("a session ends by an exception")
        except SessionEndedError as error:
            cause, why = error.cause, str(error)
        except LOCAL_ERRORS as error:
            # Before anything was done to it, a copy that was there is as good as it was.
            untouched = self.copy.guest is not None and self.monitor.state.phase == phase
            cause, why = Cause.PEER_REFUSED if untouched else Cause.LOCAL_ERROR, str(error)
        conversation = session.conversation
        if cause is Cause.LOCAL_ERROR:
            conversation.tell(Kind.REFUSE, {"code": "failed", "error": why})
        end = secondary_end(self.config.vm, self.config.peer_name, session.step, cause, why)
        problems = {"run": self.copy.let_run, "hold": list, "destroy": self.copy.destroy}[end.copy]()
        if end.copy == "destroy" and problems:
            end = not_destroyed(end, self.config.vm)
        elif cause is Cause.END:
            conversation.tell(Kind.ENDED, {})
        conversation.close()
        guest = self.copy.guest
        if end.exit_code is not None and guest:
            problems += guest.close()
        domid = guest.domain.domid if guest else None
        self._refuse_waiting(
            "primary_alive", "The primary was attached meanwhile; look again, then ask again."
        )
        if end.exit_code is None and guest:
            self.inbox.refuse_stops("peer_lost", f"{end.sentence} Look again, then ask again.")
        self._enter_end(cause, end.phase or phase, end.sentence, problems, domid)
        return end

    def _enter_end(
        self, cause: Cause, phase: str, sentence: str, problems: list[str], domid: int | None
    ) -> None:
        """Write down how a session has ended. This side is the primary from now on when it was handed the VM, and that runs."""
        sentence = " ".join([sentence, *problems])
        if cause is not Cause.SWITCHED:
            self.monitor.enter(phase, sentence, domid=domid, guest_ended=cause is Cause.GUEST_DIED)
        elif problems:  # whoever comes next lets it run
            self.monitor.enter("active", sentence, domid=domid)
        else:
            as_primary = lambda: self.monitor.enter(phase, sentence, domid=domid, role="primary")  # noqa: E731
            for problem in attempt([as_primary]):
                self.monitor.event("roles", problem)

    def _next_session(self, phase: str) -> SecondarySession:
        """Begin the session that waits, with a copy that is in ``phase``, if there is one."""
        self.succession.open()
        step = {"torn": Step.TORN, **dict.fromkeys(STANDING_BY, Step.STANDING)}.get(
            phase, Step.RUNNING if self.copy.guest else Step.COPYING
        )
        session = self.inbox.sessions.pop()
        while self.inbox.sessions:
            self.inbox.sessions.pop().close()  # its client gave up and came again
        return SecondarySession(
            self.config,
            self.host,
            self.monitor,
            self.inbox,
            self.succession,
            self.copy,
            Conversation(session, self.inbox),
            step,
        )
