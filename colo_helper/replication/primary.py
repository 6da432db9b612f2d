"""The primary: the guest that is in use, and the checkpoints that keep its copy ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colo_helper import __version__
from colo_helper.channel.wire import Frame, Kind
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import BitmapHead, EncodingError, decode_bitmap
from colo_helper.monitor.monitor import Monitor, now_utc
from colo_helper.monitor.state import Checkpoint
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import COPY_TIMEOUT_S, Conversation, number
from colo_helper.replication.decisions import (
    PROTOCOL,
    Cause,
    GuestFacts,
    Idle,
    PrimaryStep,
    SessionEndedError,
    guest_refusal,
    idle_step,
    pair_refusal,
    primary_end,
)
from colo_helper.replication.guest import LOCAL_ERRORS, Guest
from colo_helper.replication.host import Host, SaveStream
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.pages import chosen, outgoing, pack
from colo_helper.replication.stopwatch import Stopwatch
from colo_helper.replication.verify import compare

#: Makes the conversation with the secondary; raises SessionEndedError.
Connector = Callable[[Config, Inbox], Conversation]

_PROGRESS_S = 1.0


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
    peer_frames: int = 0
    epoch: int = 0

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
        """Everything until both copies run: checks, connection, first copy, logging."""
        vm, peer = self.config.vm, self.config.peer_name
        guest = self._open_guest()
        self.conversation = conversation = self.connect(self.config, self.inbox)
        conversation.send(Kind.HELLO, self._hello(guest))
        theirs = conversation.expect(Kind.HELLO).head
        refusal = pair_refusal(self.host.release, str(theirs.get("release")))
        if refusal:
            raise SessionEndedError(Cause.LOCAL_ERROR, refusal)
        self._stop_if_asked()
        self.monitor.enter("copying", f"{vm} stands still while its first copy goes to {peer}.")
        # While the guest is saved nothing may write its memory unseen: xl lets the devices run for a moment before
        # we can stop them, and a packet from the network would then land in memory that was sent already.
        guest.isolate()
        try:
            self._copy(conversation, guest)
        finally:
            guest.rejoin()
        conversation.send(Kind.ARM)
        conversation.expect(Kind.ARMED)
        guest.start_logging()
        conversation.send(Kind.RUN, {"epoch": 0})
        guest.resume()
        self.step = PrimaryStep.PROTECTED
        self.monitor.enter("replicating", f"Both copies of {vm} run; the other is on {peer}.")

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
        started = reported = time.monotonic()
        sent = 0
        stream = self.host.save(self.config.vm)
        try:
            while data := stream.read():
                packed, payload = pack(data)
                sent += conversation.send(Kind.CHUNK, {"packed": packed, "bytes": len(data)}, (payload,))
                conversation.check()
                self._stop_if_asked()
                if time.monotonic() - reported >= _PROGRESS_S:
                    reported = time.monotonic()
                    self.monitor.progress("copy", sent, reported - started)
        except BaseException:
            self._give_copy_up(stream, guest)
            raise
        self._take_over_pause(guest)
        conversation.send(Kind.COPY_END, {"bytes": sent})
        self.monitor.progress("restore", sent, time.monotonic() - started)
        copied = conversation.expect(Kind.COPIED, timeout_s=COPY_TIMEOUT_S).head
        self._stop_if_asked()
        elapsed = time.monotonic() - started
        self.peer_frames = number(copied, "frames")
        self.monitor.event(
            "copied",
            f"The first copy took {elapsed:.1f} s.",
            bytes=sent,
            elapsed_s=round(elapsed, 1),
            peer=copied,
        )

    def _give_copy_up(self, stream: SaveStream, guest: Guest) -> None:
        """Let xl end the save it has begun, so that the guest is in a state we know."""
        try:
            stream.abandon()
            self._take_over_pause(guest)
        except LOCAL_ERRORS as error:
            self.monitor.event("save_failed", str(error))

    @staticmethod
    def _take_over_pause(guest: Guest) -> None:
        """After ``xl save -p`` the guest stands still by a pause of xl's: from now on it is ours to undo."""
        if guest.domain.info().paused:
            guest.adopt_halt()
        else:
            guest.halt()

    def _stop_if_asked(self) -> None:
        self.inbox.wait(0)
        if self.inbox.stop_reason:
            raise SessionEndedError(Cause.STOP, self.inbox.stop_reason)

    # ------------------------------------------------------------------------------------------ checkpoints

    def _replicate(self) -> None:
        """Make checkpoints by the clock and by request until somebody stops it."""
        assert self.conversation is not None
        interval_s = self.config.interval_ms / 1000
        due = time.monotonic() + interval_s
        while True:
            self.inbox.wait(0)
            requested = self.inbox.requests[0].verb if self.inbox.requests else ""
            step = idle_step(Idle(time.monotonic(), due, self.inbox.stop_reason, requested))
            if step.action == "stop":
                return
            if step.action == "wait":
                self.conversation.idle(step.wait_s)
                continue
            self._checkpoint()
            due = time.monotonic() + interval_s

    def _checkpoint(self) -> None:
        """Make one checkpoint and answer the requests for it. Requests that come while it runs get the next one."""
        requests = list(self.inbox.requests)
        verifying = any(request.verb == "verify" for request in requests)
        record, verified = self._one_epoch(verifying)
        self.monitor.checkpoint(record)
        if verified:
            self.monitor.verification(verified)
            self.monitor.event("verified", _verdict(verified))
        for request in requests:
            self.inbox.requests.popleft()
            request.succeed(verified if request.verb == "verify" and verified else record.to_json())

    def _one_epoch(self, verifying: bool) -> tuple[Checkpoint, dict[str, Any] | None]:
        conversation, guest = self.conversation, self.guest
        assert conversation is not None and guest is not None  # noqa: PT018
        epoch = self.epoch + 1
        watch = Stopwatch()
        sent_bytes = conversation.send(Kind.SUSPEND, {"epoch": epoch})
        guest.halt()
        dirty = guest.domain.clean_dirty(final=True)
        devices = guest.devices.save_state()
        context = guest.domain.get_context()
        watch.lap("suspend")
        a_pages = dirty.count
        theirs = self._peer_dirty(conversation.expect(Kind.DIRTY), epoch, dirty.frames)
        watch.lap("wait_b")
        dirty.unite(theirs)
        gfns = chosen(guest.domain, dirty, guest.domain.special_frames())
        batches = 0
        for head, parts in outgoing(guest.domain, gfns):
            sent_bytes += conversation.send(Kind.PAGES, head, parts)
            batches += 1
        counts = {"a_pages": a_pages, "b_pages": theirs.count, "d_pages": dirty.count}
        commit = {"epoch": epoch, "batches": batches, "pages": len(gfns), **counts}
        sent_bytes += conversation.send(Kind.COMMIT, commit, (context, devices))
        watch.lap("send")
        applied = conversation.expect(Kind.APPLIED).head
        if applied.get("epoch") != epoch:
            raise SessionEndedError(
                Cause.PEER_LOST, f"The secondary applied epoch {applied.get('epoch')}, not {epoch}."
            )
        self.peer_frames = number(applied, "frames")
        watch.lap("apply")
        verified = None
        if verifying:
            verified = compare(guest.domain, conversation, self.peer_frames).to_json(epoch)
            watch.lap("verify")
        self.epoch = epoch
        conversation.send(Kind.RUN, {"epoch": epoch})
        guest.resume()
        watch.lap("resume")
        record = Checkpoint(
            epoch=epoch,
            **counts,
            sent_pages=len(gfns),
            bytes=sent_bytes,
            pause_ms=watch.total_ms,
            phases_ms=watch.laps_ms,
            completed=now_utc(),
        )
        return record, verified

    @staticmethod
    def _peer_dirty(frame: Frame, epoch: int, frame_limit: int) -> DirtyBitmap:
        """Return B, after every check; a bitmap that cannot be believed ends the session."""
        try:
            if frame.head.get("epoch") != epoch or len(frame.parts) != 1:
                raise EncodingError(f"The dirty bitmap is not of epoch {epoch}.")
            return decode_bitmap(BitmapHead.parse(frame.head.get("bitmap")), frame.parts[0], frame_limit)
        except EncodingError as error:
            raise SessionEndedError(Cause.PEER_LOST, str(error)) from error

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


def _verdict(verified: dict[str, Any]) -> str:
    known = len(verified["different"]) - len(verified["unexplained"])
    return (
        f"Compared {verified['pages_compared']} pages of both copies at epoch {verified['epoch']}: {known} differ for a "
        f"known reason, {len(verified['unexplained'])} without one."
    )
