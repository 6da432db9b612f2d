"""The primary's two SSH connections to the secondary's host, by paramiko.

Two connections and not two channels of one: each has its own cipher, window and TCP buffers, so the dirty bitmap on
the back channel never waits behind pages on the forward one.
"""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import paramiko

from colo_helper.channel.stream import ByteStream, ChannelLostError, Patience, write_frame
from colo_helper.channel.wire import Kind, encode

USER = "colo"
KEY_FILE = Path("/etc/colo/ssh/id_ed25519")
KNOWN_HOSTS = Path("/etc/colo/ssh/known_hosts")
#: AES-GCM authenticates while it encrypts: one pass less over every page than CTR with a MAC.
PREFERRED_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_MAX_REASON_BYTES = 4096
_PACKET_BYTES = 32 << 10


class _GcmTransport(paramiko.Transport):
    """paramiko's transport, which would prefer CTR with a separate MAC."""

    _preferred_ciphers = PREFERRED_CIPHERS


class ConnectError(Exception):
    """The channel to the peer could not be made. ``cause`` is one word for programs."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where the peer's sshd listens, and how to prove who we and it are."""

    name: str
    address: str
    port: int
    key_file: Path = KEY_FILE
    known_hosts: Path = KNOWN_HOSTS

    @property
    def host_key_name(self) -> str:
        """The name of the peer's entry in known_hosts, as OpenSSH writes it."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"


class SshStream:
    """One SSH connection with one command on it; see ByteStream."""

    def __init__(self, client: paramiko.SSHClient, channel: paramiko.Channel, peer: PeerAddress) -> None:
        self.last_read = 0.0
        self._client = client
        self._channel = channel
        self._peer = peer

    def read(self, length: int, patience: Patience, slice_s: float) -> bytes:
        """See ByteStream."""
        data = bytearray()
        while len(data) < length:
            self._channel.settimeout(slice_s)
            try:
                part = self._channel.recv(length - len(data))
            except TimeoutError:
                patience()
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise ChannelLostError(self.ending(error)) from error
            if not part:
                raise ChannelLostError(self.ending(None))
            self.last_read = time.monotonic()
            data += part
        return bytes(data)

    def write(self, data: bytes, patience: Patience, slice_s: float) -> None:
        """See ByteStream."""
        done = 0
        while done < len(data):
            self._channel.settimeout(slice_s)
            try:
                # paramiko takes one SSH packet (32 KiB) at a time; a small slice avoids copying the rest each time.
                sent = self._channel.send(data[done : done + _PACKET_BYTES])
            except TimeoutError:
                patience()
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise ChannelLostError(self.ending(error)) from error
            if sent == 0:
                raise ChannelLostError(self.ending(None))
            done += sent

    def ending(self, error: Exception | None) -> str:
        """Say why the channel ended: what the forced command said, or what broke."""
        said = b""
        while self._channel.recv_stderr_ready() and len(said) < _MAX_REASON_BYTES:
            said += self._channel.recv_stderr(_MAX_REASON_BYTES)
        if said.strip():
            return f"{self._peer.name} ended the channel: {said.decode(errors='replace').strip()}"
        if error is not None and str(error):
            return f"The channel to {self._peer.name} broke: {error}."
        return f"{self._peer.name} closed the channel."

    def close(self) -> None:
        """See ByteStream."""
        self._client.close()


def connect_pair(peer: PeerAddress, vm: str, timeout_s: float) -> tuple[ByteStream, ByteStream]:
    """Return (forward, back), opened as one session; raises ConnectError with the cause as a sentence."""
    session = secrets.token_hex(8)
    forward = _open_channel(peer, vm, "forward", session, timeout_s)
    try:
        return forward, _open_channel(peer, vm, "back", session, timeout_s)
    except BaseException:
        forward.close()
        raise


def _open_channel(peer: PeerAddress, vm: str, channel: str, session: str, timeout_s: float) -> SshStream:
    client = _connect(peer, timeout_s)
    command = f"attach {vm} {channel}"
    stream: SshStream | None = None

    def expired() -> None:
        raise ChannelLostError(f"{peer.name} takes no data.")

    try:
        transport = client.get_transport()
        assert transport is not None
        ssh_channel = transport.open_session(timeout=timeout_s)
        ssh_channel.settimeout(timeout_s)
        stream = SshStream(client, ssh_channel, peer)
        ssh_channel.exec_command(command)
        opening = encode(Kind.OPEN, {"session": session, "channel": channel, "vm": vm})
        write_frame(stream, opening, expired, timeout_s)
    except (paramiko.SSHException, OSError, EOFError, ChannelLostError) as error:
        said = str(error) if isinstance(error, ChannelLostError) or not stream else stream.ending(error)
        client.close()
        reason = said.rstrip(".") or "no reason given"
        raise ConnectError(
            "command_refused", f"{peer.name} refused the command '{command}': {reason}."
        ) from error
    return stream


def _connect(peer: PeerAddress, timeout_s: float) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    where = f"{peer.name} ({peer.address} port {peer.port})"
    try:
        client.load_host_keys(str(peer.known_hosts))
        connection = socket.create_connection((peer.address, peer.port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect(
            peer.address,
            port=peer.port,
            sock=connection,
            username=USER,
            key_filename=str(peer.key_file),
            timeout=timeout_s,
            banner_timeout=timeout_s,
            auth_timeout=timeout_s,
            allow_agent=False,
            look_for_keys=False,
            # The type stubs still have the GSS options that paramiko 5 dropped.
            transport_factory=_GcmTransport,  # type: ignore[arg-type]
        )
    except (paramiko.SSHException, OSError, EOFError) as error:
        client.close()
        raise explain(error, peer, where) from error
    return client


def explain(error: Exception, peer: PeerAddress, where: str) -> ConnectError:
    """Turn what paramiko or the system raised into a cause and a sentence that says what to do."""
    if isinstance(error, paramiko.BadHostKeyException):
        return ConnectError(
            "host_key_changed",
            f"The host key of {where} is not the one pinned in {peer.known_hosts}: pair the hosts again if that "
            "host was reinstalled, otherwise somebody else answers there.",
        )
    if isinstance(error, paramiko.AuthenticationException):
        return ConnectError(
            "auth_refused",
            f"{where} does not accept our key {peer.key_file} for the user {USER}: pair the hosts.",
        )
    if isinstance(error, paramiko.SSHException) and "not found in known_hosts" in str(error):
        return ConnectError(
            "host_key_unknown", f"No host key of {where} is pinned in {peer.known_hosts}: pair the hosts."
        )
    if isinstance(error, FileNotFoundError):
        return ConnectError("not_paired", f"{error.filename} does not exist on this host: pair the hosts.")
    if isinstance(error, (OSError, EOFError)):
        return ConnectError("unreachable", f"{where} cannot be reached: {error or 'connection closed'}.")
    return ConnectError("ssh_failed", f"SSH with {where} failed: {error}.")
