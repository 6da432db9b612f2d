"""The secondary's checkpoints: what the restoring helper asks of its parent, in the order it asks.

The helper keeps a checkpoint back until this side says that all of it has come; from then on there is only forward. How
far that is, ``step`` tells at any moment, and with it what becomes of the copy when the primary dies.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from colo_helper.channel.wire import Frame, Kind
from colo_helper.devices.interface import DeviceError
from colo_helper.helper.argv import RestoreRequest, StreamType
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.conversation import Conversation, moves_in, number
from colo_helper.replication.decisions.secondary import Step
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.epochs import COUNTS, HelperParent, checkpoint_record
from colo_helper.replication.guest import Guest, attempt
from colo_helper.replication.host import Helper, Host
from colo_helper.replication.packing import MAX_CHUNK_BYTES
from colo_helper.replication.stopwatch import Stopwatch
from colo_helper.replication.tunnel import Outlet, take
from colo_helper.replication.verify import answer_hash, answer_state
from colo_helper.traffic.moves import Moves
from colo_helper.traffic.sides import SecondarySide, Untouched

#: Answers of a restoring helper's parent.
_SUCCESS, _PRIMARY_LOST = 1, 2


@dataclass
class SecondaryEpochs(HelperParent):
    """Serves the restoring helper; see helper.callout.Callbacks. ``interrupted`` is called when a wait is disturbed.

    ``on_running`` is called when the copy runs for the first time.
    """

    host: Host
    monitor: Monitor
    conversation: Conversation
    guest: Guest
    packets: SecondarySide | Untouched
    interrupted: Callable[[], None]
    on_running: Callable[[], None]
    on_handover: Callable[[], None]
    step: Step
    epoch: int
    #: The connections that the primary has taken over from another.
    moves: Moves
    _first: bool = True
    _helper: Helper | None = None
    _outlet: Outlet | None = None
    _back_fd: int = -1
    _commit: Frame = field(default_factory=lambda: Frame(Kind.COMMIT))
    _watch: Stopwatch = field(default_factory=Stopwatch)
    _sent_bytes: int = 0
    _ended: SessionEndedError | None = None

    def start(self) -> None:
        """Start the helper on the paused copy; from now on the primary's stream flows into it."""
        stream_out, stream_in = os.pipe()
        self._back_fd, back_in = os.pipe()
        os.set_blocking(self._back_fd, False)
        self._outlet = Outlet(stream_in, self.conversation.gets_on)
        self.conversation.divert(Kind.STREAM, self._outlet)
        request = RestoreRequest(self.guest.domain.domid, 0, 0, stream_type=StreamType.COLO)
        try:
            self._helper = self.host.start_helper(request, stream_out, back_in)
        except BaseException:
            self._outlet.close()
            os.close(self._back_fd)
            raise
        finally:
            os.close(stream_out)
            os.close(back_in)

    def run(self) -> None:
        """Serve the helper until the session ends, always by SessionEndedError or what the host raised."""
        assert self._helper is not None and self._outlet is not None  # noqa: PT018
        try:
            outcome = self._helper.serve(self, {self._back_fd: self._send_back})
        finally:
            self._outlet.close()
            os.close(self._back_fd)
        if self._ended:
            raise self._ended
        self.conversation.check()
        if outcome.succeeded or self.conversation.loss:  # it saw the end of its stream
            raise SessionEndedError(Cause.PEER_LOST, self.conversation.loss or "The stream ended.")
        raise SessionEndedError(Cause.LOCAL_ERROR, outcome.error or self.complaint)

    # ------------------------------------------------------------------------------------------------ callbacks

    def static_data_done(self, missing: int) -> int:  # noqa: ARG002
        """The copy has its static data since it was made."""
        return 0

    def checkpoint(self) -> int:
        """Memory and CPU state have come; wait for the word that this was all, and for the device state."""
        try:
            commit = self.conversation.expect(Kind.COMMIT)
            if commit.head.get("epoch") != self.epoch or len(commit.parts) not in (1, 2):
                raise SessionEndedError(
                    Cause.PEER_LOST, f"The checkpoint of epoch {self.epoch} is not complete."
                )
            if len(commit.parts) > 1:
                self.moves = moves_in(commit.parts[1])
        except SessionEndedError as error:
            return self._end(error)
        self._commit = commit
        self._watch.lap("receive")
        # From here on the new state is complete: whatever happens to the primary, it is the one to run.
        # A copy that has not run yet is of no use before the primary knows of it.
        self.step = Step.APPLYING if self.step is not Step.READY else self.step
        self.guest.torn.set()
        try:
            self._sent_bytes += self.conversation.send(Kind.RECEIVED, {"epoch": self.epoch})
        except SessionEndedError as error:
            self._ended = error  # the helper still applies it
        return _SUCCESS

    def postcopy(self) -> int:
        """Memory and CPU state are applied: load the devices, and run on unless the primary wants to compare first."""
        self.guest.load_devices(self._commit.parts[0])
        self.step = Step.APPLIED if self.step is not Step.READY else self.step
        self.guest.torn.clear()
        self.packets.applied(self.epoch)
        self.packets.know(self.moves)
        for problem in attempt([lambda: self.guest.moved.write(self.moves)]):
            self.monitor.event("moved_connections", problem)
        self._watch.lap("apply")
        if self._ended:
            return self._end(self._ended)
        applied = {"epoch": self.epoch, "frames": self.guest.domain.nr_frames()}
        hold = self._commit.head.get("hold") is True
        try:
            if hold:
                self.conversation.send(Kind.APPLIED, applied)
                if self._be_compared():
                    return self._end(self._be_handed_over())
            self.packets.resumed()
            self._run_on()
            if not hold:
                self._sent_bytes += self.conversation.send(Kind.APPLIED, applied)
        except SessionEndedError as error:
            return self._end(error)
        if self._first:
            self._first = False
            self.on_running()
        else:
            self._record()
        return _SUCCESS

    def _be_compared(self) -> bool:
        """Answer for the copy while both stand still, until the primary lets both run, or hands the VM over (True)."""
        while True:
            frame = self.conversation.expect(Kind.HASH, Kind.STATE, Kind.RUN, Kind.HANDOVER)
            if frame.kind is Kind.HASH:
                answer_hash(self.guest.domain, self.conversation, frame.head)
            elif frame.kind is Kind.STATE:
                answer_state(self.guest, self.conversation)
            else:
                return frame.kind is Kind.HANDOVER

    def _be_handed_over(self) -> SessionEndedError:
        """The copy is the VM from now on, whatever goes wrong here; returns how the session ends."""
        self.on_handover()
        problems = attempt([self._run_on])  # it is tried again at the session's end
        self._record()
        self.conversation.tell(Kind.TAKEN, {"epoch": self.epoch, "runs": not problems})
        text = f"The roles were swapped at epoch {self.epoch}"
        return SessionEndedError(Cause.SWITCHED, ". ".join([text, *problems]))

    def _run_on(self) -> None:
        self.guest.resume()
        self.step = Step.RUNNING
        self._watch.lap("resume")

    def wait_checkpoint(self) -> int:
        """Wait until the primary wants to stop both."""
        try:
            frame = self.conversation.expect(Kind.SUSPEND, timeout_s=None, interrupted=self.interrupted)
            self.epoch = number(frame.head, "epoch")
        except SessionEndedError as error:
            return self._end(error)
        return _SUCCESS

    def suspend(self) -> int:
        """Stand still."""
        self._watch = Stopwatch()
        self._sent_bytes = 0
        info = self.guest.domain.info()
        if info.shutdown:  # its device model has ended with it, and takes no state any more
            raise DeviceError(f"The copy, domain {info.domid}, has ended by itself ({info.shutdown_reason})")
        self.packets.halting()
        self.guest.halt()
        self.step = Step.PARTIAL
        self._watch.lap("suspend")
        return _SUCCESS

    # -------------------------------------------------------------------------------------------------- the parts

    def _send_back(self) -> bool:
        """Send on what the helper has written to the back channel; returns False at its end."""
        while data := take(self._back_fd, MAX_CHUNK_BYTES):
            if self._ended:
                continue
            try:
                head = {"packed": False, "bytes": len(data)}  # the helper has packed it
                self._sent_bytes += self.conversation.send(Kind.BACK, head, (data,))
            except SessionEndedError as error:
                self._end(error)
        return data is None

    def _end(self, error: SessionEndedError) -> int:
        """The session is over: the helper leaves the copy as it is."""
        self._ended = self._ended or error
        if self._outlet:
            self._outlet.close()
        return _PRIMARY_LOST

    def _record(self) -> None:
        counts = {name: number(self._commit.head, name) for name in COUNTS}
        record = checkpoint_record(self.epoch, counts, self._sent_bytes, self._watch)
        self.monitor.checkpoint(record, self.conversation.figures())
