"""The guest of the VM's name on the primary's host: found and opened, kept silent where it may not be the VM, and let go."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from colo_helper.hypervisor.interface import DomainInfo, HypervisorError
from colo_helper.hypervisor.io_requests import io_share
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.replication.config import Config
from colo_helper.replication.decisions.primary import (
    GuestFacts,
    PrimaryStart,
    PrimaryStep,
    guest_ended,
    guest_refusal,
    maybe_succeeded,
    not_yet,
    primary_start,
    still_booting,
)
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.guest import LOCAL_ERRORS, Guest, attempt
from colo_helper.replication.host import Host
from colo_helper.replication.ownership import Ownership
from colo_helper.replication.primary_packets import PrimaryPackets

#: How long a device model may take to end, in seconds: one of which we know that it has closed a socket, and one that
#: something failed of.
_TOLD_EXIT_S, _EXIT_S = 1.0, 0.05


@dataclass(slots=True)
class PrimaryGuest:
    """Only the main thread uses it. ``check`` is called while something is waited for; what it raises ends the attempt.

    ``saved`` is the state file of an earlier run, if there is one.
    """

    config: Config
    host: Host
    monitor: Monitor
    ownership: Ownership
    packets: PrimaryPackets
    check: Callable[[], None]
    saved: dict[str, Any] | None
    guest: Guest | None = None
    step: PrimaryStep = PrimaryStep.NO_GUEST
    #: Whether the guest has ended, and another one of its name is waited for.
    awaiting: bool = False
    #: Whether a domain was, or may have been, taken off the network until it is known that it is the VM.
    silenced: bool = False
    #: Whether ``guest`` was found, is known to be the VM, and is on the network.
    opened: bool = False

    def how_ended(self, *, failing: bool = False) -> SessionEndedError | None:
        """Whether the guest is the reason, whatever failed first; None while it has not ended.

        ``failing``: something has failed, which may be because its device model ends, as it does before its domain.
        """
        if not self.guest:
            return None
        ended = self._ended(self.guest)
        exit_s = _TOLD_EXIT_S if self.packets.failure else _EXIT_S
        if not ended and self.guest.devices.ended(exit_s if failing else 0.0):
            ended = self._ended(self.guest, headless=True)
        return ended

    def _ended(self, guest: Guest, *, headless: bool = False) -> SessionEndedError | None:
        info: DomainInfo | None = None
        try:
            info = guest.domain.info()
        except HypervisorError as error:
            if error.errno_name != "ESRCH":
                return None
        return guest_ended(self.config.vm, info, headless=headless, held=guest.halted)

    # ------------------------------------------------------------------------------------------ found and opened

    def open(self) -> Guest:
        """Return the guest; at first it is found, and seen whether it can be protected. One that has ended is waited for."""
        if self.guest and self.opened:
            return self.guest
        self.guest = guest = self.guest or self._find()
        domid = guest.domain.domid
        before = self._begin(guest, domid)
        if self.awaiting or before.generation or self.silenced:
            self.step = PrimaryStep.PROTECTED
        elif self.step is PrimaryStep.NO_GUEST:
            self.step = PrimaryStep.UNPROTECTED
        self.awaiting = False
        self.rejoin()
        self.packets.go_on_moving(guest)
        if not before.crashed:
            self._wait_for_firmware(guest)
        self.monitor.enter("connecting", f"Connecting to {self.config.peer_name}.", domid=domid)
        self.opened = True
        return guest

    def rejoin(self) -> None:
        """Put a guest that was taken off the network back, now that it is known to be the VM; not while another one is."""
        if self.guest and self.silenced and not self.opened:
            self._join_network(self.guest)
            self.silenced = False

    def _find(self) -> Guest:
        """Return the guest, if it is one that can be protected; nothing of it stays open otherwise."""
        vm = self.config.vm
        guest: Guest | None = None
        try:
            domid = self.host.find(vm)
            if domid is None:
                cause = Cause.GUEST_ENDED if self.awaiting else Cause.LOCAL_ERROR
                raise SessionEndedError(cause, f"There is no domain named {vm} on this host")
            guest = self.host.open_guest(domid)
            info = guest.domain.info()
            if self.awaiting and (pause := not_yet(vm, info)):
                raise SessionEndedError(Cause.GUEST_ENDED, pause)
            refusal = guest_refusal(
                GuestFacts(
                    vm=vm,
                    hvm=info.hvm,
                    shutdown=info.shutdown,
                    pv_drivers=guest.domain.pv_drivers_active(),
                    writable_disks=tuple(guest.devices.writable_disks()),
                    bridges=frozenset(tap.bridge for tap in guest.nics.taps() if tap.bridge),
                    bridge=self.config.bridge,
                )
            )
            if refusal:
                raise SessionEndedError(Cause.LOCAL_ERROR, refusal)
        except BaseException as error:
            if guest:
                guest.close()
            if self.awaiting and isinstance(error, LOCAL_ERRORS):
                # The old domain is being taken apart, or the new one is being built.
                raise SessionEndedError(Cause.GUEST_ENDED, str(error)) from error
            raise
        return guest

    def _begin(self, guest: Guest, domid: int) -> PrimaryStart:
        """Go on where an earlier replicator ended, once it is known that the guest here is the VM."""
        before = primary_start(self.saved, domid, boot_id())
        if before.generation:
            self.monitor.restore(generation=before.generation, epoch=before.epoch, domid=domid)
        doubtful = self.ownership.right.automatic and (self.silenced or maybe_succeeded(self.saved))
        if not doubtful:
            self._recover(guest, before)

        def waiting() -> list[str]:
            if not doubtful:
                self.check()
                return []
            problems = attempt([lambda: self._silence(guest)])
            self.ownership.refuse()
            return problems

        self.ownership.begin(waiting)
        if doubtful:
            self.silenced = True  # it may have been, here or by an earlier replicator
            self._recover(guest, before)
        return before

    def _recover(self, guest: Guest, before: PrimaryStart) -> None:
        """Undo what an earlier replicator of this guest had under way."""
        if before.crashed:
            # A switch-over, from here or to here, may have ended between two steps.
            problems = [*guest.recover(), *attempt([lambda: self._join_network(guest)])]
            self.monitor.event("recovered", " ".join([before.sentence, *problems]))

    def _join_network(self, guest: Guest) -> None:
        off = [tap for tap in guest.nics.taps() if not tap.bridge]
        guest.nics.connect([replace(tap, bridge=self.config.bridge) for tap in off])

    def _wait_for_firmware(self, guest: Guest) -> None:
        """Leave a guest alone that is being booted, for a while; each look takes a tenth of a second."""
        began = time.monotonic()
        said = False
        while True:
            info = guest.domain.info()
            if info.shutdown or info.paused:
                return
            pause = still_booting(self.config.vm, io_share(guest.domain), time.monotonic() - began)
            if not pause:
                return
            if not said:
                self.monitor.event("booting", pause)
            said = True
            self.check()

    # ------------------------------------------------------------------------------------------ kept silent

    def keep_quiet(self, still: bool) -> list[str]:
        """Nothing of the VM reaches the network but by our hands, and no vCPU runs when ``still``; returns what went wrong.

        A domain that the toolstack has made meanwhile has no filters of ours: it is taken off the network.
        """
        try:
            domid = self.host.find(self.config.vm)
            guest = self.guest
            if domid is not None and not (guest and guest.domain.domid == domid):
                with closing(self.host.open_guest(domid)) as another:
                    self._silence(another)
            elif guest and domid is not None and still:
                self.packets.side.halting()
                guest.hold_still()
        except LOCAL_ERRORS as error:
            return [str(error)]
        return []

    def _silence(self, guest: Guest) -> None:
        guest.nics.isolate()
        self.silenced = True

    def stand_aside(self) -> None:
        """Another host has the VM: nothing of this copy reaches the network any more, and it never runs again."""
        self.packets.side.discard()
        self.packets.side.halting()
        self.monitor.restore(role="secondary")
        problems = self.guest.put_aside() if self.guest else self._put_strangers_aside()
        self.packets.off_network = not problems
        for problem in problems:
            self.monitor.event("stand_aside", problem)

    def _put_strangers_aside(self) -> list[str]:
        """A domain of that name that was not opened yet must not run either; returns what went wrong."""
        try:
            domid = self.host.find(self.config.vm)
            if domid is None:
                return []
            with closing(self.host.open_guest(domid)) as another:
                return another.put_aside()
        except LOCAL_ERRORS as error:
            return [str(error)]

    # ------------------------------------------------------------------------------------------ let go

    def discard(self) -> bool:
        """The copy is the VM; nothing of the guest here stays. Tells whether no domain of that name is left."""
        guest, self.guest, self.opened = self.guest, None, False
        problems = []
        if guest:
            problems = [*attempt([lambda: self.host.destroy(guest.domain.domid)]), *guest.close()]
        try:
            left = self.host.find(self.config.vm)
        except LOCAL_ERRORS as error:
            left = -1
            problems.append(str(error))
        for problem in problems:
            self.monitor.event("give_up", problem)
        return left is None

    def forget(self) -> None:
        """The guest has ended; another one may come under its name."""
        state = self.monitor.state
        ended = state.generation or state.ended_generation
        if self.guest:
            self.guest.close()
            self.guest.forget_marks()
        self.guest, self.opened = None, False
        self.step, self.awaiting = PrimaryStep.NO_GUEST, True
        self.monitor.restore(generation="", ended_generation=ended, domid=None)
