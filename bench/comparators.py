"""Our comparator and QEMU's own colo-compare, both behind sockets in QEMU's framing, as a device model feeds them.

colo-compare is to be given the secondary's packets with the primary's numbers, as filter-rewriter gives them at its best. Needs
QEMU 7.2 (Debian 12); Debian 13 builds it without colo-compare.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from colo_helper.devices.emulated import EmulatedFilters
from colo_helper.devices.filters import socket_chardev
from colo_helper.devices.qmp import QmpDeviceModel
from colo_helper.proxy.verdicts import Checkpoint
from colo_helper.traffic.framing import FrameReader, RawFrame, pack
from colo_helper.traffic.sides import PrimarySide
from tests.unit.colo_helper.qemu import PROGRAM, connected

#: How long a packet may wait for the other copy's, of both.
DEADLINE_S = 1.0
_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 20
_START_S = 5.0
#: colo-compare's threads may repeat a need for so long after it was answered.
_REPEATED_S = 0.05
#: How long it takes until all has left that may after a checkpoint.
_DRAIN_S = 0.2


class Side(Protocol):
    """One of the two that are compared."""

    def feed(self, frames: Sequence[bytes], *, primary: bool) -> None:
        """Give it what a copy sends."""

    def left(self, timeout_s: float) -> list[bytes]:
        """Return the primary's frames that have left since the last time; waits for the first."""

    def asked(self) -> bool:
        """Tell whether it has asked for a checkpoint since it was last asked this, or since the last one."""

    def cut(self) -> None:
        """A checkpoint: what waits leaves, and the secondary's is thrown away."""

    def run(self) -> None:
        """Both copies run from it."""

    def cpu_s(self) -> float:
        """Return the CPU time of the process that it is in; ours is in this one."""


class Ours:
    """Our primary's side with its pump, between sockets."""

    def __init__(self) -> None:
        self._filters = EmulatedFilters()
        self._wanted: queue.SimpleQueue[Checkpoint] = queue.SimpleQueue()
        self._side = PrimarySide(
            self._filters,
            lambda _epoch, _nic, _packed: None,
            self._wanted.put,
            self._fail,
            comparing=True,
            latency_s=DEADLINE_S,
            moves=[],
        )
        self._epoch = 0
        self._reader = FrameReader()
        self.cut()
        self.run()

    @staticmethod
    def _fail(sentence: str) -> None:
        raise RuntimeError(sentence)

    def feed(self, frames: Sequence[bytes], *, primary: bool) -> None:
        """See Side."""
        packed = b"".join(pack(RawFrame(frame, 0)) for frame in frames)
        if primary:
            self._filters.ends[0].from_guest.sendall(packed)
        else:
            self._side.from_peer(self._epoch, 0, packed)

    def left(self, timeout_s: float) -> list[bytes]:
        """See Side."""
        data = _read(self._filters.ends[0].to_network, timeout_s)
        return [frame.data for frame in self._reader.feed(data)]

    def asked(self) -> bool:
        """See Side."""
        found = False
        while not self._wanted.empty():
            self._wanted.get()
            found = True
        return found

    def cut(self) -> None:
        """See Side."""
        self._epoch += 1
        self._side.halting()
        self._side.cut(self._epoch)
        self._side.resumed()
        self._side.received()
        self.asked()

    def run(self) -> None:
        """See Side."""
        self._side.both_run()

    def cpu_s(self) -> float:
        """See Side."""
        return time.process_time()

    def close(self) -> None:
        """End its threads."""
        self._side.close()


class Qemus:
    """colo-compare in a QEMU without a machine, with the notifications that Xen's COLO uses."""

    def __init__(self, model: QmpDeviceModel, pid: int) -> None:
        self._model, self._pid = model, pid
        self._cut_s = 0.0
        self._primary, self._secondary, self._out, self._notify = map(
            self._chardev, ("primary", "secondary", "out", "notify")
        )
        model.command("object-add", **{"qom-type": "iothread", "id": "compare-thread"})
        model.command(
            "object-add",
            **{
                "qom-type": "colo-compare",
                "id": "compare",
                "primary_in": "primary",
                "secondary_in": "secondary",
                "outdev": "out",
                "notify_dev": "notify",
                "iothread": "compare-thread",
                "compare_timeout": int(1000 * DEADLINE_S),
                "expired_scan_cycle": int(200 * DEADLINE_S),
            },
        )
        self._out_reader, self._notify_reader = _Lengths(), _Lengths()
        self._say("COLO_USERSPACE_PROXY_INIT")
        deadline = time.monotonic() + _START_S
        while not self._notify_reader.feed(_read(self._notify, 0.1)):
            if time.monotonic() > deadline:
                raise RuntimeError("colo-compare does not answer on its notify_dev")

    def _chardev(self, name: str) -> socket.socket:
        ours = socket_chardev(self._model, name)
        ours.setblocking(True)
        return ours

    def _say(self, text: str) -> None:
        self._notify.sendall(_LENGTH.pack(len(text)) + text.encode())

    def feed(self, frames: Sequence[bytes], *, primary: bool) -> None:
        """See Side."""
        packed = b"".join(_LENGTH.pack(len(frame)) + frame for frame in frames)
        (self._primary if primary else self._secondary).sendall(packed)

    def left(self, timeout_s: float) -> list[bytes]:
        """See Side."""
        return self._out_reader.feed(_read(self._out, timeout_s))

    def asked(self) -> bool:
        """See Side. It repeats itself until it is answered; what comes right after the last answer is no need of its own."""
        said = self._notify_reader.feed(_read(self._notify, 0.0))
        return bool(said) and time.monotonic() > self._cut_s + _REPEATED_S

    def cut(self) -> None:
        """See Side."""
        self._say("COLO_CHECKPOINT")
        self._cut_s = time.monotonic()

    def run(self) -> None:
        """See Side."""

    def cpu_s(self) -> float:
        """See Side."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Lengths:
    """Cuts a stream of messages, each behind its length."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete."""
        self._rest += data
        found = []
        while len(self._rest) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._rest)[0]
            if len(self._rest) < end:
                break
            found.append(self._rest[_LENGTH.size : end])
            self._rest = self._rest[end:]
        return found


def _read(end: socket.socket, timeout_s: float) -> bytes:
    """Return what has come, empty when nothing came in time."""
    if not select.select([end], [], [], timeout_s)[0]:
        return b""
    data = end.recv(_READ_BYTES)
    if not data:
        raise RuntimeError("what compares has closed its socket")
    return data


def released(side: Side, count: int, timeout_s: float) -> int:
    """Wait for packets to leave; returns how many of ``count`` have."""
    deadline, found = time.monotonic() + timeout_s, 0
    while found < count and (left_s := deadline - time.monotonic()) > 0:
        found += len(side.left(left_s))
    return found


def checkpoint(side: Side) -> None:
    """Both copies are equal; what waited leaves, and what either has asked for is answered."""
    side.cut()
    side.run()
    deadline = time.monotonic() + _DRAIN_S
    while (left_s := deadline - time.monotonic()) > 0:
        side.left(left_s)
    side.asked()


@contextmanager
def colo_compare() -> Iterator[Qemus]:
    """Run a QEMU with colo-compare."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "qmp"
        command = [str(PROGRAM), "-M", "none", "-nodefaults", "-display", "none"]
        with subprocess.Popen([*command, "-qmp", f"unix:{path},server=on,wait=off"]) as process:
            try:
                model = connected(process, 1, path)
                yield Qemus(model, process.pid)
                model.close()
            finally:
                process.kill()
