"""The primary: the guest that is in use, and the checkpoints that keep its copy ready."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from colo_helper import __version__
from colo_helper.channel.wire import Kind
from colo_helper.hypervisor.interface import HypervisorError
from colo_helper.hypervisor.io_requests import io_share
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.monitor.state import kept_state
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import COPY_TIMEOUT_S, Conversation, number
from colo_helper.replication.decisions.primary import (
    GuestFacts,
    PrimaryEnd,
    PrimaryStart,
    PrimaryStep,
    awaits_guest,
    beginning,
    guest_ended,
    guest_refusal,
    maybe_succeeded,
    not_yet,
    primary_end,
    primary_start,
    retry_wait,
    still_booting,
)
from colo_helper.replication.decisions.session import PROTOCOL, Cause, SessionEndedError, pair_refusal
from colo_helper.replication.first_copy import FirstCopy
from colo_helper.replication.guest import LOCAL_ERRORS, Guest, attempt
from colo_helper.replication.host import Host
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.ownership import Ownership
from colo_helper.replication.primary_epochs import PrimaryEpochs
from colo_helper.replication.primary_packets import PrimaryPackets
from colo_helper.replication.verify import differing_frames
from colo_helper.traffic.moves import pack_moves

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
    guest: Guest | None = None
    conversation: Conversation | None = None
    step: PrimaryStep = PrimaryStep.NO_GUEST
    #: Whether the guest has ended, and another one of its name is waited for.
    awaiting: bool = False
    packets: PrimaryPackets = field(init=False)
    #: Whether a domain was taken off the network until it is known that it is the VM.
    silenced: bool = False

    def __post_init__(self) -> None:
        permits = self.ownership.right.permits
        self.packets = PrimaryPackets(self.config, self.monitor, self.inbox, permits)

    def run(self) -> int:
        """Protect the VM until somebody stops it or something fails for good; the guest runs on in every case.

        A secondary that was lost is looked for again and again.
        """
        before = primary_start(self.saved, self.host.find(self.config.vm), boot_id())
        self.monitor.restore(ended_generation=before.ended, **kept_state(self.saved))
        self.awaiting = awaits_guest(self.saved, before.ended, boot_id())
        wait_s = 0.0
        while True:
            checkpoints = self.monitor.state.totals.checkpoints
            try:
                self._stop_if_asked()
                if ended := self._how_ended():
                    raise ended
                guest = self.guest or self._open_guest()
                cause, why = self._replicate(guest, self._protect(guest))
            except SessionEndedError as error:
                cause, why = error.cause, str(error)
            except LOCAL_ERRORS as error:
                cause, why = Cause.LOCAL_ERROR, str(error)
            except BaseException as error:
                self._finish(Cause.LOCAL_ERROR, f"The replicator itself failed: {error!r}", last=True)
                raise
            if cause not in (Cause.SWITCHED, Cause.STOP) and (ended := self._how_ended()):
                cause, why = ended.cause, str(ended)
            exit_code = self._finish(cause, why)
            if exit_code is not None:
                return exit_code
            wait_s = retry_wait(wait_s, cause, self.monitor.state.totals.checkpoints - checkpoints)
            self._rest(wait_s)

    def _how_ended(self) -> SessionEndedError | None:
        """Whether the guest is the reason, whatever failed first; None while it has not ended."""
        if not self.guest:
            return None
        try:
            return guest_ended(self.config.vm, self.guest.domain.info())
        except HypervisorError as error:
            return guest_ended(self.config.vm, None) if error.errno_name == "ESRCH" else None

    def _rest(self, seconds: float) -> None:
        """Wait before the next attempt; a stop ends that, and what operators want of who may run."""
        deadline = time.monotonic() + seconds
        while not self.inbox.stop_reason and self.inbox.wait(deadline - time.monotonic()):
            if self.inbox.wishes:
                return
            if self.inbox.trouble:
                self.packets.let_flow()

    # ------------------------------------------------------------------------------------------ a copy to build on

    def _protect(self, guest: Guest) -> DirtyBitmap:
        """Everything until the peer has a copy, and the guest's changes since are logged.

        Returns the frames that may differ beside those. When this fails the guest runs as before.
        """
        self.conversation = conversation = self.connect(self.config, self.monitor, self.inbox)
        conversation.send(Kind.HELLO, self._hello(guest))
        theirs = conversation.expect(Kind.HELLO).head
        refusal = pair_refusal(self.host.release, str(theirs.get("release")))
        if refusal:
            raise SessionEndedError(Cause.LOCAL_ERROR, refusal)
        vm, peer = self.config.vm, self.config.peer_name
        begin = beginning(vm, peer, self.monitor.state.generation, str(theirs.get("holds", "")))
        if begin.action == "refuse":
            raise SessionEndedError(Cause.PEER_REFUSED, begin.sentence)
        self._stop_if_asked()
        if begin.action == "copy":
            self.monitor.enter(
                "copying", begin.sentence, generation=secrets.token_hex(8), ended_generation=""
            )
            conversation.send(Kind.COPY, {"generation": self.monitor.state.generation})
            self._copy(conversation, guest)
            differing = DirtyBitmap.empty(guest.domain.nr_frames())
        else:
            self.monitor.enter("resyncing", begin.sentence)
            conversation.send(Kind.RESYNC)
            differing = self._compare(conversation, guest)
        conversation.send(
            Kind.ARM,
            {"epoch": self.monitor.state.epoch, "packets": self.config.comparing},
            (pack_moves(self.packets.moves(guest)),),
        )
        conversation.expect(Kind.ARMED, interrupted=self._stop_if_asked)
        if begin.action == "copy":
            # The peer's toolstack has put the copy's taps onto the bridge there before they could be taken off, and its
            # device model has told the network that the guest is there now.
            guest.devices.announce()
        return differing

    def _compare(self, conversation: Conversation, guest: Guest) -> DirtyBitmap:
        """Find what differs while the guest runs: its log is on before the comparison, so what it writes is not missed."""
        started = time.monotonic()
        guest.start_logging()
        frames = number(conversation.expect(Kind.COPIED, interrupted=self._stop_if_asked).head, "frames")
        compared, gfns = differing_frames(guest.domain, conversation, frames, self._stop_if_asked)
        self.monitor.event(
            "compared",
            f"{len(gfns)} of {compared} pages differ; comparing them took {time.monotonic() - started:.1f} s.",
        )
        return DirtyBitmap.from_gfns(gfns, max(frames, guest.domain.nr_frames()))

    def _open_guest(self) -> Guest:
        """Find the guest and see that it can be protected. One that has ended is waited for."""
        vm = self.config.vm
        guest: Guest | None = None
        try:
            domid = self.host.find(vm)
            if domid is None:
                cause = Cause.GUEST_ENDED if self.awaiting else Cause.LOCAL_ERROR
                raise SessionEndedError(cause, f"There is no domain named {vm} on this host")
            guest = self.host.open_guest(domid)
            info = guest.domain.info()
            if self.awaiting and (pause := not_yet(vm, info)):
                raise SessionEndedError(Cause.GUEST_ENDED, pause)
            refusal = guest_refusal(
                GuestFacts(
                    vm=vm,
                    hvm=info.hvm,
                    shutdown=info.shutdown,
                    pv_drivers=guest.domain.pv_drivers_active(),
                    writable_disks=tuple(guest.devices.writable_disks()),
                )
            )
            if refusal:
                raise SessionEndedError(Cause.LOCAL_ERROR, refusal)
        except BaseException as error:
            if guest:
                guest.close()
            if self.awaiting and isinstance(error, LOCAL_ERRORS):
                # The old domain is being taken apart, or the new one is being built.
                raise SessionEndedError(Cause.GUEST_ENDED, str(error)) from error
            raise
        self.guest = guest
        before = self._begin(guest, domid)
        self.step = PrimaryStep.PROTECTED if self.awaiting else PrimaryStep.UNPROTECTED
        self.awaiting = False
        if before.generation:
            self.step = PrimaryStep.PROTECTED
        self.packets.go_on_moving(guest)
        if not before.crashed:
            self._wait_for_firmware(guest)
        self.monitor.enter("connecting", f"Connecting to {self.config.peer_name}.", domid=domid)
        return guest

    def _wait_for_firmware(self, guest: Guest) -> None:
        """Leave a guest alone that is being booted, for a while; each look takes a tenth of a second."""
        began = time.monotonic()
        said = False
        while True:
            info = guest.domain.info()
            if info.shutdown or info.paused:
                return
            pause = still_booting(self.config.vm, io_share(guest.domain), time.monotonic() - began)
            if not pause:
                return
            if not said:
                self.monitor.event("booting", pause)
            said = True
            self._stop_if_asked()

    def _begin(self, guest: Guest, domid: int) -> PrimaryStart:
        """Go on where an earlier replicator ended, once it is known that the guest here is the VM."""
        before = primary_start(self.saved, domid, boot_id())
        if before.generation:
            self.monitor.restore(generation=before.generation, epoch=before.epoch, domid=domid)
        doubtful = self.ownership.right.automatic and (self.silenced or maybe_succeeded(self.saved))
        if not doubtful:
            self._recover(guest, before)

        def waiting() -> list[str]:
            if not doubtful:
                self._stop_if_asked()
                return []
            problems = attempt([lambda: self._silence(guest)])
            self.ownership.refuse()
            return problems

        self.ownership.begin(waiting)
        if doubtful:
            self._join_network(guest)
            self.silenced = False
            self._recover(guest, before)
        return before

    def _join_network(self, guest: Guest) -> None:
        off = [tap for tap in guest.nics.taps() if not tap.bridge]
        guest.nics.connect([replace(tap, bridge=self.config.bridge) for tap in off])

    def _recover(self, guest: Guest, before: PrimaryStart) -> None:
        """Undo what an earlier replicator of this guest had under way."""
        if before.crashed:
            # A switch-over, from here or to here, may have ended between two steps.
            problems = [*guest.recover(), *attempt([lambda: self._join_network(guest)])]
            self.monitor.event("recovered", " ".join([before.sentence, *problems]))

    def _silence(self, guest: Guest) -> None:
        guest.nics.isolate()
        self.silenced = True

    def _hello(self, guest: Guest) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "vm": self.config.vm,
            "release": self.host.release,
            "frames": guest.domain.nr_frames(),
            "pages": guest.domain.info().pages,
            "peer_timeout_ms": self.config.peer_timeout_ms,
            "arbiter": self.ownership.right.automatic,
            "generation": self.monitor.state.generation,
            "ended": self.monitor.state.ended_generation,
            "before": str((self.saved or {}).get("generation", "")),
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
        self.ownership.obey()
        # What moves packets has failed, and the guest must not fall silent, unless somebody else may come to own the VM.
        if self.inbox.trouble and not self.ownership.right.shared:
            self.packets.let_flow()
        if self.inbox.stop_reason:
            raise SessionEndedError(Cause.STOP, self.inbox.stop_reason)

    # ------------------------------------------------------------------------------------------ checkpoints

    def _replicate(self, guest: Guest, differing: DirtyBitmap) -> tuple[Cause, str]:
        """Make checkpoints by the clock and by request until somebody stops it, or until the roles are swapped."""
        assert self.conversation is not None
        packets = self.packets.take_hold(self.conversation, guest)
        epochs = PrimaryEpochs(
            self.config,
            self.host,
            self.monitor,
            self.inbox,
            self.conversation,
            guest,
            packets,
            self._protected,
            self._handed_over,
            self.ownership.obey,
            differing,
            self.monitor.state.epoch,
        )
        try:
            epochs.run()
        finally:
            if epochs.handed_over:
                self.step = PrimaryStep.HANDED_OVER
        if epochs.switched:
            why = f"{self.config.vm} runs on {self.config.peer_name} since epoch {epochs.epoch}"
            if not epochs.leaves:
                return Cause.SWITCHED, why
            # Whoever shuts the host down must not save it, to be restored at the next boot.
            self._discard(guest)
            return Cause.GIVEN_UP, f"{why}, because this host is being shut down"
        return Cause.STOP, self.inbox.stop_reason

    def _handed_over(self) -> None:
        """From here on this side is the secondary, whatever happens."""
        self.ownership.hand_over()
        text = f"{self.config.vm} is being handed over to {self.config.peer_name}; it stands still here."
        self.monitor.enter("handed_over", text, role="secondary")

    def _protected(self) -> None:
        """The secondary has a whole copy."""
        self.step = PrimaryStep.PROTECTED
        self.ownership.share()
        self.monitor.enter(
            "replicating", f"Both copies of {self.config.vm} run; the other is on {self.config.peer_name}."
        )

    def _settled(self, cause: Cause, why: str) -> tuple[Cause, str]:
        """Return why the session ends once it is known who has the VM."""

        def unanswered(still: bool) -> list[str]:
            problems = self._keep_quiet(still)
            # The secondary, which hears us, would wait for a checkpoint that never comes; it may have to go on itself.
            # But not with a guest that has ended.
            if cause not in (Cause.GUEST_ENDED, Cause.GUEST_DIED):
                self._hang_up()
            return problems

        if self._without_devices(cause) and self._give_up():
            return Cause.GIVEN_UP, f"The device model of {self.config.vm} has ended ({why.rstrip('.')})"
        try:
            self.ownership.settle(why, unanswered)
        except SessionEndedError as error:
            return error.cause, str(error)
        if cause is Cause.STOP and not self.inbox.stop_reason:
            return Cause.PEER_LOST, "The stop that was asked for was refused meanwhile"
        return cause, why

    def _without_devices(self, cause: Cause) -> bool:
        """Whether the guest can do nothing any more, and its copy may be the VM."""
        return (
            self.guest is not None
            and self.step is PrimaryStep.PROTECTED
            and cause is Cause.LOCAL_ERROR
            and self.ownership.right.shared
            and self.guest.devices.ended()
        )

    def _give_up(self) -> bool:
        """Have it written down that the copy is the VM, which nobody hears of but by the channels' end; whether that is done.

        The guest here has said its last: its packets went through its device model.
        """
        assert self.guest is not None
        try:
            self.ownership.hand_over()
        except SessionEndedError as error:
            self.monitor.event(
                "give_up", f"Its copy on {self.config.peer_name} cannot be made the VM: {error}"
            )
            return False
        self.monitor.restore(role="secondary")
        self._discard(self.guest)
        return True

    def _discard(self, guest: Guest) -> None:
        """The copy is the VM; nothing of the guest here stays."""
        self.guest = None
        for problem in [*attempt([lambda: self.host.destroy(guest.domain.domid)]), *guest.close()]:
            self.monitor.event("give_up", problem)

    def _hang_up(self) -> None:
        if self.conversation:
            self.conversation.close()
            self.conversation = None

    def _stand_aside(self) -> None:
        """Another host has the VM: nothing of this copy reaches the network any more, and it never runs again."""
        self.packets.side.discard()
        self.packets.side.halting()
        self.monitor.restore(role="secondary")
        problems = self.guest.put_aside() if self.guest else self._put_strangers_aside()
        self.packets.off_network = not problems
        for problem in problems:
            self.monitor.event("stand_aside", problem)

    def _put_strangers_aside(self) -> list[str]:
        """A domain of that name that was not opened yet must not run either; returns what went wrong."""
        try:
            domid = self.host.find(self.config.vm)
            if domid is None:
                return []
            with closing(self.host.open_guest(domid)) as another:
                return another.put_aside()
        except LOCAL_ERRORS as error:
            return [str(error)]

    def _keep_quiet(self, still: bool) -> list[str]:
        """Nothing of the VM reaches the network but by our hands, and no vCPU runs when ``still``; returns what went wrong.

        A domain that the toolstack has made meanwhile has no filters of ours: it is taken off the network.
        """
        try:
            domid = self.host.find(self.config.vm)
            guest = self.guest
            if domid is not None and not (guest and guest.domain.domid == domid):
                with closing(self.host.open_guest(domid)) as another:
                    self._silence(another)
            elif guest and domid is not None and still:
                self.packets.side.halting()
                guest.hold_still()
        except LOCAL_ERRORS as error:
            return [str(error)]
        return []

    # ------------------------------------------------------------------------------------------ the end

    def _finish(self, cause: Cause, why: str, *, last: bool = False) -> int | None:
        """Let the guest run at once, then tell the peer, the file and whoever waits; None when it is to be tried again.

        ``last``: nobody tries again.
        """
        lives = cause is not Cause.STOP or self._how_ended() is None
        cause, why = self._settled(cause, why)
        if cause is Cause.LEFT:
            self.monitor.event("left", f"{why} {self.config.vm} is left as it is.")
            return 0
        if cause is Cause.SUCCEEDED:
            self._stand_aside()
        if cause is Cause.GIVEN_UP:
            self.packets.side.discard()
        end = primary_end(self.config.vm, self.config.peer_name, self.step, cause, why, lives=lives)
        if last and end.exit_code is None:
            end = replace(
                end, phase="failed", exit_code=1, sentence=f"{why}; {self.config.vm} runs on unprotected."
            )
        problems = self._let_go(cause, end, why)
        sentence = " ".join([end.sentence, *problems])
        if end.exit_code is None:
            if end.guest == "gone":
                self._forget_guest()
            if (self.monitor.state.phase, self.monitor.state.reason) != (end.phase, sentence):
                self.monitor.enter(end.phase, sentence)
            self._answer_waiting(sentence)
            return None
        self._leave(end.phase, sentence)
        return end.exit_code

    def _leave(self, phase: str, sentence: str) -> None:
        for problem in self.guest.close() if self.guest else []:
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
        problems = self.guest.release() if self.guest and end.guest != "hold" else []
        if self.conversation:
            self._last_words(self.conversation, end.tell, why)
            self._hang_up()
        # After an orderly end the copy is gone, and nobody can go on from before what clients are shown now.
        self.packets.side.release()
        if self.guest and end.guest != "gone":
            stays, runs = end.exit_code is None, end.guest == "run"
            return problems + self.packets.part(self.guest, stays=stays, runs=runs)
        unclosed = self.packets.let_flow()
        return [] if end.guest == "gone" else problems + unclosed

    def _forget_guest(self) -> None:
        """The guest has ended; another one may come under its name."""
        state = self.monitor.state
        ended = state.generation or state.ended_generation
        if self.guest:
            self.guest.close()
            self.guest.forget_marks()
        self.guest, self.step, self.awaiting = None, PrimaryStep.NO_GUEST, True
        self.monitor.restore(generation="", ended_generation=ended, domid=None)

    def _answer_waiting(self, sentence: str) -> None:
        """Whoever waits for a checkpoint learns that there is none."""
        while self.inbox.requests:
            self.inbox.requests.popleft().refuse("not_replicating", sentence)

    def _last_words(self, conversation: Conversation, tell: str, why: str) -> None:
        problem = ""
        if tell == "end":
            problem = conversation.tell(Kind.END, {"reason": why})
            if not problem:
                try:
                    conversation.expect(Kind.ENDED)
                except SessionEndedError as error:
                    problem = str(error)
        elif tell:  # the peer may be in the middle of something and hears it only when the session is over
            problem = conversation.tell(Kind.ABORT if tell == "abort" else Kind.RENEW, {"reason": why})
        if problem:
            self.monitor.event(
                "peer_not_told", f"The secondary may not know that the protection ended: {problem}"
            )
