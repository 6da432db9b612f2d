"""A replicator's host, arbiter and line, as they are asked for over its sockets to the world."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import select
import socket
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colo_helper.arbiter.record import Lease, Record, Seen
from colo_helper.channel.dialer import ConnectError, Connection, End
from colo_helper.devices.interface import FilteredNic, Tap
from colo_helper.helper import restore, save
from colo_helper.helper.argv import NO_FD
from colo_helper.helper.callout import HelperProcess
from colo_helper.hypervisor.interface import PAGE_BYTES, MappedFrames
from colo_helper.replication.guest import Guest, Mark
from colo_helper.replication.moved import MovesFile
from colo_helper.stream.walk import Pages, walk_xl
from tests.chaos.emulated.rpc import Caller
from tests.unit.colo_helper.emulated_host import ThreadHelper

#: Imported before the fork, not by each helper.
ENGINES = (restore, save)
#: How often somebody who dials looks at the clock, in seconds.
_LOOK_S = 0.02


class RemoteDomain:
    """See Domain. Which of its pauses are ours is this program's to know, as in libxc."""

    def __init__(self, ask: Caller, domid: int) -> None:
        self._ask = ask
        self.domid = domid
        self.own_pauses = 0
        self.xen_version = (4, 17)
        self._params: dict[int, int] = {}

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return functools.partial(self._ask, "dom", self.domid, method)

    def get_param(self, index: int) -> int:
        """See Domain. Nobody changes one here, so it is asked for once."""
        if index not in self._params:
            self._params[index] = self._ask("dom", self.domid, "get_param", index)
        return self._params[index]

    def pause(self) -> None:
        """See Domain."""
        self._ask("dom", self.domid, "pause")
        self.own_pauses += 1

    def unpause(self) -> None:
        """See Domain."""
        self._ask("dom", self.domid, "unpause")
        self.own_pauses -= 1

    def adopt_pause(self) -> None:
        """See Domain."""
        self._ask("dom", self.domid, "adopt_pause")
        self.own_pauses += 1

    @contextmanager
    def map_frames(self, gfns: array[int], *, writable: bool) -> Iterator[MappedFrames]:
        """See Domain. What is written is there when the mapping ends."""
        data, failed = self._ask("dom", self.domid, "map", gfns, writable)
        buffer = bytearray(data)
        with memoryview(buffer) as view:
            yield MappedFrames(view, failed)
        if writable:
            self._ask("dom", self.domid, "unmap", gfns, bytes(buffer))

    def close(self) -> None:
        """See Domain."""


class RemoteThing:
    """A device model, or taps: every method is asked for."""

    def __init__(self, ask: Caller, group: str, domid: int) -> None:
        self._ask, self._group, self._domid = ask, group, domid

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return functools.partial(self._ask, self._group, self._domid, method)

    def close(self) -> None:
        """End the conversation; the device model goes on."""


class RemoteNics(RemoteThing):
    """See Nics."""

    def connect(self, taps: Sequence[Tap]) -> None:
        """See Nics."""
        self._ask(self._group, self._domid, "connect", taps)


class RemoteFilters:
    """See Filters."""

    def __init__(self, ask: Caller, domid: int) -> None:
        self._ask, self._domid = ask, domid
        self._attached: list[FilteredNic] = []

    def attach(self, *, mirror: bool) -> list[FilteredNic]:
        """See Filters."""
        self._close()
        names, ends = self._ask.with_sockets(4, "flt", self._domid, "attach", mirror)
        for at, name in enumerate(names):
            from_network, to_guest, from_guest, to_network = ends[at * 4 : at * 4 + 4]
            for end in (from_network, to_guest, from_guest, to_network):
                end.setblocking(False)
            if mirror:
                to_guest.close()
            nic = FilteredNic(name, from_network, None if mirror else to_guest, from_guest, to_network)
            self._attached.append(nic)
        return list(self._attached)

    def detach(self) -> None:
        """See Filters."""
        self._ask("flt", self._domid, "detach")
        self._close()

    def switch(self, *, on: bool) -> None:
        """See Filters."""
        self._ask("flt", self._domid, "switch_on" if on else "switch_off")

    def _close(self) -> None:
        for nic in self._attached:
            nic.close()
        self._attached.clear()


class RemoteRestore:
    """See RestoreStream."""

    def __init__(self, ask: Caller) -> None:
        self._ask = ask
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        """See RestoreStream."""
        self._data += data

    def finish(self) -> int:
        """See RestoreStream."""
        stream = io.BytesIO(self._data)

        def read_exact(length: int) -> bytes:
            piece = stream.read(length)
            if len(piece) != length:
                raise EOFError
            return piece

        pages: dict[int, bytes] = {}
        for found in walk_xl(read_exact):
            if isinstance(found, Pages):
                for at, gfn in enumerate(found.gfns):
                    pages[gfn] = found.data[at * PAGE_BYTES : (at + 1) * PAGE_BYTES]
        domid: int = self._ask("host", 0, "build", pages)
        return domid

    def abandon(self) -> None:
        """See RestoreStream."""


class RemoteHost:
    """See Host."""

    release = "4.17"

    def __init__(self, ask: Caller, run_dir: Path) -> None:
        self.ask = ask
        self._run_dir = run_dir

    def find(self, vm: str) -> int | None:
        """See Host."""
        found: int | None = self.ask("host", 0, "find", vm)
        return found

    def open_guest(self, domid: int) -> Guest:
        """See Host."""
        held, torn = (Mark(self._run_dir / name) for name in ("held", "torn"))
        return Guest(
            RemoteDomain(self.ask, domid),
            RemoteThing(self.ask, "dev", domid),
            RemoteNics(self.ask, "nics", domid),
            RemoteFilters(self.ask, domid),
            held=held,
            torn=torn,
            moved=MovesFile(self._run_dir / "moved.json", domid),
        )

    def configuration(self, vm: str) -> bytes:
        """See Host."""
        return json.dumps({"c_info": {"name": vm}}).encode()

    def device_model_entries(self, _domid: int) -> list[tuple[bytes, bytes]]:
        """See Host."""
        return [(b"physmap/0/size", b"1000")]

    def restore(self, _vm: str) -> RemoteRestore:
        """See Host."""
        return RemoteRestore(self.ask)

    def start_helper(self, request: Any, stream_fd: int, back_fd: int, downtime_ms: int = 0) -> HelperProcess:
        """See Host. The helper is a thread here, which asks the hypervisor under its own name."""
        domain: Any = RemoteDomain(self.ask, request.domid)
        back = NO_FD if back_fd == NO_FD else os.dup(back_fd)
        return HelperProcess(ThreadHelper(domain, request, os.dup(stream_fd), back), "colo-save-helper")

    def destroy(self, domid: int) -> None:
        """See Host."""
        self.ask("host", 0, "destroy", domid)


class RemoteArbiter:
    """See Arbiter."""

    def __init__(self, ask: Caller) -> None:
        self._ask = ask

    def read(self, vm: str) -> Seen:
        """See Arbiter."""
        seen: Seen = self._ask("arbiter", 0, "read", vm)
        return seen

    def change(self, seen: Seen, record: Record, lease_s: int) -> Seen:
        """See Arbiter."""
        found: Seen = self._ask("arbiter", 0, "change", seen, record, lease_s)
        return found

    def renew(self, lease: Lease) -> bool:
        """See Arbiter."""
        renewed: bool = self._ask("arbiter", 0, "renew", lease)
        return renewed


class WorldDialer:
    """What Dialer, sshd and the forced command do: a socket to the world, which hands its other end to the peer."""

    def __init__(self, path: Path, ask: Caller) -> None:
        self._path = str(path)
        self._ask = ask
        self._numbers = itertools.count(1)

    def open(self, channel: str, timeout_s: float) -> Connection:
        """See Dialer."""
        number = os.getpid() * 1000 + next(self._numbers)
        deadline = time.monotonic() + timeout_s
        end = socket.socket(socket.AF_UNIX)
        try:
            end.connect(self._path)
            end.sendall(f"{channel} {number}\n".encode().ljust(64))
            while not select.select([end], [], [], _LOOK_S)[0]:
                if time.monotonic() > deadline:
                    raise TimeoutError("timed out")
            answer = end.recv(1)
        except OSError as error:
            end.close()
            raise ConnectError("unreachable", f"There is no way to the peer: {error}.") from error
        if answer != b"K":
            end.close()
            if answer == b"N":
                raise ConnectError("auth_refused", "The peer does not know the key.")
            raise ConnectError("unreachable", "Connection refused.")
        return Connection(number, channel, end, "none", "none", 0)

    def why(self, number: int) -> End | None:
        """See Dialer."""
        refusal = self._ask("line", 0, "why", number)
        return End("refused", refusal) if refusal else None

    def idle(self) -> None:
        """See Dialer."""

    def close(self) -> None:
        """See Dialer."""
