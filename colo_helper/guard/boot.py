"""``colo-helper guard``: run before each start of xendomains, which must not start what is protected.

A host that boots does not know whether one of its VMs runs elsewhere by now. So of protected VMs nothing is started by
xendomains: saved memory is put aside, configurations are passed over, and the primary's replicator is told what there is. It
starts the VM when it is known to be its own (replication.held). This asks nobody and waits for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from colo_helper.guard import toolstack
from colo_helper.monitor.files import append_line
from colo_helper.monitor.monitor import now_utc
from colo_helper.replication.config import CONFIG, RUN_DIR, STATE_DIR
from colo_helper.replication.held import Held, write_held


def main() -> int:
    """Hold what is configured here; raises when that was not possible, and xendomains is not started then."""
    guard(sorted(path.stem for path in Path(CONFIG).parent.glob("*.json")))
    return 0


def guard(vms: Sequence[str]) -> None:
    """Hold ``vms``, and every configuration whose VM has no name that can be read."""
    there = toolstack.directories()
    named = {path: toolstack.vm_name(path) for path in there.configured()}
    toolstack.show_all()
    hidden = {path for path, name in named.items() if name in ("", *vms)}
    if there.configurations and hidden:
        toolstack.show_only(there.configurations, [path for path in named if path not in hidden])
    for path in sorted(hidden):
        if not named[path]:
            _say(f"{path} is passed over: its VM's name cannot be read ('xl create -n {path}' says why).")
    for vm in vms:
        image = there.saved / vm if there.saved else None
        saved = str(toolstack.hold_saved(image)) if image and image.is_file() else ""
        configuration = next((str(path) for path, name in named.items() if name == vm), "")
        if saved or configuration:
            _tell(vm, Held(saved, configuration))


def _tell(vm: str, held: Held) -> None:
    run_dir, state_dir = Path(RUN_DIR.format(vm=vm)), Path(STATE_DIR.format(vm=vm))
    run_dir.mkdir(mode=0o755, exist_ok=True)
    write_held(run_dir, held)
    sentence = f"xendomains does not start {vm}, which may run elsewhere; there is {held}."
    _say(sentence)
    state_dir.mkdir(mode=0o755, exist_ok=True)
    try:
        append_line(state_dir / "events.jsonl", {"time": now_utc(), "event": "held", "sentence": sentence})
    except OSError as error:  # a full disk: the journal has it
        _say(f"{vm}: an event was not kept: {error}")


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
