"""The frames of one channel, exactly once and in order, also when its connection breaks and is made anew.

Frames are numbered. The sender keeps what the other side has not acknowledged and repeats it on the next connection; the
receiver refuses any number but the one that is due. What comes against the way of the frames are acknowledgements.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from colo_helper.channel import wire
from colo_helper.channel.stream import ChannelLostError, FdStream, Patience, read_frame, write_frame
from colo_helper.channel.wire import UNNUMBERED, Frame, Kind, WireError

#: Bytes of frames that may be on their way unacknowledged; more only when a single frame is larger. It is what a sender
#: holds in memory, and more than any link between two hosts of a pair holds (10 Gbit/s and 10 ms are 12 MiB).
WINDOW_BYTES = 16 << 20
#: The receiver acknowledges at the latest after so many bytes, so that the sender never waits for an idle line.
ACK_EVERY_BYTES = WINDOW_BYTES // 4
#: How often a wait asks its caller's patience, in seconds.
_SLICE_S = 0.25
_READ_SLICE_S = 60.0


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a lane tells its session, by its reading thread. ``on_frame`` may block, which holds the peer back."""

    on_frame: Callable[[Frame], None]
    on_beat: Callable[[str, dict[str, Any]], None]
    on_broken: Callable[[str, Break], None]


@dataclass(frozen=True, slots=True)
class Break:
    """Why a connection ended: one sentence; the peer's goodbye, if it said one; whether it broke the protocol."""

    why: str
    goodbye: str = ""
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class _Kept:
    number: int
    buffers: list[bytes]
    size: int


class Lane:
    """Both ways of one channel. One thread at a time may ``attach``; ``send`` and ``beat`` may be called by several."""

    def __init__(self, name: str, hooks: Hooks) -> None:
        self.name = name
        self.broken_since: float | None = time.monotonic()
        self.why_broken = "it was not made yet"
        self._hooks = hooks
        #: Guards everything below but the writing itself; notified when frames were acknowledged or delivered.
        self._state = threading.Condition()
        self._writing = threading.Lock()
        self._stream: FdStream | None = None
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self._sent = 0
        self._last_write = 0.0
        self._received = 0
        self._delivered = 0
        self._handing_on = False
        self._break_reason = ""
        self._goodbye = ""
        self._unacknowledged_bytes = 0
        self._heard_before = 0.0

    @property
    def last_read(self) -> float:
        """Monotonic time when something last came in, or the connection was made; 0 before that.

        While a frame is handed on, the silence is ours.
        """
        stream = self._stream
        if stream and self._handing_on:
            return time.monotonic()
        return max(self._heard_before, stream.last_read if stream else 0.0)

    # ------------------------------------------------------------------------------------------------ connections

    def detach(self) -> int:
        """Give up the present connection, if any; returns how many frames of the peer have been received for good."""
        with self._state:
            stream, self._stream = self._stream, None
            if stream:
                self._heard_before = stream.last_read
                self.broken_since = time.monotonic()
                stream.close()  # its reading thread releases it
            return self._received

    def break_off(self, why: str) -> None:
        """Give up a connection that is there and good for nothing; the lane is broken then for this reason."""
        with self._state:
            stream, self._break_reason = self._stream, why
            if stream:
                stream.close()

    def attach(self, stream: FdStream, peer_received: int, first: Sequence[bytes] = ()) -> None:
        """Go on over a new connection, after ``detach``: write ``first``, then what the peer has not received.

        Raises WireError when the peer has not what it acknowledged before, ChannelLostError when the connection broke
        meanwhile; the stream is then still the caller's.
        """
        with self._writing:
            self._forget_up_to(peer_received)
            with self._state:
                missing = list(self._kept)
            if peer_received + len(missing) != self._sent:
                raise WireError(
                    f"The peer has {peer_received} frames of the {self.name} channel, of which {self._sent} were sent; "
                    f"only the last {len(missing)} can be repeated."
                )
            write_frame(stream, list(first), _endless, _READ_SLICE_S)
            with self._state:
                self._stream = stream
                self._break_reason = ""
                self._heard_before = time.monotonic()
                self.broken_since = None
            # Read at once: the peer repeats as well, and two that only write would wait for each other.
            threading.Thread(
                target=self._read_loop, args=(stream,), name=f"lane-{self.name}", daemon=True
            ).start()
            for kept in missing:
                self._write(stream, kept.buffers, _endless)

    def close(self, goodbye: str, within_s: float = 0.0) -> None:
        """End for good, with a goodbye (one sentence) if it can be said within a time."""
        deadline = time.monotonic() + within_s

        def limited() -> None:
            if time.monotonic() > deadline:
                raise ChannelLostError("There was no time left for a goodbye.")

        if self._writing.acquire(timeout=within_s):
            try:
                stream = self._stream
                if stream and (within_s or stream.takes_more()):
                    self._write(stream, wire.encode(Kind.BYE, {"reason": goodbye}), limited)
            finally:
                self._writing.release()
        self.detach()

    # ---------------------------------------------------------------------------------------------------- sending

    def send(
        self, kind: Kind, head: dict[str, Any] | None, parts: Sequence[bytes], patience: Patience
    ) -> int:
        """Send one numbered frame; returns its bytes.

        Waits while WINDOW_BYTES are unacknowledged, and asks ``patience`` meanwhile, which raises ChannelLostError. A
        connection that breaks is no error here: the frame is kept for the next one.
        """
        self._await_room(sum(len(part) for part in parts), patience)
        with self._writing:
            buffers = wire.encode(kind, head, parts, self._sent + 1)
            size = sum(len(buffer) for buffer in buffers)
            with self._state:
                self._sent += 1
                self._kept.append(_Kept(self._sent, buffers, size))
                self._kept_bytes += size
                stream = self._stream
            if stream:
                self._write(stream, buffers, patience)
        return size

    def beat(self, head: dict[str, Any], idle_s: float) -> None:
        """Say that we live, unless something was written within ``idle_s`` or is being written."""
        if time.monotonic() - self._last_write < idle_s or not self._writing.acquire(blocking=False):
            return
        try:
            stream = self._stream
            if stream and stream.takes_more():
                self._write(
                    stream,
                    wire.encode(Kind.BEAT, {**head, "received": self._take_acknowledgement()}),
                    _endless,
                )
        finally:
            self._writing.release()

    def _write(self, stream: FdStream, buffers: list[bytes], patience: Patience) -> None:
        try:
            write_frame(stream, buffers, patience, _SLICE_S)
            self._last_write = time.monotonic()
        except ChannelLostError:
            # Half a frame may be out, so the reading thread has to say that it is broken; but the peer may have said why.
            stream.close_when_empty()

    def _await_room(self, size: int, patience: Patience) -> None:
        with self._state:
            while self._kept and self._kept_bytes + size > WINDOW_BYTES:
                if not self._state.wait(_SLICE_S):
                    patience()

    def _forget_up_to(self, number: int) -> None:
        with self._state:
            while self._kept and self._kept[0].number <= number:
                self._kept_bytes -= self._kept.popleft().size
            self._state.notify_all()

    # -------------------------------------------------------------------------------------------------- receiving

    def _read_loop(self, stream: FdStream) -> None:
        try:
            while True:
                self._handle(stream, read_frame(stream, _endless, _READ_SLICE_S))
        except ChannelLostError as error:
            end = Break(self._break_reason or str(error), goodbye=self._goodbye)
        except WireError as error:
            end = Break(str(error), fatal=True)
        stream.close()
        with self._writing:  # no writer has it any more
            with self._state:
                ours = self._stream is stream
                if ours:
                    self._stream = None
                    self._heard_before = stream.last_read
                    # One that was given up for its silence has been of no use since it was heard last.
                    self.broken_since = stream.last_read if self._break_reason else time.monotonic()
                    self.why_broken = end.why
            stream.release()
        if ours:
            self._hooks.on_broken(self.name, end)

    def _handle(self, stream: FdStream, frame: Frame) -> None:
        if frame.kind in UNNUMBERED:
            self._handle_unnumbered(frame)
            return
        with self._state:
            if stream is not self._stream:
                raise ChannelLostError("The channel was made anew.")  # the peer repeats this frame there
            if frame.number != self._received + 1:
                raise WireError(
                    f"The peer sent frame {frame.number} where {self._received + 1} was due on the {self.name} channel."
                )
            self._received = frame.number
            # The reader of an earlier connection may still be handing on the frame before.
            self._state.wait_for(lambda: self._delivered == frame.number - 1)
        self._handing_on = True
        self._hooks.on_frame(frame)
        self._handing_on = False
        with self._state:
            self._delivered = frame.number
            self._unacknowledged_bytes += sum(len(part) for part in frame.parts)
            due = self._unacknowledged_bytes >= ACK_EVERY_BYTES
            self._state.notify_all()
        if due:
            with self._writing:
                self._write(
                    stream, wire.encode(Kind.ACK, {"received": self._take_acknowledgement()}), _endless
                )

    def _handle_unnumbered(self, frame: Frame) -> None:
        if frame.kind in (Kind.OPEN, Kind.OPENED):
            raise WireError(f"The peer sent {frame.kind.name} on a connection that is open.")
        if frame.kind is Kind.BYE:
            self._goodbye = str(frame.head.get("reason"))
            return
        self._acknowledged(frame.head.get("received"))
        if frame.kind is Kind.BEAT:
            self._hooks.on_beat(self.name, frame.head)

    def _take_acknowledgement(self) -> int:
        with self._state:
            self._unacknowledged_bytes = 0
            return self._delivered

    def _acknowledged(self, number: object) -> None:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= self._sent:
            raise WireError(
                f"The peer acknowledged {number!r} frames of {self._sent} sent on the {self.name} channel."
            )
        self._forget_up_to(number)


def _endless() -> None:
    """Wait as long as it takes: whoever gives the connection up closes it, which wakes the waiter."""
