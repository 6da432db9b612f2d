"""The primary's checkpoints: what the saving helper asks of its parent, in the order it asks.

The helper owns memory and CPU state; everything else of an epoch is here: standing still and going on, device state,
what the peer is told and what it answers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from colo_helper.channel.wire import Kind
from colo_helper.control.protocol import Request
from colo_helper.helper.argv import FLAG_BASELINE, SaveRequest, StreamType
from colo_helper.helper.parent import EPOCH
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import pack_bitmap
from colo_helper.monitor.monitor import Monitor
from colo_helper.proxy.policy import Bounds, Interval
from colo_helper.replication.capturing import Capturing
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import STEP_TIMEOUT_S, Conversation, number
from colo_helper.replication.decisions.primary import Idle, guest_ended, idle_step
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.epochs import COUNTS, SavingParent, checkpoint_record
from colo_helper.replication.guest import Guest, attempt
from colo_helper.replication.host import Host
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.pace import Made, Pace
from colo_helper.replication.packing import MAX_CHUNK_BYTES, pack
from colo_helper.replication.stopwatch import Stopwatch, milliseconds
from colo_helper.replication.tunnel import Outlet, take
from colo_helper.replication.verify import compare, verdict
from colo_helper.stream.libxc import RecordType, pack_record
from colo_helper.traffic.moves import Moves, pack_moves
from colo_helper.traffic.sides import PrimarySide, Untouched

#: How often it is looked what there is to do between two checkpoints, however far apart they are.
_LOOK_S = 10.0
#: How much of a checkpoint may wait in memory for the end of the guest's pause.
_HELD_BYTES = 32 << 20
#: The slowest that a secondary may put a large checkpoint in place; 100 MB/s, a tenth of what a host does.
_PAGES_APPLIED_PER_S = 25_000


@dataclass
class PrimaryEpochs(SavingParent):
    """Serves the saving helper; see helper.callout.Callbacks.

    The first checkpoint makes the copy equal: it has all that the guest's log has and what is in ``differing``. It goes on
    with the number ``epoch`` and is not recorded. ``on_running`` is called when both copies run, and ``on_idle`` again and
    again while they do.
    """

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    conversation: Conversation
    guest: Guest
    packets: PrimarySide | Untouched
    on_running: Callable[[], None]
    on_handover: Callable[[], None]
    on_idle: Callable[[], None]
    differing: DirtyBitmap
    epoch: int
    #: Whether both hosts have the same release of Xen, and so of the device model.
    alike: bool = True
    _first: bool = True
    _stream_fd: int = -1
    _due_s: float = 0.0
    _commit_ms: float = 0.0
    _watch: Stopwatch = field(default_factory=Stopwatch)
    _sent_bytes: int = 0
    _caught: bool = False
    _pace: Pace = field(init=False)
    _interval: Interval = field(init=False)
    _diverged: bool = False
    _why: str = "The first checkpoint makes the copy equal."
    _figures: dict[str, int] = field(default_factory=dict)
    _requests: list[Request] = field(default_factory=list)
    _verified: dict[str, Any] | None = None
    #: What the secondary was told last of the connections that were taken over from another primary.
    _moves: Moves | None = None
    _held: list[bytes] = field(default_factory=list)
    _capturing: Capturing = field(init=False)
    #: Whether the secondary's copy may be, or is, the VM now.
    handed_over: bool = False
    switched: bool = False
    #: Whether the secondary says that its copy runs.
    runs_there: bool = True
    #: Whether that is because this host is being shut down.
    leaves: bool = False

    def __post_init__(self) -> None:
        config = self.config
        least = min(config.min_interval_ms, config.interval_ms) if config.comparing else config.interval_ms
        self._capturing = Capturing(config, self.monitor, self.packets)
        self._pace = Pace(Bounds(config.latency_ms, least, config.interval_ms))
        self._interval = Interval(config.interval_ms, "The first checkpoint is not made yet.")

    def run(self) -> None:
        """Make checkpoints until somebody stops it or the roles are swapped (``switched``), which leaves the guest still.

        At the start the copy stands still, and the guest's log is on.

        Raises SessionEndedError, or what the host raised; the guest runs in either case.
        """
        stream_out, stream_in = os.pipe()
        back_out, back_in = os.pipe()
        outlet = Outlet(back_in)
        self._begin()
        self._stream_fd = stream_out
        os.set_blocking(stream_out, False)
        self.conversation.divert(Kind.BACK, outlet)
        self._say_what_differs(back_in)
        try:
            request = SaveRequest(self.guest.domain.domid, FLAG_BASELINE, StreamType.COLO)
            try:
                helper = self.host.start_helper(request, stream_in, back_out, self.config.copy_downtime_ms)
            finally:
                os.close(stream_in)
                os.close(back_out)
            outcome = helper.serve(self, {stream_out: self._forward_some})
        except BaseException:
            self._let_run()
            raise
        finally:
            outlet.close()
            os.close(stream_out)
            self._capturing.close()
        if not outcome.succeeded:
            self._let_run()
            self.conversation.check()
            if self.conversation.loss:
                raise SessionEndedError(Cause.PEER_LOST, self.conversation.loss)
            raise SessionEndedError(Cause.LOCAL_ERROR, outcome.error or self.complaint)
        self.guest.logging = False

    def _say_what_differs(self, back_in: int) -> None:
        """Be the secondary for the helper's first B; in a thread, because a large one does not fit into the pipe."""
        record = pack_record(RecordType.COLO_DIRTY_BITMAP, pack_bitmap(self.differing))
        outlet = Outlet(os.dup(back_in))
        threading.Thread(target=outlet.write_and_close, args=(record,), name="first-b", daemon=True).start()

    # ------------------------------------------------------------------------------------------------ callbacks

    def suspend(self) -> int:
        """What is left is little: stand still, and save the devices' state while the helper looks at memory."""
        self._watch = Stopwatch()
        with self._run_on_failure():
            self.packets.halting()
            self.guest.halt()
            self._capturing.before_cut()
            self.packets.cut(self.epoch)
            self._capturing.after_cut()
            if ended := guest_ended(self.config.vm, self.guest.domain.info()):
                raise ended
            self.guest.save_devices()
        self._watch.lap("suspend")
        return 1

    def checkpoint(self) -> int:
        """All of memory and CPU state is known: the guest runs on, and what was read of it goes to the secondary."""
        self._watch.lap("memory")
        with self._run_on_failure():
            devices = self.guest.saved_devices()
            self._watch.lap("devices")
            if not self._to_hold:
                self._resume()
                self._watch.lap("resume")
            self._send_held()
            commit = {"epoch": self.epoch, "hold": self._to_hold, **self._figures}
            self._sent_bytes += self.conversation.send(
                Kind.COMMIT, commit, (devices, *self._moves_if_changed())
            )
        return 1

    def _moves_if_changed(self) -> list[bytes]:
        """The secondary, and who comes after us here, must not go on moving connections that have ended since."""
        moves = self.packets.moves()
        if isinstance(self.packets, PrimarySide):
            for problem in attempt([lambda: self.guest.moved.write(moves)]):
                self.monitor.event("moved_connections", problem)
        if moves == self._moves:
            return []
        self._moves = moves
        return [pack_moves(moves)]

    def postcopy(self) -> int:
        """Wait until all of it has arrived: then the secondary will become an exact copy, come what may."""
        started = time.monotonic()
        with self._run_on_failure():
            self._expect_of_epoch(Kind.RECEIVED)
            self.inbox.wanted = None
            released = self.packets.received()
            if self._to_hold:
                frames = number(self._expect_of_epoch(Kind.APPLIED), "frames")
                if self._asked_for("verify"):
                    found = compare(self.guest, self.conversation, frames, alike=self.alike)
                    self._verified = found.to_json(self.epoch)
                    self._watch.lap("verify")
                if self._asked_for("switchover"):
                    if released:
                        self._let_leave()
                    self._hand_over()
                    return 0
                self.conversation.send(Kind.RUN, {"epoch": self.epoch})
                self._resume()
                self._watch.lap("resume")
        now_s = time.monotonic()
        self._commit_ms = milliseconds(now_s - started)
        made = Made(now_s, self._figures["d_pages"], self._watch.total_ms + self._commit_ms, self._diverged)
        self._interval = self._pace.after(made)
        return 1

    def _let_leave(self) -> None:
        """Packets that were let go are in the device model, which sends only while it runs; no vCPU does meanwhile."""
        self.packets.flushed()
        self.guest.devices.cont()
        self.guest.devices.stop()

    def _hand_over(self) -> None:
        """Both stand still and are equal: from the moment the secondary is told so, its copy is the VM and this one is not."""
        taps = [tap for tap in self.guest.nics.taps() if tap.bridge]
        try:
            self.guest.nics.isolate()
            self.on_handover()  # written down first: whoever comes after a crash must not let it run here
            self.handed_over = True
            self.conversation.send(Kind.HANDOVER, {"epoch": self.epoch})
        except BaseException:
            if not self.handed_over:
                self.guest.nics.connect(taps)
            raise
        taken = self._expect_of_epoch(Kind.TAKEN, regardless=True)
        self.switched, self.runs_there = True, taken.get("runs") is not False
        self._watch.lap("handover")
        self._record(0.0)

    def wait_checkpoint(self) -> int:
        """Wait until the copy runs, then for the clock or a request; 0 when the protection is to end."""
        started = time.monotonic()
        if not self._to_hold:
            self._expect_of_epoch(Kind.APPLIED)
        apply_ms = milliseconds(time.monotonic() - started)
        self.packets.both_run()
        self._due_s = time.monotonic() + self._interval.interval_ms / 1000
        self.conversation.idle_now()
        if self._first:
            self._first = False
            self.on_running()
        else:
            self._record(apply_ms)
        while True:
            self.inbox.wait(0)
            self.on_idle()
            requested = self.inbox.requests[0].verb if self.inbox.requests else ""
            wanted = self.inbox.wanted.sentence if self.inbox.wanted else ""
            caught = self.guest.caught_in_io
            step = idle_step(
                Idle(
                    time.monotonic(),
                    self._due_s,
                    self.inbox.stop_reason,
                    requested,
                    wanted,
                    caught,
                    self.inbox.stopped_by_service and self.host.going_down(),
                )
            )
            if step.action == "stop":
                return 0
            if step.action in ("checkpoint", "leave"):
                self.leaves = step.action == "leave"
                self._why, self._diverged = step.sentence, wanted != ""
                self._begin()
                return 1
            if caught and not self._caught:
                self.monitor.event("paused", step.sentence)
            self._caught = caught
            self.conversation.idle(min(step.wait_s, _LOOK_S))

    def progress(self, context: str, what: str, done: int, total: int) -> None:  # noqa: ARG002
        """Take the figures of the epoch."""
        if context == EPOCH:
            self._figures[what] = done

    # -------------------------------------------------------------------------------------------------- the parts

    def _begin(self) -> None:
        """What comes from now on, sent ahead or not, is the next epoch's. The secondary stands still first: B comes early."""
        if not self._first:
            self.epoch += 1
        self._sent_bytes = 0
        self._figures = dict.fromkeys(COUNTS, 0)
        self._requests = list(self.inbox.requests)  # those that come from now on get the next checkpoint
        self._verified = None
        for request in self._requests:
            if request.verb == "capture":
                self._capturing.ask(request)
        if not self._first:  # the copy stands still at the first
            self._sent_bytes += self.conversation.send(Kind.SUSPEND, {"epoch": self.epoch})

    def _asked_for(self, verb: str) -> bool:
        asked = {request.verb for request in self._requests} | ({"switchover"} if self.leaves else set())
        return not self._first and verb in asked

    @property
    def _to_hold(self) -> bool:
        """Whether both sides stand still after this checkpoint until the primary says more."""
        return self._asked_for("verify") or self._asked_for("switchover")

    def _resume(self) -> None:
        self.guest.resume()
        self.packets.resumed()

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:
        """See Callbacks. It may come while the devices' state is saved, when the helper has failed meanwhile."""
        self.packets.must_obey()
        self.guest.await_saving()
        return super().switch_qemu_logdirty(domid, enable)

    def _let_run(self) -> None:
        """After a failure; but never what may run elsewhere."""
        if not self.handed_over:
            self.guest.let_run()

    def _expect_of_epoch(self, kind: Kind, *, regardless: bool = False) -> dict[str, Any]:
        limit_s = STEP_TIMEOUT_S + self._figures["d_pages"] / _PAGES_APPLIED_PER_S
        head = self.conversation.expect(kind, timeout_s=limit_s, regardless=regardless).head
        if head.get("epoch") != self.epoch:
            raise SessionEndedError(
                Cause.PEER_LOST,
                f"The secondary sent {kind.name} of epoch {head.get('epoch')}, not {self.epoch}.",
            )
        return head

    def _forward_some(self) -> bool:
        """Take everything the helper has written by now; returns False at the end of its stream.

        While the guest stands still it is only kept, up to _HELD_BYTES: packing and sending can wait until it runs.
        """
        with self._run_on_failure():
            while data := take(self._stream_fd, MAX_CHUNK_BYTES):
                self._held.append(data)
                if not self.guest.halted or sum(map(len, self._held)) > _HELD_BYTES:
                    self._send_held()
        return data is None

    def _send_held(self) -> None:
        for data in self._held:
            head, payload = pack(data)
            self._sent_bytes += self.conversation.send(Kind.STREAM, head, (payload,))
            self.conversation.check()  # a large checkpoint on a slow link takes long, and is not to be taken for stuck
        self._held.clear()

    @contextmanager
    def _run_on_failure(self) -> Iterator[None]:
        """Let the guest run at once when a part of a checkpoint fails; the helper may take a moment to put things back."""
        try:
            yield
        except BaseException:
            self._let_run()
            raise

    def _record(self, apply_ms: float) -> None:
        """Write the checkpoint down and answer the requests for it."""
        verified = self._verified
        record = checkpoint_record(
            self.epoch, self._figures, self._sent_bytes, self._watch, self._commit_ms, apply_ms, self._why
        )
        self.monitor.checkpoint(
            record, self.conversation.figures(), self.packets.counters() or None, self._interval._asdict()
        )
        if verified:
            self.monitor.verification(verified)
            self.monitor.event("verified", verdict(verified))
        for request in self._requests:
            self.inbox.requests.remove(request)
            if request.verb != "capture":
                request.succeed(verified if request.verb == "verify" and verified else record.to_json())
        self._capturing.checkpointed()
