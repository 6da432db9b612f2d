"""Measures the way to a peer on a connection of its own, which the forced command there answers by itself.

``attach VM probe`` takes requests ``<II``: the bytes that follow, and the bytes to be sent back (channel.attach). Channels that
are in use go on; they share the network with the probe for as long as it takes.
"""

from __future__ import annotations

import struct
import time
from dataclasses import asdict
from typing import Any

import paramiko

from colo_helper.channel.peer import PeerAddress, key_file
from colo_helper.channel.ssh import ConnectError, SshConnection, connect
from colo_helper.quantiles import nearest_rank

CHANNEL = "probe"
ECHO_BYTES = 64
#: A round trip on a connection that has just been opened may wait for the other side's start; these are not counted.
WARM_UP = 3
#: Not counted either: a connection's first megabytes go slowly, until the windows of TCP and SSH are open.
WARM_UP_BYTES = 2 << 20
MAX_ECHOES = 10_000
#: Both directions together, with the echoes, stay below what the forced command serves (attach.PROBE_BYTES).
MAX_SIZE_BYTES = 120 << 20
_PART = 32 << 10
#: How long the exit status, before which the forced command says why, may take after the end of the data, in seconds.
_LAST_WORDS_S = 1.0


def probe(peer: PeerAddress, vm: str, echoes: int, size_bytes: int, timeout_s: float) -> dict[str, Any]:
    """Return the report of docs/operations/channels.md; ``error`` is None, or ``cause`` and ``sentence``. Never raises.

    ``size_bytes`` go each way to measure throughput, none with 0. ``timeout_s`` bounds the connection and each answer.
    """
    identity_file = peer.key_file or key_file(vm)
    return {
        "vm": vm,
        "peer": peer.name,
        "address": peer.address,
        "port": peer.port,
        "own_key": _fingerprint(str(identity_file)),
        **_path(peer, vm, echoes, size_bytes, timeout_s),
        "heartbeat": _heartbeat(peer, vm, echoes, timeout_s),
    }


def nowhere(vm: str, cause: str, sentence: str) -> dict[str, Any]:
    """Return the report when it is not known where the peer is."""
    report: dict[str, Any] = dict.fromkeys(
        ("own_key", "host_key", "cipher", "connect_ms", "rtt_ms", "throughput_mb_s")
    )
    error = {"cause": cause, "sentence": sentence}
    return {"vm": vm, "peer": "", "address": "", "port": 22, **report, "heartbeat": None, "error": error}


class _SecondNetwork(PeerAddress):
    """The peer as heartbeats reach it, for a probe: the same host, so its key is pinned under its first address."""

    __slots__ = ()

    def address_of(self, channel: str) -> str:  # noqa: ARG002
        return self.heartbeat_address or self.address


def _heartbeat(peer: PeerAddress, vm: str, echoes: int, timeout_s: float) -> dict[str, Any] | None:
    if not peer.heartbeat_address:
        return None
    found = _path(_SecondNetwork(**asdict(peer)), vm, echoes, 0, timeout_s)
    return {"address": peer.heartbeat_address} | {
        name: found[name] for name in ("connect_ms", "rtt_ms", "error")
    }


def _path(peer: PeerAddress, vm: str, echoes: int, size_bytes: int, timeout_s: float) -> dict[str, Any]:
    report: dict[str, Any] = dict.fromkeys(
        ("host_key", "cipher", "connect_ms", "rtt_ms", "throughput_mb_s", "error")
    )
    started = time.monotonic()
    try:
        connection = connect(peer, vm, CHANNEL, timeout_s)
    except ConnectError as error:
        report["error"] = {"cause": error.cause, "sentence": str(error)}
        return report
    try:
        report |= {"host_key": connection.host_key, "cipher": connection.cipher}
        client = _Client(connection, timeout_s)
        client.ask(0, 1)
        report["connect_ms"] = _ms(time.monotonic() - started)
        report["rtt_ms"] = client.round_trips(echoes)
        if size_bytes:
            report["throughput_mb_s"] = client.throughput(size_bytes)
    except (paramiko.SSHException, OSError, EOFError) as error:
        report["error"] = _ended(connection, error)
    finally:
        connection.close()
    return report


class _Client:
    """Asks on one connection, one request after the other; raises OSError and EOFError."""

    def __init__(self, connection: SshConnection, timeout_s: float) -> None:
        self._channel = connection.channel
        self._channel.settimeout(timeout_s)

    def ask(self, sent: int, wanted: int) -> float:
        """Send ``sent`` bytes and take ``wanted``; returns the seconds that took."""
        started = time.monotonic()
        head = struct.pack("<II", sent, wanted)
        if sent <= ECHO_BYTES:
            self._channel.sendall(head + bytes(sent))
        else:
            self._channel.sendall(head)
            part = bytes(_PART)
            while sent:
                sent -= self._channel.send(part[: min(sent, _PART)])
        while wanted:
            data = self._channel.recv(min(wanted, _PART * 8))
            if not data:
                raise EOFError
            wanted -= len(data)
        return time.monotonic() - started

    def round_trips(self, count: int) -> dict[str, Any]:
        for _ in range(WARM_UP):
            self.ask(ECHO_BYTES, ECHO_BYTES)
        times = sorted(self.ask(ECHO_BYTES, ECHO_BYTES) for _ in range(count))
        return {"p50": _ms(nearest_rank(times, 0.5)), "p99": _ms(nearest_rank(times, 0.99)), "echoes": count}

    def throughput(self, size_bytes: int) -> dict[str, Any]:
        """Megabytes (10^6) in a second each way; the answer to the last byte is part of the time."""
        self.ask(min(size_bytes, WARM_UP_BYTES), 1)
        to_peer, from_peer = self.ask(size_bytes, 1), self.ask(0, size_bytes)
        return {
            "to_peer": round(size_bytes / to_peer / 1e6, 2),
            "from_peer": round(size_bytes / from_peer / 1e6, 2),
            "bytes": size_bytes,
        }


def _ended(connection: SshConnection, error: Exception) -> dict[str, str]:
    """Why a probe ended: what the peer said, or what broke."""
    if isinstance(error, TimeoutError):
        return {"cause": "silent", "sentence": f"{connection.peer.name} did not answer the probe in time."}
    connection.channel.status_event.wait(_LAST_WORDS_S)
    if said := connection.said():
        return {"cause": "refused", "sentence": f"{connection.peer.name} refused the probe: {said}"}
    return {
        "cause": "broken",
        "sentence": f"The connection to {connection.peer.name} ended during the probe.",
    }


def _fingerprint(path: str) -> str | None:
    try:
        return str(paramiko.Ed25519Key.from_private_key_file(path).fingerprint)
    except (OSError, paramiko.SSHException, ValueError):
        return None  # connect() says why in a sentence


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
