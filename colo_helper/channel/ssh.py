"""SSH with the peer, by paramiko: one connection, one session channel, one command on it."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
from paramiko.hostkeys import HostKeyEntry

from colo_helper.channel.packetizer import GcmPacketizer
from colo_helper.channel.peer import SSH_DIRECTORY, USER, ConnectError, PeerAddress, key_file
from colo_helper.channel.stream import ChannelLostError, Patience, write_frame
from colo_helper.channel.wire import Kind, encode

if TYPE_CHECKING:
    from colo_helper.channel.stream import ByteStream

__all__ = ["ConnectError", "PeerAddress", "SshConnection", "connect", "explain"]

KEY_FILE = SSH_DIRECTORY / "id_ed25519"
#: AES-GCM authenticates while it encrypts: one pass less over every page than CTR with a MAC.
PREFERRED_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
#: Without AES in the processor the carry-less multiplication of GCM is the slower of the two.
CIPHERS_WITHOUT_AES = ("aes128-ctr", "aes256-ctr", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
CPUINFO = Path("/proc/cpuinfo")
_MAX_REASON_BYTES = 4096
_PACKET_BYTES = 32 << 10
_FEATURE_LINES = ("flags", "Features")  # x86, ARM


def ciphers(cpuinfo: str) -> tuple[str, ...]:
    """Return the ciphers in the order of our preference, from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in _FEATURE_LINES:
            return PREFERRED_CIPHERS if "aes" in values.split() else CIPHERS_WITHOUT_AES
    return PREFERRED_CIPHERS


def pinned_keys(known_hosts: Path, name: str) -> list[paramiko.PKey]:
    """Return the host keys pinned for ``name``; raises OSError. Lines that name no key are passed over."""
    keys = []
    for number, line in enumerate(known_hosts.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(("#", "@")):
            continue
        with contextlib.suppress(paramiko.SSHException, ValueError):
            entry = HostKeyEntry.from_line(text, number)
            if entry and entry.key and name in (entry.hostnames or ()):
                keys.append(entry.key)
    return keys


@dataclass(frozen=True, slots=True)
class SshConnection:
    """An open connection with its command running. ``host_key`` is the fingerprint as ``ssh-keygen -l`` shows it."""

    peer: PeerAddress
    transport: paramiko.Transport
    packetizer: GcmPacketizer
    channel: paramiko.Channel
    cipher: str
    host_key: str

    def said(self) -> str:
        """Return what the forced command wrote on stderr, at most 4096 bytes, on one line."""
        said = b""
        while self.channel.recv_stderr_ready() and len(said) < _MAX_REASON_BYTES:
            said += self.channel.recv_stderr(_MAX_REASON_BYTES - len(said))
        return " ".join(said.decode(errors="replace").split())

    def close(self) -> None:
        """End the connection; who reads or writes the channel gets its end."""
        self.transport.close()


def connect(peer: PeerAddress, vm: str, channel: str, timeout_s: float) -> SshConnection:
    """Run ``attach VM CHANNEL`` at the peer; raises ConnectError, after ``timeout_s`` at the latest.

    The peer must show a host key that is pinned; ours is the only key that is offered.
    """
    identity_file = peer.key_file or key_file(vm)
    peer = replace(peer, key_file=identity_file)
    address = peer.address_of(channel)
    where = f"{peer.name} ({address} port {peer.port})"
    deadline = time.monotonic() + timeout_s
    try:
        identity = _identity(identity_file)
        pinned = pinned_keys(peer.known_hosts, peer.host_key_name)
    except OSError as error:
        raise _not_paired(error) from error
    if not pinned:
        raise ConnectError(
            "host_key_unknown",
            f"No host key of {peer.name} is pinned as {peer.host_key_name} in {peer.known_hosts}: pair the hosts.",
        )
    try:
        connection = socket.create_connection((address, peer.port), timeout_s)
    except OSError as error:
        raise explain(error, peer, where) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        with contextlib.suppress(OSError):  # it is closed already
            connection.shutdown(socket.SHUT_RDWR)

    watch = threading.Timer(max(0.0, deadline - time.monotonic()), expire)
    watch.daemon = True
    watch.start()
    try:
        transport = _transport(connection, pinned, timeout_s)
        try:
            return _attach(transport, (peer, where), (identity, pinned), f"attach {vm} {channel}")
        except BaseException:
            transport.close()
            raise
    except (paramiko.SSHException, OSError, EOFError) as error:
        connection.close()
        if expired.is_set():
            raise ConnectError("unreachable", f"{where} did not let us in within {timeout_s:g} s.") from error
        raise explain(error, peer, where) from error
    finally:
        watch.cancel()


def _identity(path: Path) -> paramiko.PKey:
    """Read our private key; raises OSError, and ConnectError when the file holds something else."""
    try:
        return paramiko.Ed25519Key.from_private_key_file(str(path))
    except (paramiko.SSHException, ValueError) as error:
        raise ConnectError(
            "not_paired", f"{path} holds no private key of the kind ed25519 ({error}): pair the hosts."
        ) from error


def _transport(
    connection: socket.socket, pinned: list[paramiko.PKey], timeout_s: float
) -> paramiko.Transport:
    transport = paramiko.Transport(connection, packetizer_class=GcmPacketizer)
    # The time limit of ``connect`` comes first.
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout_s
    options = transport.get_security_options()
    options.ciphers = ciphers(CPUINFO.read_text(encoding="utf-8"))
    kinds = {key.get_name() for key in pinned}
    # The peer shall show a key that we can compare, if it has one.
    options.key_types = sorted(options.key_types, key=lambda kind: kind not in kinds)
    return transport


def _attach(
    transport: paramiko.Transport,
    place: tuple[PeerAddress, str],
    keys: tuple[paramiko.PKey, list[paramiko.PKey]],
    command: str,
) -> SshConnection:
    (peer, where), (identity, pinned) = place, keys
    transport.start_client()
    shown = transport.get_remote_server_key()
    if shown not in pinned:
        raise _host_key_changed(peer, where)
    if transport.auth_publickey(peer.user, identity):
        raise paramiko.AuthenticationException("more than a key is asked for")
    channel = transport.open_session()
    try:
        channel.exec_command(command)
    except (paramiko.SSHException, EOFError) as error:
        if not transport.is_active():
            raise
        raise ConnectError(
            "refused", f"{where} does not run '{command}' for the user {peer.user}."
        ) from error
    packetizer = transport.packetizer
    assert isinstance(packetizer, GcmPacketizer)
    return SshConnection(
        peer, transport, packetizer, channel, str(transport.local_cipher), str(shown.fingerprint)
    )


def _host_key_changed(peer: PeerAddress, where: str) -> ConnectError:
    return ConnectError(
        "host_key_changed",
        f"The host key of {where} is not the one pinned in {peer.known_hosts}: pair the hosts again if that "
        "host was reinstalled, otherwise somebody else answers there.",
    )


def _not_paired(error: OSError) -> ConnectError:
    what = "does not exist on this host" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
    return ConnectError("not_paired", f"{error.filename} {what}: pair the hosts.")


def explain(error: Exception, peer: PeerAddress, where: str) -> ConnectError:
    """Turn what paramiko or the system raised into a cause and a sentence that says what to do."""
    said = str(error)
    match error:
        case paramiko.BadHostKeyException():
            return _host_key_changed(peer, where)
        case paramiko.AuthenticationException() if "EOF" not in said:
            cause = "auth_refused"
            sentence = (
                f"{where} does not accept our key {peer.key_file} for the user {peer.user}: pair the hosts."
            )
        case paramiko.ChannelException():
            cause, sentence = "refused", f"{where} opens no channel for the user {peer.user}: {error.text}."
        case paramiko.SSHException() if "not found in known_hosts" in said:
            cause = "host_key_unknown"
            sentence = f"No host key of {where} is pinned in {peer.known_hosts}: pair the hosts."
        case FileNotFoundError():
            return _not_paired(error)
        case OSError():
            cause, sentence = "unreachable", f"{where} cannot be reached: {error}."
        case _ if isinstance(error, EOFError) or "EOF" in said or "banner" in said:
            cause, sentence = "unreachable", f"{where} closed the connection before it let us in."
        case _:
            cause, sentence = "ssh_failed", f"SSH with {where} failed: {error}."
    return ConnectError(cause, sentence)


class _GcmTransport(paramiko.Transport):
    """paramiko's transport, which would prefer CTR with a separate MAC."""

    _preferred_ciphers = PREFERRED_CIPHERS


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
            key_filename=str(peer.key_file or KEY_FILE),
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
