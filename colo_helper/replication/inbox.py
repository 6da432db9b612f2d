"""Everything the replicator's main thread waits for, in one queue.

Frames and losses come from the reading threads of a session, sessions from the listener, requests from the control socket,
and a stop from a signal handler: SimpleQueue.put may be called by all of them, even in the middle of a get.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from colo_helper.channel.session import Session
from colo_helper.channel.wire import Frame, Kind
from colo_helper.control.protocol import Request
from colo_helper.monitor.watch import Watch
from colo_helper.proxy.verdicts import Checkpoint
from colo_helper.replication.packing import PackingError

#: How often who waits for ever shows that it lives, in seconds.
_SIGN_OF_LIFE_S = 60.0
#: Frames that may wait; the next one holds its reader, and so the peer, back. Bounds memory.
FRAME_SLOTS = 4


@dataclass(frozen=True, slots=True)
class _Stop:
    reason: str


@dataclass(frozen=True, slots=True)
class _Trouble:
    sentence: str


@dataclass(frozen=True, slots=True)
class _Arrival:
    source: FrameSource
    frame: Frame


@dataclass(frozen=True, slots=True)
class _Loss:
    source: FrameSource
    sentence: str


class Sink(Protocol):
    """Where frames of one kind go, in the lane's own thread."""

    def put(self, frame: Frame) -> None:
        """Take a frame; raises PackingError."""

    def close(self) -> None:
        """Nothing more comes."""


class FrameSource:
    """Where one session puts its frames; after ``close`` they are thrown away.

    Frames of a kind that was diverted go to an outlet instead, in the lane's own thread, and never wait in the queue.
    """

    def __init__(self, queue: SimpleQueue[object]) -> None:
        self._queue = queue
        self._outlets: dict[Kind, Sink] = {}
        self.slots = threading.Semaphore(FRAME_SLOTS)
        self.closed = False

    def divert(self, kind: Kind, outlet: Sink) -> None:
        """Give frames of ``kind`` to ``outlet`` from now on."""
        self._outlets[kind] = outlet

    def put(self, frame: Frame) -> None:
        """Queue a frame, when there is room, or give it to its outlet."""
        outlet = self._outlets.get(frame.kind)
        if outlet:
            try:
                outlet.put(frame)
            except PackingError as error:
                self.lost(f"The peer's bytes cannot be used: {error}")
            return
        self.slots.acquire()
        if not self.closed:
            self._queue.put(_Arrival(self, frame))

    def lost(self, sentence: str) -> None:
        """Queue the end of the session, behind its frames, and end what comes out of the outlets."""
        self._queue.put(_Loss(self, sentence))
        self._close_outlets()

    def close(self) -> None:
        """Throw away what comes from now on and free a reader that waits for room."""
        self.closed = True
        self.slots.release(FRAME_SLOTS)
        self._close_outlets()

    def _close_outlets(self) -> None:
        for outlet in self._outlets.values():
            outlet.close()


@dataclass
class Inbox:
    """What has arrived and was not handled yet. Only the main thread reads it."""

    frames: deque[Frame] = field(default_factory=deque)
    loss: str = ""
    requests: deque[Request] = field(default_factory=deque)
    #: What operators want of who may run.
    wishes: deque[Request] = field(default_factory=deque)
    sessions: deque[Session] = field(default_factory=deque)
    stop_reason: str = ""
    #: The checkpoint that the packets need; whoever makes it takes it away.
    wanted: Checkpoint | None = None
    #: Why this side cannot go on with the session.
    trouble: str = ""
    #: Operators who asked to stop and wait for it; empty when the service manager did.
    stop_requests: list[Request] = field(default_factory=list)
    #: Sees to it that the main thread looks here.
    watch: Watch = field(default_factory=Watch)
    _stopped_by_service: str = ""
    _queue: SimpleQueue[object] = field(default_factory=SimpleQueue)
    _source: FrameSource | None = None

    def put_request(self, request: Request) -> None:
        """Queue a control request."""
        self._queue.put(request)

    def put_session(self, session: Session) -> None:
        """Queue a session that a primary has begun."""
        self._queue.put(session)

    def put_stop(self, reason: str) -> None:
        """Ask the main thread to stop; may be called from a signal handler."""
        self._queue.put(_Stop(reason))

    def put_wanted(self, checkpoint: Checkpoint) -> None:
        """Ask for a checkpoint; called by the thread that moves packets."""
        self._queue.put(checkpoint)

    def put_trouble(self, sentence: str) -> None:
        """Say that this side cannot go on with the session."""
        self._queue.put(_Trouble(sentence))

    @property
    def stopped_by_service(self) -> bool:
        """Whether the service manager ends this program, which it also does when the host is shut down."""
        return self._stopped_by_service != ""

    def refuse_stops(self, code: str, sentence: str) -> None:
        """What operators have asked until now is not done; what the service manager asked stands."""
        self.wait(0)
        while self.stop_requests:
            self.stop_requests.pop().refuse(code, sentence)
        self.stop_reason = self._stopped_by_service

    def new_source(self) -> FrameSource:
        """Forget an earlier session and return where the next one puts its frames."""
        self.close_source()
        self._source = FrameSource(self._queue)
        return self._source

    def close_source(self) -> None:
        """Forget the session in use, if any."""
        if self._source:
            self._source.close()
            self._source = None
        self.frames.clear()
        self.loss = self.trouble = ""
        self.wanted = None

    def wait(self, timeout_s: float) -> bool:
        """Take what has arrived; waits up to ``timeout_s`` when that is nothing. Tells whether something came."""
        self.watch.look()
        try:
            item = self._queue.get(timeout=max(0.0, timeout_s)) if timeout_s > 0 else self._queue.get_nowait()
        except Empty:
            return False
        self._take(item)
        while True:
            try:
                self._take(self._queue.get_nowait())
            except Empty:
                return True

    def wait_forever(self) -> None:
        """Wait until something comes."""
        while not self.wait(_SIGN_OF_LIFE_S):
            continue

    def next_frame(self, deadline_s: float) -> Frame | None:
        """Return the next frame; None when something else came first, the session is lost or in trouble, or at the deadline."""
        if not (self.frames or self.loss or self.trouble):
            self.wait(deadline_s - time.monotonic())
        return self.frames.popleft() if self.frames else None

    def _take(self, item: object) -> None:
        match item:
            case _Arrival(source, frame):
                source.slots.release()
                if source is self._source:
                    self.frames.append(frame)
            case _Loss(source, sentence):
                if source is self._source:
                    self.loss = sentence
            case _Stop(reason):
                self._stopped_by_service = reason
                self.stop_reason = self.stop_reason or reason
            case Request(verb="stop"):
                self.stop_requests.append(item)
                self.stop_reason = self.stop_reason or "An operator asked to stop."
            case Request(verb="maintenance" | "automatic"):
                self.wishes.append(item)
            case Request():
                self.requests.append(item)
            case Session():
                self.sessions.append(item)
            case _:
                self._take_from_packets(item)

    def _take_from_packets(self, item: object) -> None:
        match item:
            case Checkpoint():
                self.wanted = self.wanted or item
            case _Trouble(sentence):
                self.trouble = self.trouble or sentence
