"""Restoring a domain: plain, as a Remus backup, or as a COLO secondary.

Order of callbacks as Xen 4.17's own helper keeps it (tools/libs/guest/xg_sr_restore.c). The first image goes straight into
an empty domain. Every later checkpoint, and the first one on a copy that was there before, is kept back until it is
complete and the parent has its part of it, and then applied as a whole; a stream that breaks before that leaves the domain
as it was.
"""

from __future__ import annotations

import errno

from colo_helper.helper.argv import RestoreRequest, Results, StreamType
from colo_helper.helper.back_channel import DirtyWriter
from colo_helper.helper.errors import HelperError, StreamLostError
from colo_helper.helper.fds import Fd
from colo_helper.helper.frames_in import FrameReader
from colo_helper.helper.messages import Callback, Level
from colo_helper.helper.parent import EPOCH, Parent
from colo_helper.helper.spool import Spool
from colo_helper.hypervisor import abi
from colo_helper.hypervisor.dirty_log import DirtyLog
from colo_helper.hypervisor.interface import CpuPolicy, Domain
from colo_helper.stream import libxc
from colo_helper.stream.libxc import RecordType, StreamError

#: Answers of the parent on the restoring side.
_SUCCESS, _FAILOVER = 1, 2
#: Bits of static_data_done: what the stream had no record of.
_NO_CPUID, _NO_MSR = 1 << 0, 1 << 1
_PAGE_HEAD_BYTES = 8
_STATIC = (
    RecordType.X86_CPUID_POLICY,
    RecordType.X86_MSR_POLICY,
    RecordType.STATIC_DATA_END,
    RecordType.COLO_OFFER,
)
#: Frames that a new domain gets empty.
_RINGS = {abi.PARAM_STORE_PFN, abi.PARAM_CONSOLE_PFN, abi.PARAM_IOREQ_PFN, abi.PARAM_BUFIOREQ_PFN}


#: Xen has fewer than 64 parameters; the C call would cut a larger number off and set another one.
_PARAM_LIMIT = 1 << 16


class _FailoverError(Exception):
    """The primary is gone: the domain goes on from the last complete checkpoint."""


class Restorer:
    """One restore. ``run`` returns when the domain is complete, or is to take over; it raises HelperError and others.

    ``results`` is filled as the image tells them, and is right as far as it is filled when ``run`` fails.
    """

    def __init__(
        self,
        domain: Domain,
        request: RestoreRequest,
        parent: Parent,
        stream: Fd,
        back: Fd | None,
        spool_dir: str,
        results: Results | None = None,
    ) -> None:
        self.domain = domain
        self.request = request
        self.parent = parent
        self.stream = stream
        self.back = back
        self.results = results or Results()
        self._frames = FrameReader(domain)
        self._spool = Spool(spool_dir, self._frames.limit)
        self._writer: DirtyWriter | None = None
        self._version = 0
        self._static_done = False
        self._policy: dict[int, bytes] = {}
        self._context = b""
        #: Whether the domain has run, or was made equal before this stream: its rings are in use.
        self._lived = False
        # Under Xen's own tools nobody could compare the copies anew.
        self._dirty_log = DirtyLog(domain, guarded=False)
        #: Complete checkpoints, the first image among them.
        self._checkpoints = 0

    @property
    def _colo(self) -> bool:
        return self.request.stream_type is StreamType.COLO

    @property
    def _keeping(self) -> bool:
        """Whether records are kept back: from the first complete image on, or from a copy that was there before."""
        return self._lived or self._checkpoints > 0

    def run(self) -> None:
        """Restore the domain."""
        if self._colo:
            if self.back is None:
                raise HelperError("COLO needs a back channel, and the parent gave none.", errno.EINVAL)
            self._writer = DirtyWriter(self.back)
        try:
            self._read_headers()
            self._read_records()
        except _FailoverError as error:
            self.parent.log(Level.INFO, f"Failover: {error}")
        finally:
            self._spool.close()
        if not (self._colo and self._keeping):
            self._complete()

    # ------------------------------------------------------------------------------------------------- the stream

    def _read_headers(self) -> None:
        self._version = libxc.parse_image_header(self.stream.read_exact(libxc.IMAGE_HEADER_BYTES))
        header = libxc.parse_domain_header(self.stream.read_exact(libxc.DOMAIN_HEADER_BYTES))
        if header.guest_type != libxc.TYPE_HVM:
            raise StreamError(f"The image is of a PV guest, domain {self.domain.domid} is not one.")
        self.parent.log(
            Level.INFO,
            f"Restoring an image of revision {self._version} from Xen {header.xen_major}.{header.xen_minor}.",
        )

    def _read_records(self) -> None:
        while True:
            try:
                kind, length = libxc.parse_record_header(self.stream.read_exact(libxc.RECORD_HEADER_BYTES))
                if kind == RecordType.END:
                    self._expect_empty(kind, length)
                    if not self._keeping:
                        self._require_image()
                    return
                if kind == RecordType.PAGE_DATA:
                    self._take_pages(length)
                    continue
                body = self._read_body(kind, length)
            except StreamLostError as error:
                if self._keeping:
                    raise _FailoverError(
                        f"{error} The last complete checkpoint is number {self._checkpoints}."
                    ) from error
                raise
            if kind == RecordType.CHECKPOINT:
                self._expect_empty(kind, length)
                self._at_checkpoint()
            elif self._keeping:
                self._check_kept(kind, body)
                self._spool.keep(kind, body)
            else:
                self._apply_small(kind, body)

    def _read_body(self, kind: int, length: int) -> bytes:
        if kind in (RecordType.CHECKPOINT_DIRTY_PFN_LIST, RecordType.COLO_DIRTY_BITMAP):
            raise StreamError(f"{libxc.name_of(kind)} belongs on the back channel.")
        body = self.stream.read_exact(length)
        if libxc.padding(length):
            self.stream.read_exact(libxc.padding(length))
        return body

    def _take_pages(self, length: int) -> None:
        count = libxc.parse_page_count(self.stream.read_exact(min(_PAGE_HEAD_BYTES, length)), length)
        entries = libxc.parse_page_entries(self.stream.read_exact(8 * count), length)
        self._frames.check(entries)
        self._end_static_data()
        if self._keeping:
            self._spool.take_pages(entries, self.stream)
        else:
            self._frames.apply(entries, self.stream.read_into, self._spare())

    def _spare(self) -> dict[int, object]:
        """Return the frames that are not overwritten: the rings of a domain that has lived, which its host uses."""
        return dict(self.domain.special_frames()) if self._lived else {}

    # ------------------------------------------------------------------------------------------------ the records

    def _check_kept(self, kind: int, body: bytes) -> None:
        """Refuse what cannot be applied while nothing of the checkpoint has been."""
        if kind == RecordType.X86_TSC_INFO:
            libxc.parse_tsc_info(body)
        elif kind == RecordType.HVM_PARAMS:
            _parse_params(body)
        elif kind in _STATIC or (kind != RecordType.HVM_CONTEXT and not libxc.is_optional(kind)):
            raise StreamError(f"{libxc.name_of(kind)} cannot be part of a checkpoint.")

    def _apply_small(self, kind: int, body: bytes) -> None:
        if kind == RecordType.X86_TSC_INFO:
            self.domain.set_tsc(libxc.parse_tsc_info(body))
        elif kind == RecordType.HVM_CONTEXT:
            self._context = body
        elif kind == RecordType.HVM_PARAMS:
            self._apply_params(_parse_params(body))
        elif kind in _STATIC:
            self._take_static(kind, body)
        elif not libxc.is_optional(kind):
            why = " The image is one to be compared with." if kind == RecordType.VERIFY else ""
            raise StreamError(f"{libxc.name_of(kind)} cannot be read here.{why}")

    def _take_static(self, kind: int, body: bytes) -> None:
        if kind == RecordType.COLO_OFFER:
            self._take_offer(libxc.parse_offer(body))
        elif kind == RecordType.STATIC_DATA_END:
            self._expect_empty(kind, len(body))
            if self._static_done:
                raise StreamError("STATIC_DATA_END came a second time.")
            self._end_static_data()
        else:
            self._keep_policy(kind, body)

    def _take_offer(self, features: int) -> None:
        if self._writer:
            self._writer.packed = bool(features & libxc.FEATURE_DIRTY_BITMAP)
            self._lived = bool(features & libxc.FEATURE_BASELINE)
            self._dirty_log = DirtyLog(self.domain, guarded=self._lived)
        if self._lived and not self.domain.info().pages:
            raise StreamError(f"The image builds on a copy, but domain {self.domain.domid} has no memory.")

    def _keep_policy(self, kind: int, body: bytes) -> None:
        if self._version < libxc.VERSION or self._static_done:
            raise StreamError(f"{libxc.name_of(kind)} came where it must not.")
        libxc.check_policy(kind, len(body))
        self._policy[kind] = body

    def _end_static_data(self) -> None:
        """What stays the same for the guest's life is known: in revision 2 at the first pages."""
        if self._static_done:
            return
        self._static_done = True
        leaves = self._policy.get(RecordType.X86_CPUID_POLICY, b"")
        msrs = self._policy.get(RecordType.X86_MSR_POLICY, b"")
        if leaves or msrs:
            self.domain.set_cpu_policy(CpuPolicy(leaves, msrs))
        missing = (0 if leaves else _NO_CPUID) | (0 if msrs else _NO_MSR)
        if self.parent.serves(Callback.STATIC_DATA_DONE) and self.parent.ask(
            Callback.STATIC_DATA_DONE, missing
        ):
            raise HelperError("The parent could not complete the domain's static data.")

    def _apply_params(self, params: list[tuple[int, int]]) -> None:
        for index, value in params:
            if index == abi.PARAM_PAE_ENABLED:
                continue
            if index == abi.PARAM_STORE_PFN:
                self.results.store_gfn = value
            elif index == abi.PARAM_CONSOLE_PFN:
                self.results.console_gfn = value
            if self._lived and self.domain.get_param(index) == value:
                continue
            if index in _RINGS and not self._lived:
                self._frames.clear(value)
            self.domain.set_param(index, value)

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _at_checkpoint(self) -> None:
        self._require_image()
        if self.request.stream_type is StreamType.PLAIN:
            raise StreamError("A checkpoint came in a plain image.")
        answer = self.parent.ask(Callback.CHECKPOINT)
        if answer == _FAILOVER and self._keeping:
            raise _FailoverError("The parent's part of the checkpoint did not arrive.")
        if answer != _SUCCESS:
            raise HelperError(f"The parent could not complete the checkpoint (it answered {answer}).")
        self.stream.check_stop()  # the last moment to leave the domain as it is
        if self._keeping:
            self._apply_kept()
        self._checkpoints += 1
        if self._colo:
            self._run_secondary()

    def _apply_kept(self) -> None:
        """Everything has arrived: from here on there is only forward."""
        spare = self._spare()
        for entries in self._spool.pages():
            self._frames.apply(entries, self._spool.read_into, spare)
        for kind, body in self._spool.small:
            self._apply_small(kind, body)
        self.parent.progress("sent_pages", self._spool.page_count(), self._frames.limit, EPOCH)
        self._spool.clear()

    def _run_secondary(self) -> None:
        """Between two checkpoints of a COLO secondary: let it run, stop it, send B."""
        self._complete()
        self._lived = True
        self.parent.tell(Callback.RESTORE_RESULTS, self.results.store_gfn, self.results.console_gfn)
        for callback in (Callback.POSTCOPY, Callback.WAIT_CHECKPOINT, Callback.SUSPEND):
            answer = self.parent.ask(callback)
            if answer == _FAILOVER:
                raise _FailoverError(f"The parent lost the primary ({callback.name.lower()}).")
            if answer != _SUCCESS:
                raise HelperError(f"The parent's {callback.name.lower()} failed with {answer}.")
            self.stream.check_stop()
        assert self._writer is not None
        # The size is asked for at every clean: at the start the domain was empty.
        dirty = self._dirty_log.clean(final=False)
        self.parent.progress("b_pages", dirty.count, dirty.frames, EPOCH)
        try:
            self._writer.write(dirty)
        except StreamLostError as error:
            raise _FailoverError(str(error)) from error

    def _complete(self) -> None:
        """Make a runnable domain of what was restored."""
        domain, request = self.domain, self.request
        if not self._lived:
            domain.set_param(abi.PARAM_STORE_EVTCHN, request.store_evtchn)
            domain.set_param(abi.PARAM_CONSOLE_EVTCHN, request.console_evtchn)
        domain.set_context(self._context)
        if not self._lived:
            store, console = (
                (request.store_domid, self.results.store_gfn),
                (request.console_domid, self.results.console_gfn),
            )
            domain.seed_grant_table(store, console)

    def _require_image(self) -> None:
        came = (body for kind, body in self._spool.small if kind == RecordType.HVM_CONTEXT)
        if not (any(came) if self._keeping else self._context):
            raise StreamError("The state of the CPUs has not come.")

    @staticmethod
    def _expect_empty(kind: int, length: int) -> None:
        if length:
            raise StreamError(f"{libxc.name_of(kind)} has {length} bytes, it must have none.")


def _parse_params(body: bytes) -> list[tuple[int, int]]:
    params = libxc.parse_hvm_params(body)
    for index, _ in params:
        if index >= _PARAM_LIMIT:
            raise StreamError(f"The HVM parameter {index:#x} is named, which no Xen has.")
    return params
