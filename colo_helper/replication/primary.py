"""The primary: the guest that is in use, and the checkpoints that keep its copy ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colo_helper import __version__
from colo_helper.channel.wire import Kind
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import COPY_TIMEOUT_S, Conversation
from colo_helper.replication.decisions import (
    PROTOCOL,
    Cause,
    GuestFacts,
    PrimaryStep,
    SessionEndedError,
    guest_refusal,
    pair_refusal,
    primary_end,
)
from colo_helper.replication.first_copy import FirstCopy
from colo_helper.replication.guest import LOCAL_ERRORS, Guest
from colo_helper.replication.host import Host
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.primary_epochs import PrimaryEpochs

#: Makes the conversation with the secondary; raises SessionEndedError.
Connector = Callable[[Config, Monitor, Inbox], Conversation]


@dataclass(slots=True)
class Primary:
    """One VM's primary. ``run`` does everything and returns the exit status."""

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    connect: Connector
    guest: Guest | None = None
    conversation: Conversation | None = None
    step: PrimaryStep = PrimaryStep.NO_GUEST

    def run(self) -> int:
        """Protect the VM until somebody stops it or something fails; the guest runs on in every case."""
        try:
            self._protect()
            self._replicate()
            cause, why = Cause.STOP, self.inbox.stop_reason
        except SessionEndedError as error:
            cause, why = error.cause, str(error)
        except LOCAL_ERRORS as error:
            cause, why = Cause.LOCAL_ERROR, str(error)
        except BaseException as error:
            self._finish(Cause.LOCAL_ERROR, f"The replicator itself failed: {error!r}")
            raise
        return self._finish(cause, why)

    # ------------------------------------------------------------------------------------------ first copy

    def _protect(self) -> None:
        """Everything until the peer has a copy, and the guest's changes since are logged: checks, connection, first copy."""
        vm, peer = self.config.vm, self.config.peer_name
        guest = self._open_guest()
        self.conversation = conversation = self.connect(self.config, self.monitor, self.inbox)
        conversation.send(Kind.HELLO, self._hello(guest))
        theirs = conversation.expect(Kind.HELLO).head
        refusal = pair_refusal(self.host.release, str(theirs.get("release")))
        if refusal:
            raise SessionEndedError(Cause.LOCAL_ERROR, refusal)
        self._stop_if_asked()
        self.monitor.enter("copying", f"{vm} runs on while its first copy goes to {peer}.")
        self._copy(conversation, guest)
        conversation.send(Kind.ARM)
        conversation.expect(Kind.ARMED, interrupted=self._stop_if_asked)
        # The peer's toolstack has put the copy's taps onto the bridge there before they could be taken off, and its
        # device model has told the network that the guest is there now.
        guest.devices.announce()

    def _open_guest(self) -> Guest:
        vm = self.config.vm
        domid = self.host.find(vm)
        if domid is None:
            raise SessionEndedError(Cause.LOCAL_ERROR, f"There is no domain named {vm} on this host.")
        self.guest = guest = self.host.open_guest(domid)
        self.step = PrimaryStep.UNPROTECTED
        info = guest.domain.info()
        facts = GuestFacts(
            vm=vm,
            hvm=info.hvm,
            shutdown=info.shutdown,
            pv_drivers=guest.domain.pv_drivers_active(),
            writable_disks=tuple(guest.devices.writable_disks()),
        )
        refusal = guest_refusal(facts)
        if refusal:
            raise SessionEndedError(Cause.LOCAL_ERROR, refusal)
        self.monitor.enter("connecting", f"Connecting to {self.config.peer_name}.", domid=domid)
        return guest

    def _hello(self, guest: Guest) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "vm": self.config.vm,
            "release": self.host.release,
            "frames": guest.domain.nr_frames(),
            "pages": guest.domain.info().pages,
            "peer_timeout_ms": self.config.peer_timeout_ms,
        }

    def _copy(self, conversation: Conversation, guest: Guest) -> None:
        started = time.monotonic()
        copy = FirstCopy(
            self.config.vm,
            self.host,
            self.monitor,
            conversation,
            guest,
            self.config.copy_downtime_ms,
            self._stop_if_asked,
        )
        copy.run()
        sent_s = time.monotonic() - started
        conversation.send(Kind.COPY_END, {"bytes": copy.stream_bytes})
        self.monitor.progress("restore", copy.stream_bytes, sent_s)
        copied = conversation.expect(
            Kind.COPIED, timeout_s=COPY_TIMEOUT_S, interrupted=self._stop_if_asked
        ).head
        self.monitor.event(
            "copied",
            f"The first copy took {sent_s:.1f} s, and {time.monotonic() - started - sent_s:.1f} s more until it stood on "
            f"{self.config.peer_name}; {self.config.vm} stood still for {copy.pause_ms:.0f} ms of it.",
            bytes=copy.stream_bytes,
            sent_bytes=copy.sent_bytes,
            elapsed_s=round(time.monotonic() - started, 1),
            pause_ms=copy.pause_ms,
            peer=copied,
        )

    def _stop_if_asked(self) -> None:
        self.inbox.wait(0)
        if self.inbox.stop_reason:
            raise SessionEndedError(Cause.STOP, self.inbox.stop_reason)

    # ------------------------------------------------------------------------------------------ checkpoints

    def _replicate(self) -> None:
        """Make checkpoints by the clock and by request until somebody stops it."""
        assert self.conversation is not None and self.guest is not None  # noqa: PT018
        PrimaryEpochs(
            self.config, self.host, self.monitor, self.inbox, self.conversation, self.guest, self._protected
        ).run()

    def _protected(self) -> None:
        self.step = PrimaryStep.PROTECTED
        self.monitor.enter(
            "replicating", f"Both copies of {self.config.vm} run; the other is on {self.config.peer_name}."
        )

    # ------------------------------------------------------------------------------------------ the end

    def _finish(self, cause: Cause, why: str) -> int:
        """Let the guest run at once, then tell the peer, the file and whoever waits."""
        problems = self.guest.release() if self.guest else []
        end = primary_end(self.config.vm, self.config.peer_name, self.step, cause, why)
        sentence = " ".join([end.sentence, *problems])
        if self.conversation:
            self._last_words(self.conversation, end.tell, why)
            self.conversation.close()
        if self.guest:
            problems = self.guest.close()
            if problems:
                self.monitor.event("close", " ".join(problems))
        self.monitor.enter(end.phase, sentence)
        return end.exit_code

    def _last_words(self, conversation: Conversation, tell: str, why: str) -> None:
        problem = ""
        if tell == "end":
            problem = conversation.tell(Kind.END, {"reason": why})
            if not problem:
                try:
                    conversation.expect(Kind.ENDED)
                except SessionEndedError as error:
                    problem = str(error)
        elif tell == "abort":
            problem = conversation.tell(Kind.ABORT, {"reason": why})
        if problem:
            self.monitor.event(
                "peer_not_told", f"The secondary may not know that the protection ended: {problem}"
            )
