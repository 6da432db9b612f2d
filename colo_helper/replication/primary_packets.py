"""The primary's hold on its guest's packets, over all sessions with its secondary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.guest import LOCAL_ERRORS, Guest, attempt
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.moved import left_behind
from colo_helper.traffic.moves import Moves
from colo_helper.traffic.pump import SendFrames
from colo_helper.traffic.sides import PrimarySide, Untouched, to_nobody


@dataclass(slots=True)
class PrimaryPackets:
    """Only ``failure`` is written by another thread. ``permits`` tells whether output may leave now."""

    config: Config
    monitor: Monitor
    inbox: Inbox
    permits: Callable[[], bool]
    side: PrimarySide | Untouched = field(default_factory=Untouched)
    #: Whether the guest here was stopped for good, off the network, because another one is the VM.
    off_network: bool = False
    #: Why packets are not moved any more by what has hold of them; empty while they are.
    failure: str = ""

    def take_hold(self, conversation: Conversation, guest: Guest) -> PrimarySide | Untouched:
        """Take hold of the guest's packets for a session, if they are not to leave as they like."""
        if self.config.output == "free":
            self.side = Untouched()
            return self.side
        moves = self.moves(guest)
        self.let_flow()
        self.side = self._side(guest, conversation.send_packets, moves)
        conversation.carry_packets(self.side)
        return self.side

    def go_on_moving(self, guest: Guest) -> None:
        """Serve the connections that an earlier takeover has moved, while there is no session."""
        held = isinstance(self.side, PrimarySide)
        if self.config.output != "free" and not held and (moves := self.moves(guest)):
            self.side = self._side(guest, to_nobody, moves)

    def moves(self, guest: Guest) -> Moves:
        """Return the connections of the guest that an earlier takeover has moved."""
        if isinstance(self.side, PrimarySide):
            return self.side.moves()
        try:
            return guest.moved.read()
        except LOCAL_ERRORS as error:
            self.monitor.event("moved_connections", str(error))  # no reason to leave the VM unprotected
            return []

    def part(self, guest: Guest, *, stays: bool, runs: bool) -> list[str]:
        """Let packets flow by themselves after a session, unless connections need us, and we stay; returns what went wrong.

        ``runs``: the guest runs on.
        """
        problems = []
        if isinstance(self.side, PrimarySide):
            moves = self.side.moves()
            problems = attempt([lambda: guest.moved.write(moves)])
            if any(moves) and stays and not self.failure:
                return problems
            if runs and (sentence := left_behind(self.config.vm, moves)):
                self.monitor.event("moved_connections", sentence)
        return problems + self.let_flow()

    def let_flow(self) -> list[str]:
        """Take the filters away, unless they are all that keeps a guest silent that must be; returns what went wrong."""
        if not (self.permits() or self.off_network):
            return []
        side, self.side = self.side, Untouched()
        problems = attempt([side.close])
        self.failure = ""  # what moved them has ended
        return problems

    def _side(self, guest: Guest, send: SendFrames, moves: Moves) -> PrimarySide:
        self.failure = ""
        return PrimarySide(
            guest.filters,
            send,
            self.inbox.put_wanted,
            self._failed,
            comparing=self.config.comparing,
            latency_s=self.config.latency_ms / 1000,
            moves=moves,
            permits=self.permits,
        )

    def _failed(self, sentence: str) -> None:
        """Called by the thread that moves packets; a session ends by it, and what is left after a session is let go."""
        self.failure = sentence
        self.inbox.put_trouble(sentence)
