"""The first copy: what ``xl migrate`` would send to ``xl restore`` on the peer, made by the saving helper while the guest runs.

The stream is xl's preamble with the guest's configuration, libxl's header, the image that our save helper writes (live
rounds, and the rest while the guest stands still), the device model's records and libxl's END. The guest stands still for
the last round and the device state, not for the peer's building of a domain: when this returns it runs again, and its
dirty frames are logged, for the first checkpoint to send.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from colo_helper.channel.wire import Kind
from colo_helper.helper.argv import FLAG_FIRST_COPY, FLAG_LIVE, NO_FD, SaveRequest
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.epochs import SavingParent
from colo_helper.replication.guest import Guest
from colo_helper.replication.host import COPY_CHUNK_BYTES, Host
from colo_helper.replication.packing import pack
from colo_helper.replication.stopwatch import milliseconds
from colo_helper.replication.tunnel import take
from colo_helper.stream import libxl
from colo_helper.stream.libxl import Emulator, LibxlRecordType

_PROGRESS_S = 1.0
#: Contexts of the helper's progress: its walk over all frames; its later rounds are named "Round N".
_WALK = "Frames"


def stream_head(config: bytes) -> bytes:
    """Return what stands before the image: ``config`` is the guest's configuration as JSON."""
    return (
        libxl.pack_preamble(config) + libxl.pack_header() + libxl.pack_record(LibxlRecordType.LIBXC_CONTEXT)
    )


def stream_tail(physmap: Sequence[tuple[bytes, bytes]], devices: bytes) -> bytes:
    """Return what stands behind the image: the device model's xenstore entries, if it has any, and its state."""
    records = []
    if physmap:
        body = libxl.pack_xenstore_data(Emulator(), physmap)
        records.append(libxl.pack_record(LibxlRecordType.EMULATOR_XENSTORE_DATA, body))
    body = libxl.pack_emulator_context(Emulator(), devices)
    records.append(libxl.pack_record(LibxlRecordType.EMULATOR_CONTEXT, body))
    records.append(libxl.pack_record(LibxlRecordType.END))
    return b"".join(records)


@dataclass
class FirstCopy(SavingParent):
    """Serves the helper of one first copy. ``check`` is called between pieces; what it raises gives the copy up."""

    vm: str
    host: Host
    monitor: Monitor
    conversation: Conversation
    guest: Guest
    downtime_ms: int
    check: Callable[[], None]
    #: Bytes of the stream that have gone, and of the frames that carried them.
    stream_bytes: int = 0
    sent_bytes: int = 0
    pause_ms: float = 0.0
    _stream_fd: int = -1
    _started_s: float = field(default_factory=time.monotonic)
    _reported_s: float = field(default_factory=time.monotonic)
    _stopped_s: float = 0.0
    _round: int = 0
    _pages: int = 0
    _pages_total: int = 0

    def run(self) -> None:
        """Send the whole stream. Raises SessionEndedError, or what the host raised; the guest runs in either case.

        Its dirty frames are logged when this returns. After an error they may be: ``guest.logging`` tells.
        """
        domid = self.guest.domain.domid
        self._send(stream_head(self.host.configuration(self.vm)))
        self.guest.logging = True
        try:
            self._send_image(SaveRequest(domid, FLAG_LIVE | FLAG_FIRST_COPY))
            devices = self.guest.devices.save_state()
            self.guest.resume()
        except BaseException:
            self.guest.let_run()
            raise
        self.pause_ms = milliseconds(time.monotonic() - self._stopped_s)
        self._send(stream_tail(self.host.device_model_entries(domid), devices))

    def _send_image(self, request: SaveRequest) -> None:
        self._stream_fd, stream_in = os.pipe()
        os.set_blocking(self._stream_fd, False)
        try:
            try:
                helper = self.host.start_helper(request, stream_in, NO_FD, self.downtime_ms)
            finally:
                os.close(stream_in)
            outcome = helper.serve(self, {self._stream_fd: self._forward})
        finally:
            os.close(self._stream_fd)
        if not outcome.succeeded:
            self.conversation.check()
            raise SessionEndedError(Cause.LOCAL_ERROR, outcome.error or self.complaint)

    # ------------------------------------------------------------------------------------------------ callbacks

    def suspend(self) -> int:
        """Only the last round is left."""
        self._stopped_s = time.monotonic()
        self.guest.halt()
        return 1

    def progress(self, context: str, what: str, done: int, total: int) -> None:  # noqa: ARG002
        """Take how far the helper is."""
        if what == _WALK:
            self._pages, self._pages_total = done, total
        elif what.startswith("Round "):
            self._round += 1
            self._pages, self._pages_total = done, total

    # -------------------------------------------------------------------------------------------------- the parts

    def _forward(self) -> bool:
        """Send on everything the helper has written by now; returns False at the end of its stream."""
        while data := take(self._stream_fd, COPY_CHUNK_BYTES):
            self._send(data)
        return data is None

    def _send(self, data: bytes) -> None:
        head, payload = pack(data)
        self.sent_bytes += self.conversation.send(Kind.CHUNK, head, (payload,))
        self.stream_bytes += len(data)
        self.conversation.check()
        self.check()
        now = time.monotonic()
        if now - self._reported_s >= _PROGRESS_S:
            self._reported_s = now
            self._report(now - self._started_s)

    def _report(self, elapsed_s: float) -> None:
        rate = self.stream_bytes / elapsed_s if elapsed_s > 0 else 0.0
        self.monitor.progress(
            "copy",
            self.stream_bytes,
            elapsed_s,
            round=self._round,
            pages=self._pages,
            pages_total=self._pages_total,
            bytes_per_s=round(rate),
            left_s=left_s(self._pages, self._pages_total, elapsed_s) if self._round == 0 else None,
        )


def left_s(done: int, total: int, elapsed_s: float) -> float | None:
    """Return how long the rest of a walk takes at the speed so far, in seconds; None when nothing is known yet."""
    return round(elapsed_s * (total - done) / done, 1) if 0 < done <= total else None
