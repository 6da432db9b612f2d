"""What all processes of one emulated world share: the clock that leases are counted by, and what befell the hosts."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NOW, _MONOTONIC, _HOSTS, _HOST_BYTES = 0, 8, 64, 64


class SharedPage:
    """Made before the fork. The world writes it but for ``letting_go``, which is each replicator's own.

    ctypes reads and writes each value by one instruction; struct does not, and a reader would see half of one, or nothing.
    """

    def __init__(self, start_s: float) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._lock = threading.Lock()
        self._clocks = {at: ctypes.c_double.from_buffer(self._map, at) for at in (_NOW, _MONOTONIC)}
        self._offsets = [ctypes.c_double.from_buffer(self._map, _at(host, 0)) for host in range(2)]
        self._full, self._going = (
            [ctypes.c_int64.from_buffer(self._map, _at(host, field)) for host in range(2)] for field in (1, 2)
        )
        self.now = self.monotonic = start_s

    @property
    def now(self) -> float:
        """Seconds of the clock by which leases last; all hosts have the same."""
        return self._clocks[_NOW].value

    @now.setter
    def now(self, value: float) -> None:
        self._clocks[_NOW].value = value

    @property
    def monotonic(self) -> float:
        """Seconds of the clock that peers time out by. It goes no faster than the machine's, and slower when that is busy."""
        return self._clocks[_MONOTONIC].value

    @monotonic.setter
    def monotonic(self, value: float) -> None:
        self._clocks[_MONOTONIC].value = value

    def wall_offset(self, host: int) -> float:
        """By how many seconds the wall clock of a host is wrong."""
        return self._offsets[host].value

    def set_wall_offset(self, host: int, value: float) -> None:
        """See wall_offset."""
        self._offsets[host].value = value

    def disk_full(self, host: int) -> bool:
        """Whether nothing can be written to a host's disk."""
        return bool(self._full[host].value)

    def set_disk_full(self, host: int, value: bool) -> None:
        """See disk_full."""
        self._full[host].value = value

    def letting_go(self, host: int) -> int:
        """In how many threads a host's replicator is between its look at the clock and the packet that it lets go."""
        return self._going[host].value

    def forget_letting_go(self, host: int) -> None:
        """The replicator is gone."""
        self._going[host].value = 0

    @contextmanager
    def lets_go(self, host: int) -> Iterator[None]:
        """Mark such a moment; any thread of that host's replicator."""
        self._count(host, 1)
        try:
            yield
        finally:
            self._count(host, -1)

    def _count(self, host: int, by: int) -> None:
        with self._lock:
            self._going[host].value += by


def _at(host: int, field: int) -> int:
    return _HOSTS + host * _HOST_BYTES + field * 8
