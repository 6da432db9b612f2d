"""What all processes of one emulated world share: the clock that leases are counted by, and what befell the hosts."""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NOW, _MONOTONIC, _HOSTS, _HOST_BYTES = 0, 8, 64, 64
_DOUBLE, _COUNT = struct.Struct("<d"), struct.Struct("<q")


class SharedPage:
    """Made before the fork. The world writes it but for ``letting_go``, which is each replicator's own."""

    def __init__(self, start_s: float) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._lock = threading.Lock()
        self.now = self.monotonic = start_s

    @property
    def now(self) -> float:
        """Seconds of the clock by which leases last; all hosts have the same."""
        return float(_DOUBLE.unpack_from(self._map, _NOW)[0])

    @now.setter
    def now(self, value: float) -> None:
        _DOUBLE.pack_into(self._map, _NOW, value)

    @property
    def monotonic(self) -> float:
        """Seconds of the clock that peers time out by. It goes no faster than the machine's, and slower when that is busy."""
        return float(_DOUBLE.unpack_from(self._map, _MONOTONIC)[0])

    @monotonic.setter
    def monotonic(self, value: float) -> None:
        _DOUBLE.pack_into(self._map, _MONOTONIC, value)

    def wall_offset(self, host: int) -> float:
        """By how many seconds the wall clock of a host is wrong."""
        return float(_DOUBLE.unpack_from(self._map, _at(host, 0))[0])

    def set_wall_offset(self, host: int, value: float) -> None:
        """See wall_offset."""
        _DOUBLE.pack_into(self._map, _at(host, 0), value)

    def disk_full(self, host: int) -> bool:
        """Whether nothing can be written to a host's disk."""
        return bool(_COUNT.unpack_from(self._map, _at(host, 1))[0])

    def set_disk_full(self, host: int, value: bool) -> None:
        """See disk_full."""
        _COUNT.pack_into(self._map, _at(host, 1), value)

    def letting_go(self, host: int) -> int:
        """In how many threads a host's replicator is between its look at the clock and the packet that it lets go."""
        return int(_COUNT.unpack_from(self._map, _at(host, 2))[0])

    def forget_letting_go(self, host: int) -> None:
        """The replicator is gone."""
        _COUNT.pack_into(self._map, _at(host, 2), 0)

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
            _COUNT.pack_into(self._map, _at(host, 2), self.letting_go(host) + by)


def _at(host: int, field: int) -> int:
    return _HOSTS + host * _HOST_BYTES + field * 8
