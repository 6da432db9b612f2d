"""A guest under replication: the domain, its devices and its taps moved together, and everything undone at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from colo_helper.devices.interface import DeviceError, DeviceModel, Filters, Nics
from colo_helper.hypervisor.dirty_log import DirtyLog
from colo_helper.hypervisor.interface import Domain, HypervisorError, IoState
from colo_helper.hypervisor.io_requests import end_io
from colo_helper.replication.moved import MovesFile

#: What the local host can answer with when something fails.
LOCAL_ERRORS = (HypervisorError, DeviceError, OSError)


class Mark:
    """A file that tells a replicator started after a crash what was under way; on a tmpfs, so that it goes with the host.

    ``path`` None: nobody is to be told (a guest that nobody else opens).
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    @property
    def there(self) -> bool:
        """Whether it was set and not cleared."""
        return self._path is not None and self._path.exists()

    def set(self) -> None:
        """Leave the mark; raises OSError."""
        if self._path:
            self._path.touch(mode=0o600)

    def clear(self) -> None:
        """Take it away."""
        if self._path:
            self._path.unlink(missing_ok=True)


@dataclass
class Guest:
    """A domain with its device model, taps and network filters. Methods may raise one of LOCAL_ERRORS."""

    domain: Domain
    devices: DeviceModel
    nics: Nics
    filters: Filters
    devices_stopped: bool = False
    logging: bool = False
    #: Set while we hold the guest still.
    held: Mark = field(default_factory=Mark)
    #: Set while a checkpoint is being applied to the domain: until then it is neither the old state nor the new one.
    torn: Mark = field(default_factory=Mark)
    #: The connections that it has taken over from a primary with other numbers.
    moved: MovesFile = field(default_factory=MovesFile)
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "devices"))
    _saving: Future[bytes] | None = None

    @property
    def halted(self) -> bool:
        """Whether we hold the guest still."""
        return self.domain.own_pauses > 0

    @property
    def caught_in_io(self) -> bool:
        """Whether somebody else has paused the guest, and it cannot finish the I/O request that it is in."""
        return self.domain.info().paused and not self.halted and self.domain.io_state() is not IoState.NONE

    def halt(self) -> None:
        """Stop the vCPUs, then the devices: nothing of the guest runs or writes its memory after this."""
        self.held.set()
        self.domain.pause()
        self._stop()

    def hold_still(self) -> None:
        """Let a guest stand still that may, or may not, be held by whoever was here before."""
        if self.halted:
            return
        if self.domain.info().paused:
            self.adopt_halt()
        else:
            self.halt()

    def put_aside(self) -> list[str]:
        """Take it off the network and stop it for good, because another one is the VM; returns what went wrong."""

        def unplug() -> None:
            self.nics.isolate()

        return attempt([unplug, self.hold_still])

    def save_devices(self) -> None:
        """Begin to save the state of the stopped devices; memory may be read meanwhile, the devices left alone."""
        self._saving = self._worker.submit(self.devices.save_state)

    def saved_devices(self) -> bytes:
        """Return what ``save_devices`` began to save."""
        assert self._saving is not None
        saving, self._saving = self._saving, None
        return saving.result()

    def load_devices(self, state: bytes) -> None:
        """Load the devices' state into a guest that stands still and whose memory and context are loaded.

        The device model resets its devices first, and with them the interrupt lines that it drives inside the hypervisor;
        so the context is put back as it was.
        """
        context = self.domain.get_context()
        self.devices.load_state(state)
        self.domain.set_context(context)

    def resume(self) -> None:
        """Let the devices run, then the vCPUs; undoes every pause that is ours."""
        self._start()
        self._undo_pauses()
        self.held.clear()

    def _start(self) -> None:
        self.devices.cont()
        self.devices_stopped = False

    def adopt_halt(self) -> None:
        """Take over a guest that the toolstack or an earlier replicator left paused, and stop its devices as well."""
        self.held.set()
        self.domain.adopt_pause()
        if self.domain.io_state() is not IoState.NONE:
            self.devices.cont()  # whoever was here may have stopped them, and a stopped device model answers nobody
        self._stop()

    def _stop(self) -> None:
        end_io(self.domain, gone=self.devices.ended)
        self.devices_stopped = True
        self.devices.stop()

    def start_logging(self) -> None:
        """Log dirty frames in the hypervisor and in the device model, from nothing."""
        self.logging = True
        log = DirtyLog(self.domain)
        log.start()
        self.devices.log_dirty(True)
        log.clean(final=False)

    def stop_logging(self) -> None:
        """Stop logging in both, even when one of them fails; but not for another program that logs now."""
        if self.domain.saved_by_others():
            self.logging = False
            return
        problems = attempt([self.domain.log_dirty_off, lambda: self.devices.log_dirty(False)])
        self.logging = False
        if problems:
            raise DeviceError(" ".join(problems))

    def release(self) -> list[str]:
        """Let the guest go: running, not logged. Tries everything; returns what could not be undone."""
        problems = self.let_run()
        if self.logging:
            problems += attempt([self.stop_logging])
        return problems

    def let_run(self) -> list[str]:
        """Undo whatever holds the guest; tries everything and returns what could not be undone."""
        self.await_saving()
        self._saving = None
        if not (self.devices_stopped or self.halted):
            return []
        problems = attempt([self._start, self._undo_pauses])
        if not problems:  # else whoever comes next has to try it
            self.held.clear()
        return problems

    def await_saving(self) -> None:
        """Wait until the devices' state is saved, if it is being saved: the device model serves one of us at a time."""
        if self._saving:
            wait([self._saving])

    def close(self) -> list[str]:
        """Give the connections back; returns what went wrong."""
        self._worker.shutdown()
        return attempt([self.devices.close, self.domain.close])

    def recover(self) -> list[str]:
        """Let the guest go that a replicator of ours held, or logged, when it crashed; returns what could not be undone."""
        problems = self.let_packets_flow()
        if self.held.there:
            try:
                if self.domain.info().paused:
                    self.domain.adopt_pause()
                self.devices_stopped = True
            except LOCAL_ERRORS as error:
                problems.append(str(error))
        self.logging = True
        return problems + self.release()

    def let_packets_flow(self) -> list[str]:
        """Take away the filters that a replicator of ours left; returns what went wrong."""
        return attempt([self.filters.detach])

    def forget_marks(self) -> None:
        """The domain is gone: whoever comes next must not take its marks for those of another."""
        self.held.clear()
        self.torn.clear()
        self.moved.write([])

    def _undo_pauses(self) -> None:
        while self.domain.own_pauses:
            self.domain.unpause()


def attempt(steps: Sequence[Callable[[], object]]) -> list[str]:
    """Take every step, whatever the others do; returns what went wrong on this host."""
    problems = []
    for step in steps:
        try:
            step()
        except LOCAL_ERRORS as error:
            problems.append(str(error))
    return problems
