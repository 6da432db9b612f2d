"""One side's packets from the first checkpoint of a session on: its filters, its router and its pump as one thing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from colo_helper.devices.interface import DeviceError, FilteredNic, Filters
from colo_helper.proxy.capture import Capture, Patience
from colo_helper.proxy.verdicts import Checkpoint, Limits
from colo_helper.traffic.interface import Router
from colo_helper.traffic.moves import Moves
from colo_helper.traffic.primary import PrimaryRouter
from colo_helper.traffic.pump import Pump, SendFrames
from colo_helper.traffic.rewriting import Rewriting
from colo_helper.traffic.secondary import SecondaryRouter

#: How long a device model may take to read what it was given before its guest is stopped, in seconds.
_GIVEN_S = 0.05

R = TypeVar("R", bound=Router)


def permitted() -> bool:
    """What leaves is not asked about: a secondary's router lets nothing go before it takes over, and then it is the VM."""
    return True


class Side(Generic[R]):
    """What both sides do alike. ``make`` returns the router of a pump; the filters are attached, and switched on here."""

    def __init__(
        self,
        filters: Filters,
        nics: Sequence[FilteredNic],
        make: Callable[[Pump], R],
        send: SendFrames,
        wanted: Callable[[Checkpoint], None],
        failed: Callable[[str], None],
        permits: Callable[[], bool] = permitted,
    ) -> None:
        def made(pump: Pump) -> R:
            self._router = make(pump)
            return self._router

        self._filters = filters
        self._pump = Pump(nics, made, send, wanted, failed, permits)
        try:
            filters.switch(on=True)
        except BaseException:
            with suppress(DeviceError):  # what led here says more
                self._let_go()
            raise

    def from_peer(self, epoch: int, nic: int, packed: bytes) -> None:
        """Take what the peer has sent; raises FramingError."""
        self._pump.from_peer(epoch, nic, packed)

    def _let_go(self) -> None:
        """Packets pass by first, and the pump moves those that did not: a stuck device model answers no command."""
        try:
            self._filters.switch(on=False)
            self._pump.flushed()
        finally:
            self._pump.stop()
            self._filters.detach()


class PrimarySide(Side[PrimaryRouter]):
    """The packets of the primary's guest; they flow as before until the first ``cut``. Raises DeviceError.

    A packet waits for the secondary ``latency_s`` at most, and then for a checkpoint, and leaves only while ``permits`` says
    so. ``moves`` are of connections that the guest has taken over from an earlier primary; they are moved as long as this is
    not closed.
    """

    def __init__(
        self,
        filters: Filters,
        send: SendFrames,
        wanted: Callable[[Checkpoint], None],
        failed: Callable[[str], None],
        *,
        comparing: bool,
        latency_s: float,
        moves: Moves,
        permits: Callable[[], bool] = permitted,
    ) -> None:
        nics = filters.attach(mirror=not any(moves))
        limits = Limits(secondary_s=latency_s, primary_s=2 * latency_s)
        moved = Rewriting.of(moves, len(nics), time.monotonic()) if any(moves) else None
        self._moved = moved

        def router(pump: Pump) -> PrimaryRouter:
            return PrimaryRouter(len(nics), pump, comparing, limits, moved)

        super().__init__(filters, nics, router, send, wanted, failed, permits)

    def must_obey(self) -> None:
        """To be called before the device model is asked for something: one that is held back obeys nobody."""
        with self._pump.hold():
            self._router.must_obey()

    def halting(self) -> None:
        """To be called before the guest's device model is stopped, and not held back any more therefore."""
        with self._pump.hold():
            self._router.halting()
        if self._moved is not None:
            self._pump.flushed(_GIVEN_S)

    def cut(self, epoch: int) -> None:
        """The guest stands still; what it sends from now on is of ``epoch``."""
        with self._pump.hold():
            last = self._pump.drain()
            self._router.cut(epoch)
            # A device model that is being stopped still reads one packet of each NIC, which its guest gets when it runs on.
            for nic, frame in last.items() if self._moved is None else ():
                self._router.from_network(nic, [frame], time.monotonic())

    def resumed(self) -> None:
        """The guest runs on: its device model may be held back again."""
        with self._pump.hold():
            self._router.resumed()

    def received(self) -> bool:
        """The secondary has the checkpoint; tells whether packets were let go."""
        with self._pump.hold():
            return self._router.received()

    def both_run(self) -> None:
        """The secondary runs from the checkpoint on."""
        with self._pump.hold():
            self._router.both_run()

    def release(self) -> None:
        """There is no secondary any more: everything leaves at once."""
        with self._pump.hold():
            self._router.release_all()

    def discard(self) -> None:
        """The guest has died, and its secondary may be the VM: what was never let go must not leave now."""
        with self._pump.hold():
            self._router.discard_all()

    def flushed(self) -> bool:
        """Wait until the device model has all that was let go; tells whether it has."""
        return self._pump.flushed()

    def counters(self) -> dict[str, int]:
        """Return what was counted since the packets were taken hold of; see PrimaryRouter."""
        with self._pump.hold():
            return {**self._router.counters(), "dropped": self._pump.dropped, "muted": self._pump.muted}

    def capture(self, most_bytes: int) -> Capture:
        """Begin to note down all that is compared; returns where."""
        ahead_s = time.time() - time.monotonic()
        with self._pump.hold():
            limits = self._router.limits
            patience = Patience(round(1000 * limits.secondary_s), round(1000 * limits.primary_s))
            self._router.capture = Capture(self._router.nics, most_bytes, patience, ahead_s)
            return self._router.capture

    def end_capture(self) -> None:
        """Nothing more is noted down."""
        with self._pump.hold():
            self._router.capture = None

    def moves(self) -> Moves:
        """Return the connections that break when this is closed and nobody goes on with them."""
        with self._pump.hold():
            return self._moved.moves() if self._moved is not None else []

    def close(self) -> None:
        """Let go of the packets: they flow by themselves again."""
        self.release()
        self._let_go()


class Untouched:
    """What a side is when nobody takes hold of the packets: they come and go as they like."""

    def must_obey(self) -> None:
        """See PrimarySide."""

    def halting(self) -> None:
        """See PrimarySide."""

    def cut(self, epoch: int) -> None:
        """See PrimarySide."""

    def resumed(self) -> None:
        """See PrimarySide, and SecondarySide."""

    def received(self) -> bool:
        """See PrimarySide."""
        return False

    def both_run(self) -> None:
        """See PrimarySide."""

    def release(self) -> None:
        """See PrimarySide."""

    def discard(self) -> None:
        """See PrimarySide."""

    def flushed(self) -> bool:
        """See PrimarySide."""
        return True

    def counters(self) -> dict[str, int]:
        """See PrimarySide."""
        return {}

    def applied(self, epoch: int) -> None:
        """See SecondarySide."""

    def know(self, moves: Moves) -> None:
        """See SecondarySide."""

    def take_over(self) -> None:
        """See SecondarySide."""

    def say_again(self) -> None:
        """See SecondarySide."""

    @property
    def followed(self) -> int:
        """See SecondarySide."""
        return 0

    def moves(self) -> Moves:
        """See both."""
        return []

    def close(self) -> None:
        """See both."""


class SecondarySide(Side[SecondaryRouter]):
    """The packets of the secondary's guest, which stands still at first. Raises DeviceError.

    ``moves`` are of connections that the primary's guest has taken over from an earlier primary.
    """

    def __init__(
        self, filters: Filters, send: SendFrames, failed: Callable[[str], None], moves: Moves
    ) -> None:
        nics = filters.attach(mirror=False)

        def router(pump: Pump) -> SecondaryRouter:
            return SecondaryRouter(len(nics), pump, moves)

        super().__init__(filters, nics, router, send, _unasked, failed)

    def halting(self) -> None:
        """The guest is about to be stopped; it has all that it was given by then."""
        with self._pump.hold():
            self._router.halted()
        self._pump.flushed(_GIVEN_S)

    def applied(self, epoch: int) -> None:
        """The guest, which still stands still, has the state of ``epoch``."""
        with self._pump.hold():
            self._pump.drain()
            self._router.applied(epoch)

    def resumed(self) -> None:
        """The guest runs on, from the checkpoint or from the state that it had."""
        with self._pump.hold():
            self._router.resumed(time.monotonic())

    def take_over(self) -> None:
        """The guest is the VM now: it talks with the network itself."""
        with self._pump.hold():
            self._router.take_over(time.monotonic())

    def say_again(self) -> None:
        """The guest has the network now: its clients get at once what it has said since the last checkpoint."""
        with self._pump.hold():
            self._router.say_again(time.monotonic())

    def know(self, moves: Moves) -> None:
        """These are the connections now that the primary has taken over from another."""
        with self._pump.hold():
            self._router.moves = moves

    @property
    def followed(self) -> int:
        """How many connections are, or may yet have to be, moved."""
        with self._pump.hold():
            return self._router.rewriting.connections

    def moves(self) -> Moves:
        """Return the connections that break when this is closed and nobody goes on with them."""
        with self._pump.hold():
            return self._router.rewriting.moves()

    def close(self) -> None:
        """Let go of the packets: they flow by themselves again."""
        self._let_go()


def to_nobody(epoch: int, nic: int, packed: bytes) -> None:
    """What sends packets where there is no peer."""
    raise DeviceError(f"There is no peer for {len(packed)} bytes of NIC {nic} of epoch {epoch}.")


def _unasked(checkpoint: Checkpoint) -> None:
    raise DeviceError(f"A secondary does not ask for checkpoints: {checkpoint.sentence}")
