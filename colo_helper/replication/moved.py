"""Where a replicator leaves the table of moved connections for the next one of the same guest."""

from __future__ import annotations

import os
import time
from pathlib import Path

from colo_helper.devices.interface import DeviceError
from colo_helper.monitor.files import read_json, write_json
from colo_helper.traffic.moves import Moves, from_plain, plain


def left_behind(vm: str, moves: Moves) -> str:
    """Say what becomes of the connections when a replicator leaves them; empty when there are none."""
    count = sum(map(len, moves))
    if not count:
        return ""
    return (
        f"Connections of {vm} whose numbers an earlier takeover has moved ({count}) wait for its next replicator here; without "
        "one they break."
    )


#: A client that hears nothing for so long has given the connection up (Linux: tcp_retries2 is 15), in seconds.
_GIVEN_UP_S = 925


class MovesFile:
    """Keeps the table of one domain of this boot; on a tmpfs, so that it goes with the host.

    Each write, also of what is there already, says that the connections are being served; what nobody has served for
    _GIVEN_UP_S is void. The file's time says it, by the clock that no one sets: since the host's boot.

    ``path`` None: nobody will ask (a guest that nobody else opens).
    """

    def __init__(self, path: Path | None = None, domid: int = -1) -> None:
        self._path = path
        self._domid = domid
        self._written: Moves | None = None

    def read(self) -> Moves:
        """Return what is known of the domain's connections; raises OSError, or DeviceError when it cannot be understood."""
        if not self._path:
            return []
        try:
            value = read_json(self._path)
            age_s = (_now_ns() - self._path.stat().st_mtime_ns) / 1e9
            if value.get("domid") != self._domid or not 0 <= age_s <= _GIVEN_UP_S:
                return []
            return from_plain(value["nics"])
        except FileNotFoundError:
            return []
        except (ValueError, LookupError) as error:
            raise DeviceError(f"What {self._path} says of connections cannot be used: {error}") from error

    def write(self, moves: Moves) -> None:
        """Replace what is known; raises OSError."""
        if not self._path:
            return
        if not any(moves):
            self._path.unlink(missing_ok=True)
        else:
            if moves != self._written:
                write_json(self._path, {"domid": self._domid, "nics": plain(moves)})
            os.utime(self._path, ns=(_now_ns(), _now_ns()))
        self._written = moves


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
