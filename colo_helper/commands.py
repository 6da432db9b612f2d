"""The commands of ``colo-helper`` but ``attach``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colo_helper import __version__

STATE_ROOT = Path("/var/lib/colo")


def dispatch(arguments: Sequence[str]) -> int:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(
        prog="colo-helper", description="COLO fault-tolerant VMs on Xen: the hosts' side."
    )
    parser.add_argument("--version", action="version", version=f"colo-helper {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the replicator of a VM (systemd does this)")
    run.add_argument("vm")
    attach = commands.add_parser("attach", help="forced command of the user colo (sshd runs it)")
    attach.add_argument("vm")
    status = commands.add_parser("status", help="show what is")
    status.add_argument("vm", nargs="?")
    status.add_argument("--json", action="store_true", help="the whole state as JSON")
    ctl = commands.add_parser("ctl", help="ask the replicator of a VM for something; prints its JSON answer")
    ctl.add_argument("vm")
    ctl.add_argument("verb", choices=("status", "checkpoint", "verify", "takeover", "stop"))
    chosen = parser.parse_args(arguments)
    if chosen.command == "run":
        from colo_helper.replication.runner import run as run_replicator  # noqa: PLC0415

        return run_replicator(chosen.vm)
    if chosen.command == "ctl":
        return _ctl(chosen.vm, chosen.verb)
    return _status(chosen.vm, as_json=chosen.json)


def _ctl(vm: str, verb: str) -> int:
    from colo_helper.control.client import ask  # noqa: PLC0415
    from colo_helper.control.protocol import RefusedError, refusal  # noqa: PLC0415

    try:
        answer = ask(vm, verb)
    except RefusedError as error:
        answer = refusal(error.code, str(error))
    _say(json.dumps(answer, indent=1))
    return 0 if answer.get("ok") is True else 1


def _status(vm: str | None, *, as_json: bool) -> int:
    names = [vm] if vm else sorted(path.parent.name for path in STATE_ROOT.glob("*/state.json"))
    found = [state for name in names if (state := _state_of(name))]
    if as_json:
        _say(json.dumps(found[0] if vm and found else found, indent=1))
    else:
        for state in found:
            _say(_line(state))
    if vm and not found:
        sys.stderr.write(f"Nothing is known about a VM named {vm} on this host.\n")
        return 1
    return 0


def _state_of(vm: str) -> dict[str, Any] | None:
    """Return the fresh state from the replicator, or the one it left behind; ``running`` tells which."""
    from colo_helper.control.client import ask  # noqa: PLC0415
    from colo_helper.control.protocol import RefusedError  # noqa: PLC0415

    try:
        answer = ask(vm, "status", timeout_s=30.0)
        return {**{key: value for key, value in answer.items() if key != "ok"}, "running": True}
    except RefusedError:
        return _left_behind(STATE_ROOT / vm / "state.json")


def _left_behind(path: Path) -> dict[str, Any] | None:
    from colo_helper.monitor.files import read_json  # noqa: PLC0415

    try:
        return {**read_json(path), "running": False}
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return None


def _line(state: dict[str, Any]) -> str:
    last = state.get("last") or {}
    pause = f", last pause {last['pause_ms']:.0f} ms" if last else ""
    ended = "" if state["running"] else " (the replicator does not run)"
    return f"{state['vm']}: {state['role']}, {state['phase']}{ended}, epoch {state['epoch']}{pause}: {state['reason']}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
