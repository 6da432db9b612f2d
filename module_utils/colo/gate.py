"""The way to colo_helper: the release in use is put on this Python's path. Same Python, so nothing is respawned."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo.base import Failure, host_name

if TYPE_CHECKING:
    from types import ModuleType

PREFIX = Path("/opt/colo-helper")


def helper_installed() -> bool:
    """Whether a release of colo_helper is in use here."""
    return (PREFIX / "current" / "site-packages" / "colo_helper").is_dir()


def require_helper() -> None:
    """Raise the sentence that names the way out when colo_helper is missing."""
    if not helper_installed():
        raise Failure(f"colo_helper is not installed on {host_name()}: run playbooks/site.yml first.")


def load(name: str) -> ModuleType:
    """Import ``colo_helper.NAME`` from the release in use."""
    require_helper()
    packages = str((PREFIX / "current").resolve() / "site-packages")
    if packages not in sys.path:
        sys.path.insert(0, packages)
    return importlib.import_module(f"colo_helper.{name}")


def request(
    vm: str, verb: str, timeout_s: float, *, reason: str = "", forced: bool = False
) -> dict[str, Any]:
    """Ask the replicator of ``vm`` on this host one thing; the answer has ``ok``.

    ``reason`` is the operator's, for the record; with ``forced`` they answer for it that no other copy of the VM runs.

    Raises Failure when nobody answers. The only place that knows the client of the control socket.
    """
    client = load("control.client")
    refused = load("control.protocol").RefusedError
    try:
        answer: dict[str, Any] = client.ask(vm, verb, timeout_s=timeout_s, reason=reason, forced=forced)
    except refused as error:
        raise Failure(f"{str(error).rstrip('.')} (on {host_name()}).", code=error.code) from error
    except (OSError, ValueError) as error:
        raise Failure(
            f"The replicator of {vm} on {host_name()} gave no answer to {verb!r}: {error}. "
            f"Look at: journalctl -u colo-replicator@{vm}",
            code="no_answer",
        ) from error
    return answer
