"""The two channels of one session, with a heartbeat: whoever is silent for too long counts as lost.

A thread reads the incoming channel and hands frames on; another sends a beat whenever nothing else was sent for a
quarter of the peer's timeout. So a side that is busy (hashing, finishing a restore) is not mistaken for a dead one, and
a frozen host or a cut cable is noticed by silence alone. All clocks are monotonic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from colo_helper.channel import wire
from colo_helper.channel.stream import ByteStream, ChannelLostError, read_frame, write_frame
from colo_helper.channel.wire import Frame, Kind, WireError

#: Beats in one timeout of the peer.
BEATS_PER_TIMEOUT = 4
#: More time for the peer's first word, in seconds: sshd and the forced command have to start there.
FIRST_WORD_S = 30.0


class Link:
    """Sends on one channel and receives on the other.

    ``on_frame`` is called by the reading thread for every frame but beats; it may block, which holds the peer back.
    ``on_lost`` is called once by the reading thread, with one sentence, when the channel is gone or the peer was
    silent for ``timeout_s``.
    """

    def __init__(
        self,
        outgoing: ByteStream,
        incoming: ByteStream,
        timeout_s: float,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._timeout_s = timeout_s
        self._slice_s = timeout_s / BEATS_PER_TIMEOUT
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._send_lock = threading.Lock()
        self._started = time.monotonic()
        self._free_since = self._started
        self._last_sent = time.monotonic()
        self._handing_on = False
        self._closing = threading.Event()
        self.bytes_sent = 0
        self._threads = [
            threading.Thread(target=self._read_loop, name="link-reader", daemon=True),
            threading.Thread(target=self._beat_loop, name="link-beat", daemon=True),
        ]

    def start(self) -> None:
        """Start the two threads."""
        for thread in self._threads:
            thread.start()

    def send(self, kind: Kind, head: dict[str, Any] | None = None, parts: Sequence[bytes] = ()) -> int:
        """Send one frame and return its bytes; raises ChannelLostError when the peer is gone or silent."""
        buffers = wire.encode(kind, head, parts)
        with self._send_lock:
            size = write_frame(self._outgoing, buffers, self._check_silence, self._slice_s)
            self._last_sent = time.monotonic()
            self.bytes_sent += size
        return size

    def close(self) -> None:
        """End both threads and close both channels."""
        self._closing.set()
        self._incoming.close()
        self._outgoing.close()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(self._timeout_s)

    def _check_silence(self) -> None:
        heard = self._incoming.last_read
        limit = self._timeout_s if heard > self._started else self._timeout_s + FIRST_WORD_S
        silence = time.monotonic() - max(heard, self._free_since)
        if silence > limit and not self._handing_on:
            raise ChannelLostError(f"The peer has been silent for {silence:.1f} s.")

    def _read_loop(self) -> None:
        try:
            while True:
                frame = read_frame(self._incoming, self._check_silence, self._slice_s)
                if frame.kind is not Kind.BEAT:
                    self._handing_on = True
                    self._on_frame(frame)
                    self._free_since = time.monotonic()
                    self._handing_on = False
        except (ChannelLostError, WireError) as error:
            if not self._closing.is_set():
                self._on_lost(str(error))

    def _beat_loop(self) -> None:
        while not self._closing.wait(self._slice_s / 2):
            if time.monotonic() - self._last_sent < self._slice_s:
                continue
            try:
                self.send(Kind.BEAT)
            except ChannelLostError:
                return  # the reader and the next send report it, each with its own sentence
