"""SSH with the peer, by paramiko: one connection, one session channel, one command on it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry

from colo_helper.channel.packetizer import GcmPacketizer
from colo_helper.channel.peer import ConnectError, PeerAddress, key_file

__all__ = ["ConnectError", "PeerAddress", "SshConnection", "connect", "explain"]

#: AES-GCM authenticates while it encrypts: one pass less over every page than CTR with a MAC.
PREFERRED_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
#: Without AES in the processor the carry-less multiplication of GCM is the slower of the two.
CIPHERS_WITHOUT_AES = ("aes128-ctr", "aes256-ctr", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
CPUINFO = Path("/proc/cpuinfo")
_MAX_REASON_BYTES = 4096
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


def connect(peer: PeerAddress, vm: str, channel: str, timeout_s: float, command: str = "") -> SshConnection:
    """Run ``command``, or ``attach VM CHANNEL``, at the peer; raises ConnectError, after ``timeout_s`` at the latest.

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
            return _attach(transport, (peer, where), (identity, pinned), command or f"attach {vm} {channel}")
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
    if "ssh-rsa" in kinds:
        kinds |= {"rsa-sha2-256", "rsa-sha2-512"}  # what such a key signs with (RFC 8332)
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
        case paramiko.AuthenticationException() if "EOF" not in said:
            cause = "auth_refused"
            sentence = (
                f"{where} does not accept our key {peer.key_file} for the user {peer.user}: pair the hosts."
            )
        case paramiko.ChannelException():
            cause, sentence = "refused", f"{where} opens no channel for the user {peer.user}: {error.text}."
        case FileNotFoundError():
            return _not_paired(error)
        case OSError():
            cause, sentence = "unreachable", f"{where} cannot be reached: {error}."
        case _ if isinstance(error, EOFError) or "EOF" in said or "banner" in said:
            cause, sentence = "unreachable", f"{where} closed the connection before it let us in."
        case _:
            cause, sentence = "ssh_failed", f"SSH with {where} failed: {error}."
    return ConnectError(cause, sentence)
