"""``colo-helper guard``: run once at a host's boot, before xendomains.

A VM that is protected, and may run elsewhere by now, is not started here: neither from memory that was saved when the host was
shut down, nor anew. Nothing is lost: its saved memory is kept, and its configuration stays where it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from colo_helper.arbiter.interface import Arbiter, ArbiterError
from colo_helper.guard import toolstack
from colo_helper.guard.decisions import Look, Verdict, verdict
from colo_helper.guard.toolstack import Starts
from colo_helper.monitor.files import append_line, read_json
from colo_helper.monitor.monitor import now_utc
from colo_helper.replication.config import CONFIG, STATE_DIR, ArbiterConfig, ConfigError, load_config

#: How long an arbiter is asked in all: networks come up about now, and a secondary takes over, or gives up, about now. All
#: VMs wait for it.
_ASK_S = 120.0
_ASK_AGAIN_S = 1.0

MakeArbiter = Callable[[ArbiterConfig], Arbiter]


def main() -> int:
    """Guard all VMs that are configured; returns 1 when something could not be done, which the journal says."""
    return guard(sorted(path.stem for path in Path(CONFIG).parent.glob("*.json")))


def guard(vms: list[str], make_arbiter: MakeArbiter | None = None) -> int:
    """Hold what must not be started of ``vms``; see ``main``."""
    deadline_s = time.monotonic() + _ASK_S
    hidden: list[Path] = []
    failed = False
    for vm, would_start in toolstack.starts(vms).items():
        found = _decide(vm, make_arbiter or _etcd, deadline_s)
        if found.may_start:
            _say(f"{vm} may be started here: {found.sentence}")
            continue
        hidden += would_start.configurations
        try:
            places = _hold(would_start)
        except OSError as error:
            _say(f"{vm}: {would_start.saved} cannot be put aside ({error.strerror}), and {found.sentence}")
            failed = True
        else:
            _record(vm, f"{vm} is not started here: {found.sentence} {places}")
    try:
        toolstack.hide(hidden) if hidden else toolstack.show_all()
    except OSError as error:
        _say(f"Not hidden from xendomains: {', '.join(map(str, hidden))} ({error.strerror}).")
        failed = True
    return int(failed)


def _hold(would_start: Starts) -> str:
    """Put a saved VM aside; returns what there is now, for people. Raises OSError."""
    said = []
    if would_start.saved:
        place = toolstack.hold_saved(would_start.saved, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        said.append(f"Its memory as this host saved it is {place} (xl restore).")
    if would_start.configurations:
        names = ", ".join(map(str, would_start.configurations))
        said.append(f"It was not created from {names} (xl create).")
    return " ".join(said)


def _decide(vm: str, make_arbiter: MakeArbiter, deadline_s: float) -> Verdict:
    try:
        config = load_config(Path(CONFIG.format(vm=vm)), vm)
    except ConfigError as error:
        return Verdict(False, f"nobody can tell who has it: {error}")
    look = Look(vm, config.role, config.peer_name, known=_known(vm))
    if config.arbiter is None:
        return verdict(look)
    arbiter = make_arbiter(config.arbiter)
    look = replace(look, host=config.arbiter.host)
    while True:
        found = verdict(_ask(arbiter, look))
        if found.final or time.monotonic() > deadline_s:
            return found
        time.sleep(_ASK_AGAIN_S)  # neither a network that comes up nor a secondary that takes over tells us


def _ask(arbiter: Arbiter, look: Look) -> Look:
    try:
        return replace(look, record=arbiter.read(look.vm).record)
    except ArbiterError as error:
        return replace(look, problem=str(error))


def _known(vm: str) -> Mapping[str, Any]:
    """Return what the last replicator wrote down; when that cannot be read, that there was a copy."""
    try:
        return read_json(Path(STATE_DIR.format(vm=vm)) / "state.json")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return {"generation": "unknown"}


def _etcd(asked: ArbiterConfig) -> Arbiter:
    from colo_helper.replication.asking import arbiter_of  # noqa: PLC0415  (requests: only who asks needs it)

    return arbiter_of(asked)


def _record(vm: str, sentence: str) -> None:
    _say(sentence)
    line = {"time": now_utc(), "event": "held", "sentence": sentence, "epoch": _known(vm).get("epoch", 0)}
    try:
        append_line(Path(STATE_DIR.format(vm=vm)) / "events.jsonl", line)
    except OSError as error:
        _say(f"{vm}: an event was not kept: {error}")


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
