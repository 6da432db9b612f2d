"""Bytes between one SSH connection and the socket whose other end the replicator has: two threads, bounded memory.

What the replicator writes waits in its socket while the peer takes nothing, and what the peer sends stays within SSH's
window (2 MiB) while the replicator takes nothing. A half-close goes through in both directions.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import paramiko

from colo_helper.channel.peer import End
from colo_helper.channel.ssh import SshConnection

#: paramiko sends at most this much less than the peer's largest packet in one piece.
_PACKET_HEAD_BYTES = 64
#: Packets that are sent together, 256 KiB: what OpenSSH takes with one read.
_GATHERED_PACKETS = 8
_READ_BYTES = 256 << 10
_LOST = (OSError, EOFError, paramiko.SSHException)
#: New keys are negotiated in a quiet moment once this much has passed since the last ones, a quarter of what forces them,
#: and after an hour (RFC 4253, 9).
RENEW_AFTER_BYTES = 256 << 20
RENEW_AFTER_S = 3600.0


class Local(Protocol):
    """What a bridge does with the socket on our side."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Wait for bytes; 0 at their end."""

    def sendall(self, data: bytes, /) -> None:
        """Write all of it."""

    def shutdown(self, how: int, /) -> None:
        """End one way or both; who waits in ``recv_into`` then gets the end."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def close(self) -> None:
        """Close it."""


class Bridge:
    """``run`` returns when the connection has ended; ``report`` is called once, before the replicator reads the end.

    ``said`` returns what the peer wrote on stderr, where somebody else reads that.
    """

    def __init__(
        self,
        channel: str,
        connection: SshConnection,
        local: Local,
        report: Callable[[End], None],
        said: Callable[[], str] | None = None,
    ) -> None:
        self.local = local
        self._said = said or connection.said
        self._name = channel
        self._connection = connection
        self._report = report
        self._lock = threading.Lock()
        self._concluded = False
        self._inward_ended = self._outward_ended = False
        self._abandoned = False
        self._renewing = False

    def run(self) -> None:
        """Carry bytes both ways until the connection has ended, and close it. ``local`` stays open."""
        outward = threading.Thread(target=self._outward, name=f"{self._name}-out", daemon=True)
        outward.start()
        self._inward()
        self._conclude()
        self._connection.close()
        self._shut(socket.SHUT_RDWR)
        outward.join()

    def hung_up(self) -> None:
        """Take note that the replicator reads and writes no more; what it wrote before is still delivered."""
        self._abandoned = not self._inward_ended

    def cut(self) -> None:
        """End the connection now."""
        self._connection.close()

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):  # the replicator has closed its end already
            self.local.shutdown(how)

    # ----------------------------------------------------------------------------------------------------------- bytes

    def _outward(self) -> None:
        channel = self._connection.channel
        packetizer = self._connection.packetizer
        piece_bytes = channel.out_max_packet_size - _PACKET_HEAD_BYTES
        buffer = memoryview(bytearray(_GATHERED_PACKETS * piece_bytes))
        try:
            while count := self._read(buffer):
                with packetizer.gathered():
                    start = 0
                    while start < count:
                        if not channel.send_ready():  # it will wait for the peer
                            packetizer.flush()
                        sent = channel.send(bytes(buffer[start : min(start + piece_bytes, count)]))
                        if not sent:
                            raise EOFError
                        start += sent
            channel.shutdown_write()
            self._outward_ended = True
        except _LOST as error:
            if isinstance(error, paramiko.SSHException):
                self._connection.close()  # it stands, but paramiko cannot go on with it
            # Nobody takes this any more, so the replicator must not wait for room.
            self._conclude()
            self._shut(socket.SHUT_RD)

    def _read(self, buffer: memoryview) -> int:
        try:
            return self.local.recv_into(buffer)
        except ConnectionResetError:
            return 0  # the replicator closed its end without reading all

    def _inward(self) -> None:
        channel = self._connection.channel
        try:
            while data := channel.recv(_READ_BYTES):
                # Once the replicator has gone there is nobody to read it; the peer still must be able to end in order.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.local.sendall(data)
            if not channel.exit_status_ready():
                self._inward_ended = True
                self._shut(socket.SHUT_WR)
                channel.recv_exit_status()  # returns when the connection ends in whatever way
        except _LOST:
            return  # ``_conclude`` finds the cause

    # ----------------------------------------------------------------------------------------------------------- the end

    def _conclude(self) -> None:
        with self._lock:
            if self._concluded:
                return
            self._concluded = True
        self._report(self._end())

    def _end(self) -> End:
        connection = self._connection
        name = connection.peer.name
        status = connection.channel.recv_exit_status()  # -1: none was given
        said = self._said()
        if said and status != 0:
            return End("refused", f"{name} refused the {self._name} channel: {said}")
        if self._abandoned:
            return End("closed", f"The {self._name} channel to {name} was closed on this side.")
        if status > 0:
            return End("peer_closed", f"{name} closed the {self._name} channel with status {status}.")
        in_order = self._inward_ended and self._outward_ended
        if status == 0 or in_order or connection.packetizer.channel_closed:
            return End("peer_closed", f"{name} closed the {self._name} channel.")
        error = connection.transport.get_exception()
        why = str(error) if error is not None and not isinstance(error, EOFError) else ""
        return End("broken", f"The {self._name} channel to {name} broke: {why or 'the connection was lost'}.")

    # ---------------------------------------------------------------------------------------------------------- new keys

    def renew_keys(self) -> bool:
        """Negotiate new keys if the present ones have served long enough; returns whether it did, after it has."""
        packetizer = self._connection.packetizer
        due = (
            packetizer.bytes_since_keys > RENEW_AFTER_BYTES or packetizer.keys_age_s > RENEW_AFTER_S
        ) and not packetizer.need_rekey()
        with self._lock:
            if not due or self._renewing or self._concluded:
                return False
            self._renewing = True
        try:
            self._connection.transport.renegotiate_keys()
        except _LOST:
            return False  # the connection has ended, which is reported elsewhere
        finally:
            self._renewing = False
        return True
