"""What is known of the VMs of this host: from their replicators, or from what those left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colo_helper.control.client import ask
from colo_helper.control.protocol import RefusedError
from colo_helper.monitor.files import read_json

STATE_ROOT = Path("/var/lib/colo")


def known_vms(root: Path = STATE_ROOT) -> list[str]:
    """Return the names of the VMs that have a state here, sorted."""
    return sorted(path.parent.name for path in root.glob("*/state.json"))


def look(vm: str, root: Path = STATE_ROOT, timeout_s: float = 30.0) -> dict[str, Any] | None:
    """Return a VM's fresh state from its replicator, or the one it left behind; ``running`` tells which. None: there is none.

    Raises OSError and ValueError when that file cannot be used.
    """
    try:
        answer = ask(vm, "status", timeout_s=timeout_s)
    except RefusedError:
        return _left_behind(root / vm / "state.json")
    return {**{key: value for key, value in answer.items() if key != "ok"}, "running": True}


def _left_behind(path: Path) -> dict[str, Any] | None:
    """Return what a replicator wrote before it ended; see ``look``."""
    try:
        return {**read_json(path), "running": False}
    except FileNotFoundError:
        return None
