"""One session of the primary with its secondary: a copy is made or made equal there, and checkpoints keep it so."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from colo_helper import __version__
from colo_helper.channel.wire import Kind
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import COPY_TIMEOUT_S, Conversation, number
from colo_helper.replication.decisions.primary import PrimaryStep, beginning
from colo_helper.replication.decisions.session import PROTOCOL, Cause, SessionEndedError, pair_refusal
from colo_helper.replication.first_copy import FirstCopy
from colo_helper.replication.guest import Guest
from colo_helper.replication.host import Host
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.ownership import Ownership
from colo_helper.replication.primary_epochs import PrimaryEpochs
from colo_helper.replication.primary_guest import PrimaryGuest
from colo_helper.replication.primary_packets import PrimaryPackets
from colo_helper.replication.verify import differing_frames
from colo_helper.traffic.moves import pack_moves


@dataclass(slots=True)
class PrimarySession:
    """``run`` does everything. ``check`` is called while something is waited for; what it raises ends the session.

    ``before`` is the generation that an earlier replicator has written down.
    """

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    ownership: Ownership
    packets: PrimaryPackets
    here: PrimaryGuest
    guest: Guest
    conversation: Conversation
    check: Callable[[], None]
    before: str
    #: Whether both hosts have the same release of Xen.
    alike: bool = field(init=False, default=True)

    def run(self) -> tuple[Cause, str]:
        """Protect the guest until somebody stops it, or until the roles are swapped; raises SessionEndedError otherwise."""
        return self._replicate(self._protect())

    # ------------------------------------------------------------------------------------------ a copy to build on

    def _protect(self) -> DirtyBitmap:
        """Everything until the peer has a copy, and the guest's changes since are logged.

        Returns the frames that may differ beside those. When this fails the guest runs as before.
        """
        conversation, guest = self.conversation, self.guest
        conversation.send(Kind.HELLO, self._hello())
        theirs = conversation.expect(Kind.HELLO).head
        conversation.peer_keeps = theirs.get("keeps") is True
        refusal = pair_refusal(self.host.release, str(theirs.get("release")))
        if refusal:
            raise SessionEndedError(Cause.LOCAL_ERROR, refusal)
        self.alike = theirs.get("release") == self.host.release
        vm, peer = self.config.vm, self.config.peer_name
        begin = beginning(vm, peer, self.monitor.state.generation, str(theirs.get("holds", "")))
        if begin.action == "refuse":
            raise SessionEndedError(Cause.PEER_REFUSED, begin.sentence)
        self.check()
        if begin.action == "copy":
            self.monitor.enter(
                "copying", begin.sentence, generation=secrets.token_hex(8), ended_generation=""
            )
            conversation.send(Kind.COPY, {"generation": self.monitor.state.generation})
            self._copy()
            differing = DirtyBitmap.empty(guest.domain.nr_frames())
        else:
            self.monitor.enter("resyncing", begin.sentence)
            conversation.send(Kind.RESYNC)
            differing = self._compare()
        conversation.send(
            Kind.ARM,
            {"epoch": self.monitor.state.epoch, "packets": self.config.comparing},
            (pack_moves(self.packets.moves(guest)),),
        )
        conversation.expect(Kind.ARMED, interrupted=self.check)
        if begin.action == "copy":
            # The peer's toolstack has put the copy's taps onto the bridge there before they could be taken off, and its
            # device model has told the network that the guest is there now.
            guest.devices.announce()
        return differing

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "vm": self.config.vm,
            "release": self.host.release,
            "frames": self.guest.domain.nr_frames(),
            "pages": self.guest.domain.info().pages,
            "peer_timeout_ms": self.config.peer_timeout_ms,
            "arbiter": self.ownership.right.automatic,
            "generation": self.monitor.state.generation,
            "ended": self.monitor.state.ended_generation,
            "before": self.before,
        }

    def _copy(self) -> None:
        started = time.monotonic()
        copy = FirstCopy(
            self.config.vm,
            self.host,
            self.monitor,
            self.conversation,
            self.guest,
            self.config.copy_downtime_ms,
            self.check,
        )
        copy.run()
        sent_s = time.monotonic() - started
        self.conversation.send(Kind.COPY_END, {"bytes": copy.stream_bytes})
        self.monitor.progress("restore", copy.stream_bytes, sent_s)
        copied = self.conversation.expect(Kind.COPIED, timeout_s=COPY_TIMEOUT_S, interrupted=self.check).head
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

    def _compare(self) -> DirtyBitmap:
        """Find what differs while the guest runs: its log is on before the comparison, so what it writes is not missed."""
        started = time.monotonic()
        domain = self.guest.domain
        self.guest.start_logging()
        frames = number(self.conversation.expect(Kind.COPIED, interrupted=self.check).head, "frames")
        compared, gfns = differing_frames(domain, self.conversation, frames, self.check)
        self.monitor.event(
            "compared",
            f"{len(gfns)} of {compared} pages differ; comparing them took {time.monotonic() - started:.1f} s.",
        )
        return DirtyBitmap.from_gfns(gfns, max(frames, domain.nr_frames()))

    # ------------------------------------------------------------------------------------------ checkpoints

    def _replicate(self, differing: DirtyBitmap) -> tuple[Cause, str]:
        """Make checkpoints by the clock and by request until somebody stops it, or until the roles are swapped."""
        packets = self.packets.take_hold(self.conversation, self.guest)
        epochs = PrimaryEpochs(
            self.config,
            self.host,
            self.monitor,
            self.inbox,
            self.conversation,
            self.guest,
            packets,
            self._protected,
            self._handed_over,
            self.ownership.obey,
            differing,
            self.monitor.state.epoch,
            self.alike,
        )
        try:
            epochs.run()
        finally:
            if epochs.handed_over:
                self.here.step = PrimaryStep.HANDED_OVER
        if epochs.switched:
            if not epochs.runs_there:
                why = f"{self.config.vm} is {self.config.peer_name}'s since epoch {epochs.epoch}, where it does not run yet"
                return Cause.SWITCHED, why
            why = f"{self.config.vm} runs on {self.config.peer_name} since epoch {epochs.epoch}"
            if not epochs.leaves:
                return Cause.SWITCHED, why
            # Whoever shuts the host down must not save it, to be restored at the next boot.
            return Cause.GIVEN_UP, f"{why}, because this host is being shut down"
        return Cause.STOP, self.inbox.stop_reason

    def _handed_over(self) -> None:
        """From here on this side is the secondary, whatever happens."""
        self.ownership.hand_over()
        text = f"{self.config.vm} is being handed over to {self.config.peer_name}; it stands still here."
        self.monitor.enter("handed_over", text, role="secondary")

    def _protected(self) -> None:
        """The secondary has a whole copy."""
        self.here.step = PrimaryStep.PROTECTED
        self.ownership.share()
        self.monitor.enter(
            "replicating", f"Both copies of {self.config.vm} run; the other is on {self.config.peer_name}."
        )
