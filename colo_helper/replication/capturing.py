"""A capture of the packets that are compared, from one checkpoint to another, when an operator asks for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import Monitor
from colo_helper.proxy.capture import Capture
from colo_helper.replication.config import Config
from colo_helper.traffic.sides import PrimarySide, Untouched

#: Its name beside the state; the next one takes its place.
FILE = "capture.pcapng"
#: What it may take of memory; a file is about as large.
_MOST_BYTES = 32 << 20


@dataclass
class Capturing:
    """One at a time. It begins and ends while the guest stands still, so that a checkpoint is whole or not in it."""

    config: Config
    monitor: Monitor
    packets: PrimarySide | Untouched
    _asked: Request | None = None
    _capture: Capture | None = None
    _until_s: float = 0.0
    _over: bool = False

    def ask(self, request: Request) -> None:
        """Take a request; the checkpoint that comes is the first one in it."""
        if not (self.config.comparing and isinstance(self.packets, PrimarySide)):
            request.refuse(
                "not_compared",
                f"Packets of {self.config.vm} are not compared: its output is '{self.config.output}'.",
            )
        elif self._asked is request:
            return  # the first checkpoint of a session records nothing, so it is asked for once more
        elif self._asked:
            request.refuse(
                "busy", f"Packets of {self.config.vm} are being captured already; wait for its end."
            )
        else:
            self._asked = request

    def before_cut(self) -> None:
        """The guest stands still for a checkpoint."""
        if self._asked and not self._capture and isinstance(self.packets, PrimarySide):
            self._until_s = time.monotonic() + self._asked.seconds
            self._capture = self.packets.capture(_MOST_BYTES)

    def after_cut(self) -> None:
        """The checkpoint is in it."""
        if self._capture and (self._capture.full or time.monotonic() >= self._until_s):
            self._stop()

    def checkpointed(self) -> None:
        """The guest runs."""
        if self._over:
            self._finish("")

    def close(self) -> None:
        """The session is over: what there is will do."""
        if self._capture:
            self._stop()
            self._finish("The session has ended.")
        elif self._asked:
            self._asked.refuse("not_replicating", "The session ended before a checkpoint was made.")

    def _stop(self) -> None:
        if isinstance(self.packets, PrimarySide):
            self.packets.end_capture()
        self._over = True

    def _finish(self, why: str) -> None:
        capture, request = self._capture, self._asked
        self._capture, self._asked, self._over = None, None, False
        assert capture
        assert request
        # Neither the next checkpoint nor the end of a session waits for the disk.
        threading.Thread(target=_keep, args=(self.monitor, capture, request, why), name="capture").start()


def _keep(monitor: Monitor, capture: Capture, request: Request, why: str) -> None:
    """Write a capture that nobody adds to any more, and answer."""
    try:
        path = monitor.keep(FILE, capture.write)
    except OSError as error:
        request.refuse(
            "not_written", f"{capture.packets} packets were captured, and cannot be kept: {error}."
        )
        return
    if capture.full:
        why = f"No more than {_MOST_BYTES >> 20} MiB are kept."
    sentence = f"{capture.packets} packets were captured into {path}. {why}".rstrip()
    monitor.event("captured", sentence)
    request.succeed(
        {"path": str(path), "packets": capture.packets, "full": capture.full, "sentence": sentence}
    )
