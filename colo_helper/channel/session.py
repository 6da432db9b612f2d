"""The three lanes of one pair of replicators: signs of life, and connections that are made anew when they break.

Both sides run the same code; only the primary has an ``Opener``, because it is the one that connects. The session is lost
when the peer was silent on every path for the whole timeout, when the forward or the back channel stayed broken for as
long, or when the peer refuses to go on with it. A broken heartbeat alone costs nothing but its warning.

A beat on the heartbeat lane is ``{n, epoch, t_us, echo_us, held_us, received}``: its number, the sender's epoch and clock,
and the clock of the peer's last beat with how long that has lain here. Clocks are monotonic and only come back to the
side they are from. On the other lanes a beat says ``{received}`` only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from colo_helper.channel.lane import Break, Hooks, Lane
from colo_helper.channel.liveness import Life, Liveness, RoundTrips
from colo_helper.channel.peer import HEARTBEAT
from colo_helper.channel.stream import ChannelLostError, FdStream, Patience
from colo_helper.channel.wire import Frame, Kind, WireError, encode

FORWARD, BACK = "forward", "back"
LANES = (FORWARD, BACK, HEARTBEAT)
#: Without these a session cannot go on; without the heartbeat it can.
NEEDED = (FORWARD, BACK)
DEFAULT_MISSES = 5
#: Looks at the clock in one interval between beats.
_LOOKS = 2
#: Wait between two attempts to make a channel anew, in seconds: doubled from the first to the last.
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 1.0
_CLOSE_S = 10.0
#: How long an orderly end may wait for room to say so, in seconds.
_GOODBYE_S = 1.0


class Opener(Protocol):
    """Makes connections of a session, on the primary."""

    def open(
        self, channel: str, session: str, received: int, resumes: bool, patience: Patience
    ) -> tuple[FdStream, int]:
        """Return a connection and how many frames the peer has; raises ChannelLostError.

        ``received`` is how many frames of the peer we have; ``resumes``: the peer must know the session. ``patience`` is
        called while nothing happens and raises ChannelLostError when nobody wants the connection any more.
        """

    def idle(self) -> None:
        """No checkpoint is on its way: a good moment for what would disturb one."""

    def close(self) -> None:
        """Give up everything that was opened and is being opened."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A peer is dead after ``timeout_s`` of silence on every path, which is ``misses`` beats."""

    timeout_s: float
    misses: int = DEFAULT_MISSES

    @property
    def interval_s(self) -> float:
        """Time between two beats."""
        return self.timeout_s / self.misses


class Session:
    """``start`` it once the needed lanes are attached; then ``send`` until it is closed or lost.

    ``stuck`` returns why this side does not get on, empty while it does: a peer that hears beats would wait for it for ever.
    """

    def __init__(
        self,
        name: str,
        sends_on: str,
        timing: Timing,
        *,
        opener: Opener | None = None,
        epoch: Callable[[], int] = lambda: 0,
        event: Callable[[str, str], None] = lambda _kind, _sentence: None,
        stuck: Callable[[], str] = lambda: "",
    ) -> None:
        self.name = name
        self._timing = timing
        self._opener = opener
        self._epoch = epoch
        self._event = event
        self._stuck = stuck
        hooks = Hooks(self._frame, self._beat, self._broken)
        self._lanes = {lane: Lane(lane, hooks) for lane in LANES}
        self._outgoing = self._lanes[sends_on]
        self._incoming = next(lane for lane in NEEDED if lane != sends_on)
        self._on_frame: Callable[[Frame], None] = lambda _frame: None
        self._on_lost: Callable[[str], None] = lambda _sentence: None
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._ended = threading.Event()
        self._loss = ""
        self._watcher: threading.Thread | None = None
        self._liveness = Liveness(LANES, timing.interval_s, timing.misses, time.monotonic())
        self._life = Life.ALIVE
        self._round_trips = RoundTrips()
        self._beats_sent = 0
        self._started_s = 0.0
        self._peer_beat: tuple[int, float] | None = None
        self._peer_epoch = 0
        self._opened = dict.fromkeys(LANES, 0)

    # ------------------------------------------------------------------------------------------------ connections

    @property
    def complete(self) -> bool:
        """Whether the needed lanes have a connection."""
        return all(self._lanes[lane].broken_since is None for lane in NEEDED)

    @property
    def ended(self) -> bool:
        """Whether it was closed or lost."""
        return self._ended.is_set()

    def attach(self, channel: str, stream: FdStream, peer_received: int) -> None:
        """Take a connection that the peer has opened and answer it.

        Raises ChannelLostError or WireError; the stream is then still the caller's.
        """
        lane = self._lanes[channel]
        received = lane.detach()
        lane.attach(stream, peer_received, encode(Kind.OPENED, {"received": received}))
        self._count_opened(channel)

    def open(self) -> None:
        """Make the needed connections, on the primary; raises ChannelLostError when one fails.

        The heartbeat follows in the background after ``start``: a second network that is down costs no time here.
        """
        for channel in NEEDED:
            self._open(channel)

    def _open(self, channel: str) -> None:
        assert self._opener is not None
        lane = self._lanes[channel]
        resumes = self._started.is_set()
        stream, peer_received = self._opener.open(channel, self.name, lane.detach(), resumes, self._patience)
        try:
            self._patience()
            lane.attach(stream, peer_received)
        except WireError as error:
            stream.release()
            raise ChannelLostError(str(error), lasting=True) from error
        except ChannelLostError:
            stream.release()
            raise
        self._count_opened(channel)

    def start(self, on_frame: Callable[[Frame], None], on_lost: Callable[[str], None]) -> None:
        """Hand frames on from now; ``on_lost`` is called once, with one sentence, unless ``close`` comes first."""
        with self._lock:
            self._on_frame, self._on_lost = on_frame, on_lost
            lost_before = self._loss
        if lost_before:
            on_lost(lost_before)
        self._started_s = time.monotonic()
        self._liveness = Liveness(LANES, self._timing.interval_s, self._timing.misses, self._started_s)
        self._started.set()
        self._watcher = _run("session-watch", self._watch)
        if self._opener:
            for channel, lane in self._lanes.items():
                if lane.broken_since is not None:
                    _run(f"session-reopen-{channel}", partial(self._reopen, lane))

    def close(self) -> None:
        """End all lanes. Nothing is handed on any more; an attempt to make a channel anew ends by itself."""
        self._ended.set()
        self._started.set()
        for lane in self._lanes.values():
            lane.close("The peer closed the session.", _GOODBYE_S)
        if self._opener:
            self._opener.close()
        if self._watcher and self._watcher is not threading.current_thread():
            self._watcher.join(_CLOSE_S)

    # ---------------------------------------------------------------------------------------------------- sending

    def send(self, kind: Kind, head: dict[str, Any] | None = None, parts: Sequence[bytes] = ()) -> int:
        """Send one frame and return its bytes; raises ChannelLostError when the session is lost."""
        self._patience()
        return self._outgoing.send(kind, head, parts, self._patience)

    def _patience(self) -> None:
        if self._ended.is_set():
            raise ChannelLostError(self._loss or "The session was closed on this side.")

    def idle(self) -> None:
        """Nothing urgent is on its way for the moment."""
        if self._opener:
            self._opener.idle()

    def figures(self) -> dict[str, Any]:
        """Return what an operator wants to know of the channels: life, round trips, broken and reopened ones."""
        return {
            "life": self._life.name.lower(),
            "peer_epoch": self._peer_epoch,
            "round_trip": self._round_trips.figures(),
            "broken": {
                name: lane.why_broken for name, lane in self._lanes.items() if lane.broken_since is not None
            },
            "reopened": {name: max(0, opened - 1) for name, opened in self._opened.items()},
        }

    # -------------------------------------------------------------------------- hooks of the lanes' reading threads

    def _frame(self, frame: Frame) -> None:
        self._started.wait()
        if not self._ended.is_set():
            self._on_frame(frame)

    def _beat(self, channel: str, head: dict[str, Any]) -> None:
        if channel != HEARTBEAT:
            return
        now = time.monotonic()
        sent_us, echo_us, held_us = (head.get(key) for key in ("t_us", "echo_us", "held_us"))
        if isinstance(sent_us, int):
            self._peer_beat = (sent_us, now)
        if isinstance(epoch := head.get("epoch"), int):
            self._peer_epoch = epoch
        if isinstance(echo_us, int) and isinstance(held_us, int):
            self._round_trips.add(max(0.0, now * 1e3 - (echo_us + held_us) / 1e3))

    def _broken(self, channel: str, end: Break) -> None:
        if self._ended.is_set():
            return
        if end.fatal:
            self._lose(f"The peer broke the protocol: {end.why}")
        elif end.goodbye:
            if channel == self._incoming:  # everything it had to say has been handed on
                self._lose(end.goodbye)
        else:
            self._event("channel_broken", f"The {channel} channel broke: {end.why}")
            if self._opener and self._started.is_set():
                _run(f"session-reopen-{channel}", partial(self._reopen, self._lanes[channel]))

    # ----------------------------------------------------------------------------------------------- own threads

    def _reopen(self, lane: Lane) -> None:
        """Try until the channel is there again or the session ends."""
        retry_s, said = _FIRST_RETRY_S, False
        while not self._ended.is_set():
            try:
                self._open(lane.name)
            except ChannelLostError as error:
                if not (self._opened[lane.name] or said):
                    said = True
                    self._event("channel_broken", f"There is no {lane.name} channel yet: {error}")
                lane.why_broken = str(error)
                if error.lasting:
                    if lane.name in NEEDED:
                        self._lose(f"The {lane.name} channel was not made again: {error}")
                    return
                self._ended.wait(retry_s)
                retry_s = min(_LAST_RETRY_S, retry_s * 2)
            else:
                return

    def _count_opened(self, channel: str) -> None:
        self._opened[channel] += 1
        if self._opened[channel] > 1 and not self._ended.is_set():
            self._event("channel_reopened", f"The {channel} channel was made again and goes on where it was.")

    def _watch(self) -> None:
        while not self._ended.wait(self._timing.interval_s / _LOOKS):
            now = time.monotonic()
            for name, lane in self._lanes.items():
                if lane.last_read:
                    self._liveness.heard(name, lane.last_read)
            verdict = self._liveness.look(now)
            if verdict.life is not self._life:
                self._life = verdict.life
                if verdict.life is not Life.DEAD:
                    self._event(f"peer_{verdict.life.name.lower()}", verdict.sentence)
            if verdict.life is Life.DEAD:
                self._lose(verdict.sentence)
                return
            self._break_silent_lanes(now)
            if gone := self._gone_for_good(now) or self._stuck():
                self._lose(gone)
                return
            self._send_beats(now)

    def _break_silent_lanes(self, now: float) -> None:
        """A connection over which nothing comes while the peer is heard elsewhere leads nowhere, though nothing closed it.

        It is given up in half of the time, so that the other half is left to make it anew. Nobody sends beats before the
        session has started, and on a slow host it takes a while to make the second channel after the first.
        """
        limit_s = self._timing.timeout_s / 2
        if now - max(lane.last_read for lane in self._lanes.values()) > self._timing.interval_s:
            return  # nor is it heard elsewhere
        for lane in self._lanes.values():
            silence_s = now - max(lane.last_read, self._started_s)
            if lane.broken_since is None and silence_s > limit_s:
                lane.break_off(
                    f"Nothing came over it for {silence_s:.1f} s, while the peer was heard elsewhere."
                )

    def _gone_for_good(self, now: float) -> str:
        for name in NEEDED:
            lane = self._lanes[name]
            since = lane.broken_since
            if since is not None and now - since > self._timing.timeout_s:
                return (
                    f"The {name} channel could not be made again for {now - since:.1f} s: {lane.why_broken}"
                )
        return ""

    def _send_beats(self, now: float) -> None:
        for name, lane in self._lanes.items():
            head: dict[str, Any] = {}
            idle_s = self._timing.interval_s * 0.75
            if name == HEARTBEAT:
                self._beats_sent += 1
                head = {"n": self._beats_sent, "epoch": self._epoch(), "t_us": int(now * 1e6)}
                if self._peer_beat:
                    theirs_us, came = self._peer_beat
                    head |= {"echo_us": theirs_us, "held_us": int((now - came) * 1e6)}
                idle_s = self._timing.interval_s * 0.4  # with two looks an interval: at every second one
            lane.beat(head, idle_s)

    def _lose(self, sentence: str) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            self._loss = sentence
            self._ended.set()
            on_lost = self._on_lost
        on_lost(sentence)
        for lane in self._lanes.values():
            lane.close(f"The peer gave the session up: {sentence}")


def _run(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
