"""Saving a domain: plain, as a series of Remus checkpoints, or as a COLO primary.

Order of callbacks and records as Xen 4.17's own helper keeps it (tools/libs/guest/xg_sr_save.c), which its parent relies
on. Whatever happens, at the end log-dirty is off in Xen and in the device model.
"""

from __future__ import annotations

import errno
import time

from colo_helper.helper import policy
from colo_helper.helper.argv import FLAG_BASELINE, FLAG_FIRST_COPY, FLAG_LIVE, SaveRequest, StreamType
from colo_helper.helper.back_channel import DirtyReader
from colo_helper.helper.errors import AnswerError, HelperError, ParentLostError, errno_of
from colo_helper.helper.fds import Fd
from colo_helper.helper.frames_out import FrameWriter
from colo_helper.helper.messages import Callback, Level
from colo_helper.helper.parent import EPOCH, Parent
from colo_helper.hypervisor import abi
from colo_helper.hypervisor.dirty_log import DirtyLog
from colo_helper.hypervisor.interface import Domain
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.stream import libxc
from colo_helper.stream.libxc import DomainHeader, RecordType


class Saver:
    """One save. ``run`` does everything; it raises AnswerError, HelperError, HypervisorError or ParentLostError."""

    def __init__(
        self,
        domain: Domain,
        request: SaveRequest,
        parent: Parent,
        stream: Fd,
        back: Fd | None,
        downtime_ms: float = policy.TARGET_DOWNTIME_MS,
    ) -> None:
        self.domain = domain
        self.request = request
        self.parent = parent
        self.stream = stream
        self.back = back
        self.downtime_ms = downtime_ms
        self._frames = FrameWriter(domain, stream)
        # Under Xen's own tools nobody could compare the copies anew.
        self._dirty_log = DirtyLog(domain, guarded=self._baseline or self._first_copy)
        self._reader: DirtyReader | None = None
        #: Dirty frames of a live round that was not sent any more; the last round sends them.
        self._left: DirtyBitmap | None = None
        #: Whether the copy has run, or was made before: its rings are in use.
        self._lived = self._baseline
        #: Of the checkpoint at hand: A, B, and how many pages were sent before the pause.
        self._written = self._theirs = DirtyBitmap.empty(0)
        self._ahead_pages = 0

    @property
    def _checkpointed(self) -> bool:
        return self.request.stream_type is not StreamType.PLAIN

    @property
    def _baseline(self) -> bool:
        return bool(self.request.flags & FLAG_BASELINE)

    @property
    def _first_copy(self) -> bool:
        return bool(self.request.flags & FLAG_FIRST_COPY)

    def run(self) -> None:
        """Save the domain; returns when the image is complete, or when the parent ends a checkpointed one in order."""
        if self.request.stream_type is StreamType.COLO:
            if self.back is None:
                raise HelperError("COLO needs a back channel, and the parent gave none.", errno.EINVAL)
            self._reader = DirtyReader(self.back)
        try:
            self._qemu_logging(True)
            self._save()
        except BaseException:
            # Also a failure that nobody has thought of must not leave a guest slow for good.
            self._report(self._stop_logging())
            raise
        if self._first_copy:
            return
        if problems := self._stop_logging():
            self._report(problems[1:])
            raise problems[0]

    def _save(self) -> None:
        self._write_static()
        live = bool(self.request.flags & FLAG_LIVE) and not self._baseline
        if live or (self._checkpointed and not self._baseline):
            self._dirty_log.start()
        if live:
            self._live_rounds()
        epoch = 0
        while True:
            epoch += 1
            if self._baseline:
                self._send_ahead(self.downtime_ms if epoch == 1 else policy.TARGET_PAUSE_MS)
            self._suspend()
            self._send_memory(epoch, first_walk=epoch == 1 and not live and not self._baseline)
            self._write_state()
            if not self._checkpointed:
                self._log(self._frames.summary())
                break
            self.stream.write(libxc.pack_record(RecordType.CHECKPOINT))
            if not self._between_checkpoints():
                return
        self.stream.write(libxc.pack_record(RecordType.END))

    # ------------------------------------------------------------------------------------------------- the parts

    def _write_static(self) -> None:
        header = DomainHeader(libxc.TYPE_HVM, *self.domain.xen_version)
        self.stream.write(libxc.pack_image_header(), libxc.pack_domain_header(header))
        if not self._baseline:  # the copy has the policy already, and a guest that has run cannot get another
            policy_of_guest = self.domain.get_cpu_policy()
            for kind, body in (
                (RecordType.X86_CPUID_POLICY, policy_of_guest.leaves),
                (RecordType.X86_MSR_POLICY, policy_of_guest.msrs),
            ):
                if body:
                    self.stream.write(libxc.pack_record(kind, body))
        self.stream.write(libxc.pack_record(RecordType.STATIC_DATA_END))
        if self._reader:
            features = libxc.FEATURE_DIRTY_BITMAP | (libxc.FEATURE_BASELINE if self._baseline else 0)
            self.stream.write(libxc.pack_record(RecordType.COLO_OFFER, libxc.pack_offer(features)))

    def _live_rounds(self) -> None:
        """Send memory while the guest runs, until the rest can go while it stands still."""
        self._log("Round 0: all frames.")
        started, before = time.monotonic(), self._frames.pages
        self._walk()
        self._left = self._rounds(started, before, self.downtime_ms)

    def _send_ahead(self, target_ms: float) -> None:
        """Before a checkpoint from a baseline: the secondary stands still already, so send D while the guest still runs.

        What it writes after that is all that goes while it stands still.
        """
        assert self._reader is not None
        self._theirs = self._reader.read(self.domain.nr_frames())
        dirty = self._dirty_log.clean(final=False)
        self._written = dirty.copy()
        dirty.unite(self._theirs)
        started, before = time.monotonic(), self._frames.pages
        self._send(dirty)
        self._left = self._rounds(started, before, target_ms)
        self._ahead_pages = self._frames.pages - before

    def _rounds(self, started: float, before: int, target_ms: float) -> DirtyBitmap:
        """Go on with rounds after one that began at ``started`` with ``before`` pages sent; returns what is left to send."""
        rounds: list[policy.Round] = []
        while True:
            sent = self._frames.pages - before
            dirty = self._dirty_log.clean(final=False)
            rounds.append(policy.Round(sent, time.monotonic() - started, dirty.count))
            verdict = policy.after_round(rounds, self.domain.info().pages, target_ms)
            self._log(
                f"Round {len(rounds) - 1}: {sent} pages in {rounds[-1].seconds:.2f} s; {verdict.sentence}"
            )
            if verdict.stop:
                return dirty.copy()
            started, before = time.monotonic(), self._frames.pages
            if self._baseline:
                self._written.unite(dirty)
            self._send(dirty)
            self.parent.progress(f"Round {len(rounds)}", dirty.count, dirty.count)

    def _send(self, dirty: DirtyBitmap) -> None:
        if self._lived:
            # Rings and request pages belong to the host: the copy's own ones are in use.
            dirty.forget(self.domain.special_frames())
        self._frames.send(dirty.gfns())

    def _walk(self) -> None:
        self._frames.send_all(lambda done, total: self.parent.progress("Frames", done, total))

    def _send_memory(self, epoch: int, *, first_walk: bool) -> None:
        """Send what the other side needs while the guest stands still."""
        before = self._frames.pages
        if first_walk:
            if self._checkpointed:
                self._dirty_log.clean(final=True)
            self._walk()
            return
        dirty = self._dirty_log.clean(final=True)
        if self._left:
            dirty.unite(self._left)
            self._left = None
        if self._baseline:
            self._written.unite(dirty)  # B has gone ahead
        else:
            self._written = dirty.copy()
            if self._reader and epoch > 1:
                self._theirs = self._reader.read(dirty.frames)
                dirty.unite(self._theirs)
        self._lived = self._lived or epoch > 1
        self._send(dirty)
        a_pages = self._written.count
        self._written.unite(self._theirs)
        for what, count in (
            ("a_pages", a_pages),
            ("b_pages", self._theirs.count),
            ("d_pages", self._written.count),
            ("ahead_pages", self._ahead_pages),
            ("sent_pages", self._frames.pages - before),
        ):
            self.parent.progress(what, count, dirty.frames, EPOCH)

    def _write_state(self) -> None:
        params = [(index, value) for index in abi.SAVED_PARAMS if (value := self.domain.get_param(index))]
        self.stream.write(
            libxc.pack_record(RecordType.X86_TSC_INFO, libxc.pack_tsc_info(self.domain.get_tsc())),
            libxc.pack_record(RecordType.HVM_CONTEXT, self.domain.get_context()),
            libxc.pack_record(RecordType.HVM_PARAMS, libxc.pack_hvm_params(params)) if params else b"",
        )

    # ----------------------------------------------------------------------------------------------- the parent

    def _suspend(self) -> None:
        if self.parent.ask(Callback.SUSPEND) == 0:
            raise HelperError(f"The parent could not suspend domain {self.domain.domid}.")
        self.stream.check_stop()
        info = self.domain.info()
        if not (info.suspended or ((self._baseline or self._first_copy) and info.paused)):
            raise HelperError(f"Domain {self.domain.domid} is not suspended, although the parent says so.")

    def _between_checkpoints(self) -> bool:
        """Let the parent do its part between two checkpoints; returns whether there is another one."""
        if self.request.stream_type is StreamType.REMUS:
            return self._goes_on(Callback.POSTCOPY) and self._goes_on(Callback.CHECKPOINT)
        if self.parent.ask(Callback.CHECKPOINT) == 0:
            raise HelperError("The parent could not complete the checkpoint.")
        self.stream.check_stop()
        return self._goes_on(Callback.POSTCOPY) and self._goes_on(Callback.WAIT_CHECKPOINT)

    def _goes_on(self, callback: Callback) -> bool:
        answer = self.parent.ask(callback)
        if answer < 0:
            name = callback.name.lower()
            raise AnswerError(f"The parent's {name} failed with {answer}.", answer, errno.EIO)
        if answer > 0:
            # Told to stop while the parent was busy: the guest need not stand still once more for it.
            self.stream.check_stop()
        return answer > 0

    def _qemu_logging(self, enable: bool) -> None:
        if self.parent.ask(Callback.SWITCH_QEMU_LOGDIRTY, self.domain.domid, int(enable)):
            word = "log" if enable else "stop logging"
            raise HelperError(f"The parent could not make the device model {word} its writes.")

    def _stop_logging(self) -> list[Exception]:
        """Log-dirty off in Xen and in the device model, whatever has happened; returns what failed.

        But not for another program that saves the domain by now: it would miss what is written.
        """
        problems: list[Exception] = []
        if self.domain.saved_by_others():
            return problems
        steps = [self.domain.log_dirty_off]
        if self.parent.serves(Callback.SWITCH_QEMU_LOGDIRTY):
            steps.append(lambda: self._qemu_logging(False))
        # Also when it was not on: a call to turn it on that failed may have left it on, or half on.
        for step in steps:
            try:
                step()
            except Exception as error:
                problems.append(error)
        return problems

    def _report(self, problems: list[Exception]) -> None:
        """Log what failed beside the cause that the parent is told."""
        for problem in problems:
            if not isinstance(problem, ParentLostError):
                self.parent.log(Level.ERROR, str(problem), errno_of(problem))

    def _log(self, text: str) -> None:
        self.parent.log(Level.DETAIL, text)
