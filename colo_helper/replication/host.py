"""What replication asks of the host: domains by name, their configuration, save helpers, and the copy's toolstack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from colo_helper.devices.interface import DeviceError
from colo_helper.helper.argv import RestoreRequest, SaveRequest
from colo_helper.helper.callout import Callbacks, Look, Outcome
from colo_helper.helper.policy import TARGET_DOWNTIME_MS
from colo_helper.replication.guest import Guest


class HostError(DeviceError):
    """The toolstack of this host failed; the text has what it said."""


class RestoreStream(Protocol):
    """Where the first copy goes. Methods may raise HostError."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""

    def finish(self) -> int:
        """The copy is complete; returns the number of the new, paused domain."""

    def abandon(self) -> None:
        """Give up; nothing of the domain stays."""


#: The largest piece of the first copy in one frame.
COPY_CHUNK_BYTES = 256 << 10


class Helper(Protocol):
    """A save helper that has been started; see helper.callout.HelperProcess."""

    def serve(self, callbacks: Callbacks, watch: Mapping[int, Look] | None = None) -> Outcome:
        """Serve it until it has ended."""


class Host(Protocol):
    """This host. Methods may raise HostError, and HypervisorError where a domain is opened."""

    @property
    def release(self) -> str:
        """The running Xen release, such as ``4.17``."""

    def find(self, vm: str) -> int | None:
        """Return the number of the domain of that name, or None."""

    def open_guest(self, domid: int) -> Guest:
        """Open a domain for replication."""

    def configuration(self, vm: str) -> bytes:
        """Return the guest's configuration as libxl's JSON, as xl saves it."""

    def device_model_entries(self, domid: int) -> list[tuple[bytes, bytes]]:
        """Return what a device model keeps in xenstore and a copy's needs: (relative key, value)."""

    def restore(self, vm: str) -> RestoreStream:
        """Start to build the copy's domain."""

    def start_helper(
        self,
        request: SaveRequest | RestoreRequest,
        stream_fd: int,
        back_fd: int,
        downtime_ms: int = TARGET_DOWNTIME_MS,
    ) -> Helper:
        """Start our save helper on a domain; both descriptors stay the caller's.

        ``downtime_ms`` is how long a guest may stand still for the last round of a live copy, if the helper makes one.
        """

    def destroy(self, domid: int) -> None:
        """Destroy a domain; harmless when it is gone."""

    def going_down(self) -> bool:
        """Whether this host is being shut down, or started anew, in order."""
