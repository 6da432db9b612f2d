"""The copy of the VM on the secondary's host: its guest, while there is one, and the hold on its packets, over all sessions."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace

from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.guest import LOCAL_ERRORS, Guest, attempt
from colo_helper.replication.host import Host, RestoreStream
from colo_helper.replication.inbox import Inbox
from colo_helper.traffic.moves import Moves
from colo_helper.traffic.sides import SecondarySide, Untouched, to_nobody


@dataclass(slots=True)
class Copy:
    """``guest`` is None while there is no copy, or while ``restore`` still makes it.

    Only the main thread uses it, but for ``failure``, which the thread that moves packets writes.
    """

    config: Config
    host: Host
    monitor: Monitor
    inbox: Inbox
    guest: Guest | None = None
    restore: RestoreStream | None = None
    packets: SecondarySide | Untouched = field(default_factory=Untouched)
    #: Whether an earlier replicator was killed while a first copy arrived, and nobody has looked what is left of that.
    unfinished: bool = False
    #: A copy that is to be destroyed, and could not be yet: it is no copy any more, whatever its domain does.
    condemned: Guest | None = None
    #: Why packets are not moved any more by what has hold of them; empty while they are.
    failure: str = ""

    def unable(self) -> str:
        """Return why the copy could not go on, whoever allowed it; an empty text when it can."""
        assert self.guest is not None
        try:
            info = self.guest.domain.info()
        except LOCAL_ERRORS as error:
            return str(error)
        if info.shutdown:
            return f"Domain {info.domid}, the copy, has ended by itself ({info.shutdown_reason})."
        if info.paused and not self.guest.halted:
            return f"Domain {info.domid} is paused, and not by us."
        if self.guest.devices.ended():
            return f"The device model of domain {info.domid}, the copy, has ended."
        return ""

    def join_network(self) -> None:
        """Put all its taps onto the bridge."""
        assert self.guest is not None
        nics = self.guest.nics
        nics.connect([replace(tap, bridge=self.config.bridge) for tap in nics.taps()])

    # ------------------------------------------------------------------------------------------ its packets

    def take_hold(self, conversation: Conversation, moves: Moves) -> None:
        """Take hold of the copy's packets; those of an earlier session are void, for its state will be another."""
        assert self.guest is not None
        self.let_packets_flow()
        self.failure = ""
        packets = SecondarySide(self.guest.filters, conversation.send_packets, self._failed, moves)
        conversation.carry_packets(packets)
        self.packets = packets

    def go_on_moving(self) -> None:
        """Take hold of the packets of a copy that is the VM, when some of its connections need it; harmless when it has."""
        assert self.guest is not None
        if isinstance(self.packets, SecondarySide) and not self.failure:
            return
        self.let_packets_flow()
        if moves := self.guest.moved.read():
            self.failure = ""
            self.packets = SecondarySide(self.guest.filters, to_nobody, self._failed, moves)
            self.packets.take_over()
            self.packets.say_again()  # it has the network, or nothing to say yet: nothing more is remembered

    def let_packets_flow(self) -> list[str]:
        """Take the filters away; returns what went wrong."""
        packets, self.packets = self.packets, Untouched()
        return attempt([packets.close])

    def _failed(self, sentence: str) -> None:
        """Called by the thread that moves packets; it ends a session, if there is one."""
        self.failure = sentence
        self.inbox.put_trouble(sentence)

    # ------------------------------------------------------------------------------------------ what becomes of it

    def let_run(self) -> list[str]:
        """Let the copy run, off the network, without logging; returns what went wrong."""
        problems = self.guest.release() if self.guest else []
        self.packets.resumed()
        return problems

    def destroy(self) -> list[str]:
        """Make nothing of the copy stay; returns what went wrong. What could not be destroyed is ``condemned``."""
        restore, self.restore = self.restore, None
        problems = attempt([restore.abandon]) if restore else []
        if self.guest:
            problems += self.let_packets_flow()
            problems += self.guest.close()
            self.condemned, self.guest = self.guest, None
        if condemned := self.condemned:
            undestroyed = attempt([lambda: self.host.destroy(condemned.domain.domid)])
            if not undestroyed:
                self.condemned = None
                undestroyed = attempt([condemned.forget_marks])
            problems += undestroyed
        return problems

    def remove_unfinished(self) -> None:
        """An earlier replicator was killed while a first copy arrived: what xl has made of it all the same never ran."""
        if self.guest or not self.unfinished:
            return
        domid, self.unfinished = self.host.find(self.config.vm), False
        if domid is None:
            return
        with closing(self.host.open_guest(domid)) as unfinished:
            never_ran = unfinished.domain.info().paused
        if never_ran:
            self.host.destroy(domid)
            self.monitor.event(
                "discarded", f"The unfinished copy of {self.config.vm} (domain {domid}) was destroyed."
            )
