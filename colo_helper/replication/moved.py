"""Where a replicator leaves the table of moved connections for the next one of the same guest."""

from __future__ import annotations

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


class MovesFile:
    """Keeps the table of one domain of this boot; on a tmpfs, so that it goes with the host.

    ``path`` None: nobody will ask (a guest that nobody else opens).
    """

    def __init__(self, path: Path | None = None, domid: int = -1) -> None:
        self._path = path
        self._domid = domid
        self._written: Moves | None = None

    def read(self) -> Moves:
        """Return what is known of the domain's connections; raises OSError, or DeviceError when it cannot be understood."""
        try:
            value = read_json(self._path) if self._path else {}
            return from_plain(value["nics"]) if value.get("domid") == self._domid else []
        except FileNotFoundError:
            return []
        except (ValueError, LookupError) as error:
            raise DeviceError(f"What {self._path} says of connections cannot be used: {error}") from error

    def write(self, moves: Moves) -> None:
        """Replace what is known; raises OSError."""
        if not self._path or moves == self._written:
            return
        if any(moves):
            write_json(self._path, {"domid": self._domid, "nics": plain(moves)})
        else:
            self._path.unlink(missing_ok=True)
        self._written = moves
