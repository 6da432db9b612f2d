"""The device model of a Xen domain, spoken to by QMP through the library qemu.qmp."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import EventListener, QMPClient, QMPError, Runstate

from colo_helper.devices.interface import DeviceError
from colo_helper.devices.qcow2 import SNAPSHOT_NAME, vmstate_image

T = TypeVar("T")
JsonValue = Any  # what a QMP command returns differs by command

#: libxl gives each device model this second socket, for xenstat; libxl itself uses another one.
SOCKET = "/var/run/xen/qmp-libxenstat-{domid}"
#: Announcements as in QEMU's own migration (milliseconds): 5 rounds, 50 ms apart at first, 100 ms longer each.
ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
_LOOK_S = 0.02
#: ``struct ucred``: pid, uid, gid.
_UCRED = struct.Struct("iII")
#: A time-out is waited for in so many parts.
_SLICES = 10


class QmpDeviceModel:
    """See DeviceModel. The socket serves one client at a time, so the connection is kept while this object lives.

    One that broke, or on which an answer did not come in time, is made anew for the next command.
    """

    def __init__(self, domid: int, work_dir: Path, timeout_s: float, path: str | None = None) -> None:
        self.domid = domid
        self._work_dir = work_dir
        self._timeout_s = timeout_s
        self._loads = 0
        self._path = path or SOCKET.format(domid=domid)
        #: A pidfd of the program, from the first connection on (pidfd_open(2)); and whether it has ended.
        self._process: int | None = None
        self._ended = False
        try:
            self._client = self._connect()
        except DeviceError:
            self._forget_process()
            raise

    def _connect(self) -> QMPClient:
        path = self._path
        channel = socket.socket(socket.AF_UNIX)
        try:
            self._reach(channel, path)
            if self._process is None:
                self._process = _pidfd_of_peer(channel)
        except OSError as error:
            channel.close()
            raise DeviceError(
                f"The device model of domain {self.domid} cannot be reached at {path}: {error}."
            ) from error
        # A second client gets no greeting until the first leaves; the library would wait for ever.
        if not select.select([channel], [], [], self._timeout_s)[0]:
            channel.close()
            raise DeviceError(
                f"The device model of domain {self.domid} does not answer at {path} within {self._timeout_s:g} s; "
                "another program may hold its only connection."
            )
        self._loop = asyncio.new_event_loop()
        client = QMPClient(f"domain-{self.domid}")
        client.events.names.add("JOB_STATUS_CHANGE")  # the others would pile up with every checkpoint
        try:
            self._wait(client.connect(channel))
        except (TimeoutError, QMPError, OSError) as error:
            self._loop.close()
            why = str(error) or f"no answer within {self._timeout_s:g} s"
            raise DeviceError(
                f"The device model of domain {self.domid} speaks no QMP at {path}: {why}."
            ) from error
        return client

    def _reach(self, channel: socket.socket, path: str) -> None:
        """Connect; one that is stuck accepts nobody, and its queue is short. Raises OSError when there is no room in time."""
        channel.setblocking(False)
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                channel.connect(path)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)  # nobody is told when there is room
            else:
                return

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the library's work to its end; raises TimeoutError when that takes too long.

        Time in which this host was frozen does not count: the device model was frozen with it. It would show as one slice
        that took much longer than it should.
        """
        return self._loop.run_until_complete(self._within_slices(work))

    async def _within_slices(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        for _ in range(_SLICES):
            done, _ = await asyncio.wait({task}, timeout=self._timeout_s / _SLICES)
            if done:
                return task.result()
        task.cancel()
        await asyncio.wait({task})
        raise TimeoutError

    def command(self, name: str, **arguments: object) -> JsonValue:
        """Run one QMP command and return its result; raises DeviceError with what QEMU says."""
        try:
            return self._wait(self._connected().execute(name, arguments))
        except TimeoutError as error:
            self._give_up()
            raise DeviceError(
                f"The device model of domain {self.domid} did not finish '{name}' within {self._timeout_s:g} s."
            ) from error
        except (QMPError, OSError) as error:
            raise DeviceError(
                f"The device model of domain {self.domid} refused '{name}': {error}."
            ) from error

    def _connected(self) -> QMPClient:
        if self._client.runstate is not Runstate.RUNNING:
            self._give_up()
            self._client = self._connect()
        return self._client

    def _give_up(self) -> None:
        """Leave the connection, so that an answer that is late is not taken for that of another command."""
        with suppress(DeviceError):
            self._disconnect()

    def hand_over(self, end: socket.socket, name: str) -> None:
        """Give QEMU a file descriptor, which it knows by ``name``; raises DeviceError."""
        try:
            self._connected().send_fd_scm(end.fileno())
        except (QMPError, OSError) as error:
            raise DeviceError(
                f"The device model of domain {self.domid} does not take a descriptor: {error}."
            ) from error
        self.command("getfd", fdname=name)

    def stop(self) -> None:
        """See DeviceModel."""
        self.command("stop")

    def cont(self) -> None:
        """See DeviceModel."""
        self.command("cont")

    def save_state(self) -> bytes:
        """See DeviceModel. QEMU writes a file; it lies on a tmpfs."""
        path = self._work_dir / "devices.state"
        self.command("xen-save-devices-state", filename=str(path), live=False)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DeviceError(f"The device state of domain {self.domid} cannot be read: {error}.") from error
        finally:
            path.unlink(missing_ok=True)

    def load_state(self, state: bytes) -> None:
        """See DeviceModel. Goes through a snapshot, because xen-load-devices-state aborts QEMU (see qcow2).

        A guest with virtio-net is told each time that it was moved, and announces itself, five times by default. Never is
        not possible: with no round virtio_net_post_load frees a timer that the next reset uses (7.2; QEMU crashed on that).
        """
        if not self._loads:
            self.command("migrate-set-parameters", **{"announce-rounds": 1})
        self._loads += 1
        node, job = f"colo-state-{self._loads}", f"colo-load-{self._loads}"
        path = self._work_dir / f"{node}.qcow2"
        try:
            _write_private(path, vmstate_image(state))
            self.command(
                "blockdev-add",
                **{"driver": "qcow2", "node-name": node, "file": {"driver": "file", "filename": str(path)}},
            )
            try:
                self._run_job(
                    "snapshot-load", job, {"tag": SNAPSHOT_NAME, "vmstate": node, "devices": [node]}
                )
            finally:
                self.command("blockdev-del", **{"node-name": node})
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"The device state for domain {self.domid} cannot be prepared: {error}."
            ) from error
        finally:
            path.unlink(missing_ok=True)

    def _run_job(self, command: str, job: str, arguments: dict[str, object]) -> None:
        """Start a job, wait for the event that says it has ended, and raise DeviceError when it failed."""
        self._client.events.clear()
        self.command(command, **{"job-id": job, **arguments})
        try:
            self._wait(_concluded(self._client.events, job))
        except TimeoutError as error:
            self._give_up()
            raise DeviceError(
                f"'{command}' of domain {self.domid} did not end within {self._timeout_s:g} s."
            ) from error
        except (QMPError, OSError) as error:
            raise DeviceError(
                f"The device model of domain {self.domid} was lost in '{command}': {error}."
            ) from error
        failures = [entry.get("error") for entry in self.command("query-jobs") if entry["id"] == job]
        self.command("job-dismiss", id=job)
        if failures and failures[0]:
            raise DeviceError(f"'{command}' of domain {self.domid} failed: {failures[0]}.")

    def log_dirty(self, enable: bool) -> None:
        """See DeviceModel.

        Starting twice is harmless, but QEMU aborts when logging is stopped that was not started (seen in 7.2: assertion
        in memory_global_dirty_log_do_stop), and it does not tell which is the case. So a stop starts first.
        """
        self.command("xen-set-global-dirty-log", enable=True)
        if not enable:
            self.command("xen-set-global-dirty-log", enable=False)

    def announce(self) -> None:
        """See DeviceModel."""
        self.command("announce-self", **ANNOUNCE)

    def writable_disks(self) -> list[str]:
        """See DeviceModel."""
        disks = []
        for entry in self.command("query-block"):
            inserted = entry.get("inserted")
            if inserted and not inserted.get("ro", False):
                disks.append(str(entry.get("device") or entry.get("qdev") or inserted.get("file")))
        return disks

    def ended(self, within_s: float = 0.0) -> bool:
        """See DeviceModel. One that dumps core has not ended yet, although its sockets may be closed."""
        if self._process is not None and not self._ended:
            poll = select.poll()
            poll.register(self._process, select.POLLIN)
            self._ended = bool(poll.poll(within_s * 1000))
        return self._ended

    def close(self) -> None:
        """See DeviceModel. Whether it has ended is not seen any more after this."""
        self._forget_process()
        self._disconnect()

    def _forget_process(self) -> None:
        if self._process is not None:
            self.ended()
            os.close(self._process)
            self._process = None

    def _disconnect(self) -> None:
        """Leave the connection; a device model that has ended has closed it by itself."""
        if self._loop.is_closed():
            return
        try:
            with suppress(EOFError, ConnectionError):
                self._wait(self._client.disconnect())
        except (TimeoutError, QMPError, OSError) as error:
            raise DeviceError(
                f"The connection to domain {self.domid}'s device model broke: {error}."
            ) from error
        finally:
            self._loop.close()


def _pidfd_of_peer(channel: socket.socket) -> int:
    """Return a pidfd of who listens at the other end (SO_PEERCRED of unix(7)); raises OSError when it has ended."""
    pid, _, _ = _UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return os.pidfd_open(pid)


async def _concluded(events: EventListener, job: str) -> None:
    async for event in events:
        if event["data"] == {"id": job, "status": "concluded"}:
            return


def _write_private(path: Path, data: bytes | bytearray) -> None:
    """Write a file that only we and QEMU (both root) may read: it holds the guest's state."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
