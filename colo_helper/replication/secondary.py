"""The secondary: the copy that runs off the network and is made equal at each checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from colo_helper import __version__
from colo_helper.channel.wire import Frame, Kind
from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import STEP_TIMEOUT_S, Conversation
from colo_helper.replication.decisions import (
    PROTOCOL,
    Cause,
    SecondaryEnd,
    SessionEndedError,
    Step,
    exists_refusal,
    secondary_end,
    secondary_start,
)
from colo_helper.replication.guest import LOCAL_ERRORS, Guest
from colo_helper.replication.host import Host, RestoreStream
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.packing import PackingError, unpack
from colo_helper.replication.secondary_epochs import SecondaryEpochs

_PROGRESS_S = 1.0


@dataclass(slots=True)
class Secondary:
    """One VM's secondary. ``run`` does everything and returns the exit status."""

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    state_dir: Path
    saved: dict[str, Any] | None = None
    guest: Guest | None = None
    restore: RestoreStream | None = None
    step: Step = Step.COPYING
    stop_sent_s: float = 0.0

    def run(self) -> int:
        """Wait for sessions, and serve them, until somebody stops it or something fails."""
        domid = self.host.find(self.config.vm)
        start = secondary_start(self.config.vm, domid, self.saved, boot_id())
        if start.action == "hold" and domid is not None:
            self.guest = self.host.open_guest(domid)
            self.monitor.enter(start.phase, start.sentence, domid=domid)
            return self._hold()
        self.monitor.enter("waiting", start.sentence)
        while True:
            while not (self.inbox.sessions or self.inbox.stop_reason):
                self.inbox.wait_forever()
            if self.inbox.stop_reason:
                self.monitor.enter("stopped", self.inbox.stop_reason)
                return 0
            end = self._session()
            if end.exit_code is not None:
                return end.exit_code
            if end.copy == "run":
                return self._hold()

    # ------------------------------------------------------------------------------------------ one session

    def _session(self) -> SecondaryEnd:
        """Serve one session to its end and carry out what becomes of the copy."""
        self.step, self.stop_sent_s = Step.COPYING, 0.0
        session = self.inbox.sessions.pop()
        while self.inbox.sessions:
            self.inbox.sessions.pop().close()  # its client gave up and came again
        conversation = Conversation(session, self.inbox)
        try:
            self._receive_copy(conversation)
            self._replicate(conversation)
            raise AssertionError("a session ends by an exception")
        except SessionEndedError as error:
            cause, why = error.cause, str(error)
        except LOCAL_ERRORS as error:
            cause, why = Cause.LOCAL_ERROR, str(error)
        if cause is Cause.LOCAL_ERROR:
            conversation.tell(Kind.REFUSE, {"code": "failed", "error": why})
        stop_asked = bool(self.inbox.stop_reason)
        end = secondary_end(self.config.vm, self.config.peer_name, self.step, cause, why, stop_asked)
        problems = self._let_run() if end.copy == "run" else self._destroy()
        if cause is Cause.END and not problems:
            conversation.tell(Kind.ENDED, {})
        conversation.close()
        domid = self.guest.domain.domid if self.guest else None
        self.monitor.enter(end.phase, " ".join([end.sentence, *problems]), domid=domid)
        return end

    def _receive_copy(self, conversation: Conversation) -> None:
        vm, peer = self.config.vm, self.config.peer_name
        hello = conversation.expect(Kind.HELLO).head
        refusal = self._hello_refusal(hello)
        if refusal:
            conversation.tell(Kind.REFUSE, {"code": "refused", "error": refusal})
            raise SessionEndedError(Cause.PEER_REFUSED, refusal)
        conversation.send(
            Kind.HELLO, {"protocol": PROTOCOL, "version": __version__, "release": self.host.release}
        )
        self.monitor.enter("receiving", f"The first copy of {vm} is coming from {peer}.")
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
        domid = self.restore.finish()
        self.restore = None
        self.guest = guest = self.host.open_guest(domid)
        guest.nics.isolate()  # at once: the guest itself is on the network, on the primary's host
        guest.adopt_halt()
        self.step = Step.READY
        facts = {"domid": domid, "frames": guest.domain.nr_frames(), "pages": guest.domain.info().pages}
        conversation.send(Kind.COPIED, facts)

    def _hello_refusal(self, hello: dict[str, Any]) -> str:
        if hello.get("protocol") != PROTOCOL:
            return f"The primary speaks version {hello.get('protocol')} of the protocol, this host speaks {PROTOCOL}."
        domid = self.host.find(self.config.vm)
        return "" if domid is None else exists_refusal(self.config.vm, domid)

    def _replicate(self, conversation: Conversation) -> None:
        """Serve checkpoints; the primary sets the pace. Ends by an exception."""
        assert self.guest is not None
        conversation.expect(Kind.ARM, interrupted=self._pass_stop_on(conversation))
        self.guest.start_logging()
        epochs = SecondaryEpochs(
            self.host, self.monitor, conversation, self.guest, self._pass_stop_on(conversation), self._running
        )
        epochs.start()
        conversation.send(Kind.ARMED)
        try:
            epochs.run()
        finally:
            self.step = epochs.step

    def _running(self) -> None:
        assert self.guest is not None
        text = f"The copy of {self.config.vm} runs, off the network."
        self.monitor.enter("replicating", text, domid=self.guest.domain.domid)

    def _pass_stop_on(self, conversation: Conversation) -> Callable[[], None]:
        """Return what asks the primary for an orderly end, once, when somebody stops this side."""

        def interrupted() -> None:
            if self.inbox.stop_reason and not self.stop_sent_s:
                self.stop_sent_s = time.monotonic()
                conversation.send(Kind.STOP, {"reason": self.inbox.stop_reason})
            elif self.stop_sent_s and time.monotonic() - self.stop_sent_s > STEP_TIMEOUT_S:
                raise SessionEndedError(Cause.STOP, self.inbox.stop_reason)

        return interrupted

    # ------------------------------------------------------------------------------------------ ends

    def _let_run(self) -> list[str]:
        """Let the copy run, off the network, without logging; returns what went wrong."""
        return self.guest.release() if self.guest else []

    def _destroy(self) -> list[str]:
        """Make nothing of the copy stay; returns what went wrong."""
        problems = []
        try:
            if self.restore:
                self.restore.abandon()
            if self.guest:
                problems += self.guest.close()
                self.host.destroy(self.guest.domain.domid)
        except LOCAL_ERRORS as error:
            problems.append(str(error))
        self.restore, self.guest = None, None
        return problems

    def _hold(self) -> int:
        """The primary is gone: run on, and let an operator decide. Returns the exit status."""
        while True:
            if self.inbox.requests:
                self._answer_takeover(self.inbox.requests.popleft())
            elif self.inbox.stop_requests and self.monitor.state.phase != "active":
                problems = self._destroy()
                sentence = f"{self.inbox.stop_reason} The copy of {self.config.vm} was destroyed."
                self.monitor.enter("stopped", " ".join([sentence, *problems]), domid=None)
                return 0
            elif self.inbox.stop_reason:
                # The service manager ends this program, not the only copy there may be: it runs on, and the next
                # replicator goes on with it.
                return 0
            else:
                self.inbox.wait_forever()

    def _answer_takeover(self, request: Request) -> None:
        code, sentence = self._take_over()
        if code:
            self.monitor.event(code, sentence)
            request.refuse(code, sentence)
        else:
            request.succeed(self.monitor.snapshot())

    def _take_over(self) -> tuple[str, str]:
        """Go on alone, on the network; returns (code, sentence) of a failure, or two empty texts."""
        guest = self.guest
        assert guest is not None
        try:
            # Logging is off since the primary was lost, unless that failed, or an earlier replicator left it on.
            guest.logging = True
            problems = guest.release()
            if guest.domain.info().paused:
                problems.append(f"Domain {guest.domain.domid} is paused, and not by us.")
            if problems:
                return "takeover_failed", " ".join(problems)
            guest.nics.connect([replace(tap, bridge=self.config.bridge) for tap in guest.nics.taps()])
            guest.devices.announce()
        except LOCAL_ERRORS as error:
            return "takeover_failed", str(error)
        self.monitor.enter("active", f"An operator decided that this copy of {self.config.vm} takes over.")
        return "", ""


def _unpacked(frame: Frame) -> bytes:
    """Return the bytes of a piece of the first copy; raises SessionEndedError when they cannot be believed."""
    try:
        return unpack(frame)
    except PackingError as error:
        raise SessionEndedError(Cause.PEER_LOST, f"The first copy is damaged: {error}") from error
