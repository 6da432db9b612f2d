"""One session with the peer: frames out, frames in, and every way it can end as one exception."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from colo_helper.channel.session import Session
from colo_helper.channel.stream import ChannelLostError
from colo_helper.channel.wire import Frame, Kind
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.inbox import Inbox, Sink
from colo_helper.replication.packing import PackingError
from colo_helper.traffic.framing import FramingError
from colo_helper.traffic.moves import Moves, unpack_moves
from colo_helper.traffic.sides import Side

#: How long the peer may take over one step of a checkpoint while it gives signs of life, in seconds. Steps take
#: milliseconds; the limit only ends a peer that is alive and stuck.
STEP_TIMEOUT_S = 120.0
#: The same for the first copy: the peer's toolstack has to build a domain.
COPY_TIMEOUT_S = 600.0
#: How long a peer's last word may take to be read after the first channel broke, in seconds.
_HEAR_OUT_S = 0.5
#: How often a wait without a deadline lets its caller look at the clock, in seconds.
_LOOK_UP_S = 30.0

_ENDINGS = {
    Kind.REFUSE: Cause.PEER_REFUSED,
    Kind.ABORT: Cause.ABORT,
    Kind.END: Cause.END,
    Kind.RENEW: Cause.RENEW,
}
#: What a refusal comes to, by its code.
_REFUSALS = {"failed": Cause.PEER_FAILED, "taken_over": Cause.SUCCEEDED}


class Conversation:
    """Talks with the peer. Every method may raise SessionEndedError."""

    def __init__(self, session: Session, inbox: Inbox) -> None:
        self._inbox = inbox
        #: Whether the peer knows that a copy may be kept of a guest that has ended.
        self.peer_keeps = False
        self._source = inbox.new_source()
        self._session = session
        session.start(self._source.put, self._source.lost)

    def divert(self, kind: Kind, outlet: Sink) -> None:
        """Let frames of one kind flow past the inbox."""
        self._source.divert(kind, outlet)

    def carry_packets(self, side: Side[Any]) -> None:
        """Give the peer's packets to one side's traffic from now on."""
        self.divert(Kind.PACKETS, PacketsFromPeer(side))

    def send_packets(self, epoch: int, nic: int, packed: bytes) -> None:
        """Send packets; called by a thread of its own. Raises ChannelLostError."""
        self._session.send(Kind.PACKETS, {"epoch": epoch, "nic": nic}, (packed,))

    def figures(self) -> dict[str, Any]:
        """Return what is known of the channels; see channel.session."""
        return self._session.figures()

    def idle_now(self) -> None:
        """Tell that nothing urgent is on its way for the moment."""
        self._session.idle()

    @property
    def loss(self) -> str:
        """Why the session is gone, or an empty string."""
        self._inbox.wait(0)
        return self._inbox.loss

    def gets_on(self) -> None:
        """Tell that what the main thread waits for elsewhere makes progress; may be called by any thread."""
        # A failure of the service manager's socket is no matter of the thread that calls.
        with suppress(OSError):
            self._inbox.watch.look()

    def send(self, kind: Kind, head: dict[str, Any] | None = None, parts: Sequence[bytes] = ()) -> int:
        """Send one frame; returns its bytes."""
        try:
            return self._session.send(kind, head, parts)
        except ChannelLostError as error:
            self._hear_out()
            raise SessionEndedError(Cause.PEER_LOST, str(error)) from error

    def _hear_out(self) -> None:
        """After the session was lost: a peer that gave up may have said why, which says more."""
        deadline = time.monotonic() + _HEAR_OUT_S
        while not self._inbox.loss and self._inbox.wait(deadline - time.monotonic()):
            self.check()
        self.check()

    def tell(self, kind: Kind, head: dict[str, Any]) -> str:
        """Send a last word; returns why it could not be said, or an empty string."""
        try:
            self._session.send(kind, head)
        except ChannelLostError as error:
            return str(error)
        return ""

    def check(self) -> None:
        """Raise when the session has ended; frames that wait stay."""
        self._inbox.wait(0)
        for frame in self._inbox.frames:
            self._raise_ending(frame)
        if self._inbox.loss and not self._inbox.frames:
            raise SessionEndedError(Cause.PEER_LOST, self._inbox.loss)

    def expect(
        self,
        *kinds: Kind,
        timeout_s: float | None = STEP_TIMEOUT_S,
        interrupted: Callable[[], None] | None = None,
        regardless: bool = False,
    ) -> Frame:
        """Return the next frame, which must be one of ``kinds``.

        ``timeout_s`` None waits as long as the peer gives signs of life. ``interrupted`` is called before each look into the
        inbox, for what may have arrived there beside frames. ``regardless``: of what fails on this side meanwhile, because the
        answer alone decides.
        """
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if interrupted:
                interrupted()
            frame = self._inbox.next_frame(min(deadline, time.monotonic() + _LOOK_UP_S))
            if frame:
                self._raise_ending(frame)
                if frame.kind is Kind.STOP:
                    self._inbox.stop_reason = self._inbox.stop_reason or str(frame.head.get("reason"))
                elif frame.kind in kinds:
                    return frame
                else:
                    wanted = " or ".join(kind.name for kind in kinds)
                    raise SessionEndedError(
                        Cause.PEER_LOST, f"The peer sent {frame.kind.name} where {wanted} was due."
                    )
            else:
                if regardless:
                    self._inbox.trouble = ""
                self._raise_loss()
                if time.monotonic() >= deadline:
                    wanted = " or ".join(kind.name for kind in kinds)
                    raise SessionEndedError(
                        Cause.PEER_LOST,
                        f"The peer is alive but did not send {wanted} within {timeout_s:g} s.",
                    )

    def idle(self, wait_s: float) -> None:
        """Wait until something arrives, at most ``wait_s``, while no frame is due."""
        frame = self._inbox.next_frame(time.monotonic() + wait_s)
        if frame:
            self._raise_ending(frame)
            if frame.kind is not Kind.STOP:
                raise SessionEndedError(
                    Cause.PEER_LOST, f"The peer sent {frame.kind.name} where nothing was due."
                )
            self._inbox.stop_reason = self._inbox.stop_reason or str(frame.head.get("reason"))
        else:
            self._raise_loss()

    def _raise_loss(self) -> None:
        """Raise when no more frames can come, or this side cannot go on."""
        if self._inbox.loss:
            raise SessionEndedError(Cause.PEER_LOST, self._inbox.loss)
        if self._inbox.trouble:
            raise SessionEndedError(Cause.LOCAL_ERROR, self._inbox.trouble)

    def close(self) -> None:
        """End the session; nothing of it arrives any more."""
        self._inbox.close_source()
        self._session.close()

    @staticmethod
    def _raise_ending(frame: Frame) -> None:
        cause = _ENDINGS.get(frame.kind)
        if cause:
            if cause is Cause.PEER_REFUSED:
                cause = _REFUSALS.get(str(frame.head.get("code")), cause)
            if cause is Cause.ABORT and frame.head.get("guest") == "ended":
                cause = Cause.GUEST_DIED
            reason = frame.head.get("error") or frame.head.get("reason") or "no reason given"
            raise SessionEndedError(cause, str(reason))


def number(head: dict[str, Any], key: str) -> int:
    """Return a natural number of a frame's head; raises SessionEndedError when it is something else."""
    value = head.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise SessionEndedError(Cause.PEER_LOST, f"The peer's frame has no number '{key}': {value!r}.")
    return value


def moves_in(part: bytes) -> Moves:
    """Return the connections that the peer has taken over; raises SessionEndedError when they cannot be understood."""
    try:
        return unpack_moves(part)
    except ValueError as error:
        raise SessionEndedError(
            Cause.PEER_LOST, f"What the peer says of connections is damaged: {error}"
        ) from error


class PacketsFromPeer:
    """A sink for PACKETS: hands them to one side's traffic. Raises PackingError."""

    def __init__(self, side: Side[Any]) -> None:
        self._side = side

    def put(self, frame: Frame) -> None:
        """See Sink."""
        try:
            self._side.from_peer(
                number(frame.head, "epoch"), number(frame.head, "nic"), b"".join(frame.parts)
            )
        except (FramingError, SessionEndedError) as error:
            raise PackingError(str(error)) from error
        except Exception as error:  # (the lane's thread must end the session, not itself)
            raise PackingError(f"A packet cannot be handled: {error!r}") from error

    def close(self) -> None:
        """See Sink."""
