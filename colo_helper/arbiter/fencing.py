"""Switching the other host off before a copy takes over: by fence agents, or by programs of one's own.

``/etc/colo/fencing/HOST.json`` says how ``HOST`` is switched off. Devices are tried in turn until one says that it is done.
(A fence agent gets its options on stdin, one ``name=value`` a line, and has made sure that the power is off when it ends
with 0 after ``action=off``: ClusterLabs, FenceAgentAPI.md.)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCING = "/etc/colo/fencing/{host}.json"
FORMAT = 1
DEFAULT_TIMEOUT_S = 60
_LONGEST_S = 300
_AGENT = re.compile(r"fence_[a-z0-9_]+")
_SAID_CHARACTERS = 200


class FencingError(Exception):
    """The configuration is wrong; the text names the file and the field."""


@dataclass(frozen=True, slots=True)
class Device:
    """One way to switch a host off: a program, what it reads, and for how long it may try."""

    command: tuple[str, ...]
    given: str
    timeout_s: int

    @property
    def name(self) -> str:
        """The program, for sentences."""
        return Path(self.command[0]).name


@dataclass(frozen=True, slots=True)
class Fencing:
    """How ``host`` is switched off. Where it is ``required``, nobody takes over from a host that could not be."""

    host: str
    devices: tuple[Device, ...]
    required: bool = True


@dataclass(frozen=True, slots=True)
class Fenced:
    """What came of it. ``may_go_on``: the host is off, or it need not be."""

    off: bool
    may_go_on: bool
    sentence: str


def fence(fencing: Fencing, vm: str) -> Fenced:
    """Switch the host off; returns once a device has, or all have failed (each after ``timeout_s`` at most)."""
    host = fencing.host
    problems: list[str] = []
    for device in fencing.devices:
        problem = _run(device, host, vm)
        if not problem:
            failed = f" ({'; '.join(problems)})" if problems else ""
            return Fenced(True, True, f"{host} was switched off by {device.name}{failed}.")
        problems.append(f"{device.name}: {problem}")
    why = f"{host} could not be switched off: {'; '.join(problems)}."
    if fencing.required:
        why += f" {vm} goes on here when it is, or when an operator says so (playbooks/failover.yml)."
    return Fenced(False, not fencing.required, why)


def _run(device: Device, host: str, vm: str) -> str:
    """Run a device for a VM; returns what went wrong, an empty text when the host is off."""
    environment = {**os.environ, "COLO_FENCE_HOST": host, "COLO_VM": vm}
    try:
        done = subprocess.run(
            device.command,
            input=device.given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=device.timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {device.timeout_s} s"
    except OSError as error:
        return error.strerror or str(error)
    if done.returncode == 0:
        return ""
    said = " ".join((done.stderr.strip() or done.stdout.strip()).split())[-_SAID_CHARACTERS:]
    return f"ended with {done.returncode}" + (f", {said}" if said else "")


def missing(fencing: Fencing) -> list[str]:
    """Return a sentence for each program that is not on this host."""
    return [
        f"There is no program {device.command[0]} here"
        + ("; install the package fence-agents." if device.name.startswith("fence_") else ".")
        for device in fencing.devices
        if shutil.which(device.command[0]) is None
    ]


def load_fencing(path: Path, host: str) -> Fencing | None:
    """Read how ``host`` is switched off; None when nobody has said. Raises FencingError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FencingError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise FencingError(f"{path} is not JSON: {error}.") from error
    try:
        return parse_fencing(value, host)
    except FencingError as error:
        raise FencingError(f"{path}: {error}") from error


def parse_fencing(value: object, host: str) -> Fencing:
    """Validate the JSON object of a configuration; raises FencingError naming the field."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FencingError(f"the configuration is not an object of format {FORMAT}.")
    required = value.get("required", True)
    if not isinstance(required, bool):
        raise FencingError(f"field 'required' is {required!r}, neither true nor false.")
    devices = value.get("devices")
    if not isinstance(devices, list) or not devices:
        raise FencingError("field 'devices' is not a list of ways to switch the host off.")
    return Fencing(
        host, tuple(_device(device, f"devices[{n}]") for n, device in enumerate(devices)), required
    )


def _device(value: object, field: str) -> Device:
    if not isinstance(value, dict) or ("agent" in value) == ("command" in value):
        raise FencingError(f"field '{field}' has not one of 'agent' and 'command'.")
    timeout_s = value.get("timeout_s", DEFAULT_TIMEOUT_S)
    if type(timeout_s) is not int or not 1 <= timeout_s <= _LONGEST_S:
        raise FencingError(
            f"field '{field}.timeout_s' is {timeout_s!r}, not a whole number from 1 to {_LONGEST_S}."
        )
    if "command" in value:
        command = value["command"]
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            raise FencingError(f"field '{field}.command' is {command!r}, not a list of words.")
        return Device(tuple(command), "", timeout_s)
    agent = value["agent"]
    if not isinstance(agent, str) or not _AGENT.fullmatch(agent):
        raise FencingError(f"field '{field}.agent' is {agent!r}, which is not like fence_ipmilan.")
    return Device((agent,), _given(value.get("options", {}), field), timeout_s)


def _given(options: Any, field: str) -> str:  # noqa: ANN401  (any JSON value)
    """What an agent reads; an option is never named in an error with its value, which may be a password."""
    if not isinstance(options, dict):
        raise FencingError(f"field '{field}.options' is not an object.")
    lines = []
    for name, option in {**options, "action": "off"}.items():
        if not isinstance(option, str | int) or "\n" in f"{name}{option}" or "=" in name:
            raise FencingError(f"field '{field}.options' has {name!r}, which is not a text on one line.")
        lines.append(f"{name}={int(option) if isinstance(option, bool) else option}\n")
    return "".join(lines)
