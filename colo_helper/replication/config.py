"""``/etc/colo/vms/VM.json``: what the replicator of one VM shall do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_helper.arbiter.times import LONGEST_S, SHORTEST_S
from colo_helper.channel.session import DEFAULT_MISSES
from colo_helper.helper.policy import TARGET_DOWNTIME_MS

CONFIG = "/etc/colo/vms/{vm}.json"
STATE_DIR = "/var/lib/colo/{vm}"
RUN_DIR = "/run/colo/{vm}"
FORMAT = 1

#: The same names the forced command accepts (channel.attach.parse_command).
VM_NAME = re.compile(r"(?!.*\.\.)[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
#: IFNAMSIZ is 16 with the terminating NUL.
_BRIDGE = re.compile(r"[a-zA-Z0-9_.-]{1,15}")


_ENDPOINT = re.compile(r"https?://[a-zA-Z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")

#: When a packet of the guest leaves: when both copies say the same, or after a checkpoint; after a checkpoint only; at once.
OUTPUTS = ("compare", "hold", "free")
DEFAULT_LATENCY_MS = 500
DEFAULT_MIN_INTERVAL_MS = 100


DEFAULT_LEASE_S = 10


class ConfigError(Exception):
    """The configuration is wrong; the text names the file and the field."""


@dataclass(frozen=True, slots=True)
class ArbiterConfig:
    """Who says who may run the VM: etcd at ``endpoints`` (URLs). ``host`` is this host's name there.

    ``lease_s`` is how long a primary that was never heard of again keeps its secondary waiting. ``ca``, ``certificate`` and
    ``key`` are paths of PEM files; https wants all of them.
    """

    endpoints: tuple[str, ...]
    host: str
    lease_s: int = DEFAULT_LEASE_S
    ca: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """A validated configuration. On a secondary the peer's addresses and port and ``interval_ms`` mean nothing.

    The peer counts as dead after ``peer_timeout_ms`` of silence on every path, which is ``heartbeat_misses`` beats. The
    guest may stand still for ``copy_downtime_ms`` at the end of its first copy; a guest that writes faster than the copy
    goes stands still for longer. ``output`` is one of OUTPUTS; with "free" a client may have seen what a takeover undoes.
    Checkpoints that nothing asks for come after ``interval_ms`` at most. When outputs are compared they come earlier, but not
    before ``min_interval_ms``, so that a client waits ``latency_ms`` at most for an output that differs.
    """

    vm: str
    role: str
    peer_name: str
    peer_timeout_ms: int
    bridge: str
    peer_address: str
    peer_port: int
    interval_ms: int
    peer_heartbeat_address: str = ""
    heartbeat_misses: int = DEFAULT_MISSES
    copy_downtime_ms: int = TARGET_DOWNTIME_MS
    output: str = OUTPUTS[0]
    latency_ms: int = DEFAULT_LATENCY_MS
    min_interval_ms: int = DEFAULT_MIN_INTERVAL_MS
    arbiter: ArbiterConfig | None = None

    @property
    def comparing(self) -> bool:
        """Whether both copies get the clients' packets, and what they say is compared."""
        return self.output == "compare"


def load_config(path: Path, vm: str) -> Config:
    """Read and validate the configuration of ``vm``; raises ConfigError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    try:
        return parse_config(value, vm)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(value: object, vm: str) -> Config:
    """Validate the JSON object of a configuration; raises ConfigError naming the field."""
    if not isinstance(value, dict):
        raise ConfigError("the configuration is not an object.")
    if value.get("format") != FORMAT:
        raise ConfigError(f"field 'format' is {value.get('format')!r}, this program reads {FORMAT}.")
    name = _text(value, "vm")
    if not VM_NAME.fullmatch(name):
        raise ConfigError(f"field 'vm' is {name!r}, which is not the name of a VM.")
    if name != vm:
        raise ConfigError(f"field 'vm' is {name!r}, the file is {vm!r}'s.")
    role = _text(value, "role")
    if role not in ("primary", "secondary"):
        raise ConfigError(f"field 'role' is {role!r}, neither 'primary' nor 'secondary'.")
    peer = value.get("peer")
    if not isinstance(peer, dict):
        raise ConfigError("field 'peer' is not an object.")
    bridge = _text(value, "bridge")
    if not _BRIDGE.fullmatch(bridge):
        raise ConfigError(f"field 'bridge' is {bridge!r}, which is not the name of an interface.")
    primary = role == "primary"
    output = _choice(value, "output", OUTPUTS) if primary else OUTPUTS[0]
    arbiter = _arbiter(value.get("arbiter"))
    if arbiter and output == "free":
        raise ConfigError(
            "field 'output' is 'free', and with an arbiter it cannot be: what leaves at once cannot be stopped when the lease "
            "ends; 'compare' and 'hold' can."
        )
    return Config(
        vm=name,
        role=role,
        peer_name=_text(peer, "name", "peer.name"),
        peer_timeout_ms=_number(value, "peer_timeout_ms", 500, 600_000),
        bridge=bridge,
        peer_address=_text(peer, "address", "peer.address") if primary else "",
        peer_port=_number(peer, "port", 1, 65535, "peer.port", default=22) if primary else 0,
        interval_ms=_number(value, "interval_ms", 10, 3_600_000) if primary else 0,
        peer_heartbeat_address=_heartbeat_address(peer) if primary else "",
        heartbeat_misses=_number(value, "heartbeat_misses", 2, 100, default=DEFAULT_MISSES),
        copy_downtime_ms=_number(value, "copy_downtime_ms", 1, 600_000, default=TARGET_DOWNTIME_MS),
        output=output,
        latency_ms=_number(value, "latency_ms", 1, 600_000, default=DEFAULT_LATENCY_MS),
        min_interval_ms=_number(value, "min_interval_ms", 10, 3_600_000, default=DEFAULT_MIN_INTERVAL_MS),
        arbiter=arbiter,
    )


def _arbiter(value: object) -> ArbiterConfig | None:
    """Validate the arbiter; without one operators decide."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError("field 'arbiter' is not an object.")
    endpoints = value.get("endpoints")
    if not isinstance(endpoints, list) or not endpoints:
        raise ConfigError(f"field 'arbiter.endpoints' is {endpoints!r}, not a list of URLs.")
    for url in endpoints:
        if not isinstance(url, str) or not _ENDPOINT.fullmatch(url):
            raise ConfigError(
                f"field 'arbiter.endpoints' has {url!r}, which is not like https://witness:2379."
            )
    files = {name: value.get(name, "") for name in ("ca", "certificate", "key")}
    for name, path in files.items():
        if not isinstance(path, str) or (not path and endpoints[0].startswith("https:")):
            raise ConfigError(f"field 'arbiter.{name}' is {path!r}, not the path of a PEM file.")
    return ArbiterConfig(
        tuple(endpoints),
        _text(value, "host", "arbiter.host"),
        _number(value, "lease_s", SHORTEST_S, LONGEST_S, "arbiter.lease_s", default=DEFAULT_LEASE_S),
        **files,
    )


def _choice(value: dict[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """Return one of ``choices``; the first is the default."""
    found = value.get(key, choices[0])
    if found not in choices:
        raise ConfigError(f"field '{key}' is {found!r}, which is none of {', '.join(choices)}.")
    return str(found)


def _heartbeat_address(peer: dict[str, Any]) -> str:
    """The peer on a second network; without one the heartbeat takes the same way as the rest."""
    if peer.get("heartbeat_address") in (None, ""):
        return ""
    return _text(peer, "heartbeat_address", "peer.heartbeat_address")


def _text(value: dict[str, Any], key: str, field: str = "") -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found:
        raise ConfigError(f"field '{field or key}' is {found!r}, not a text.")
    return found


def _number(
    value: dict[str, Any], key: str, low: int, high: int, field: str = "", default: int | None = None
) -> int:
    found = value.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise ConfigError(f"field '{field or key}' is {found!r}, not a whole number from {low} to {high}.")
    return found
