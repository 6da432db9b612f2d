"""``colo-helper guard``: run before each start of xendomains, which must not start what is protected.

A host that boots does not know whether one of its VMs runs elsewhere by now. So of protected VMs nothing is started: saved
memory is put aside, and configurations are passed over. This asks nobody and waits for nothing. Whoever knows starts the VM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from colo_helper.guard import toolstack
from colo_helper.monitor.files import append_line
from colo_helper.monitor.monitor import now_utc
from colo_helper.replication.config import CONFIG, STATE_DIR


def main() -> int:
    """Hold what is configured here; raises when that was not possible, and xendomains is not started then."""
    guard(sorted(path.stem for path in Path(CONFIG).parent.glob("*.json")))
    return 0


def guard(vms: Sequence[str]) -> None:
    """Hold ``vms``, and every configuration whose VM has no name that can be read."""
    toolstack.show_all()
    if not vms:
        return
    there = toolstack.directories()
    named = {path: toolstack.vm_name(path) for path in there.configured()}
    hidden = {path for path, name in named.items() if name in ("", *vms)}
    if there.configurations and hidden:
        toolstack.show_only(there.configurations, [path for path in named if path not in hidden])
    for path in sorted(hidden):
        if not named[path]:
            _say(f"{path} is passed over: its VM's name cannot be read ('xl create -n {path}' says why).")
    for vm in vms:
        image = there.saved / vm if there.saved else None
        saved = toolstack.hold_saved(image) if image and image.is_file() else None
        what = [f"its memory as this host saved it, {saved} (xl restore)"] if saved else []
        what += [f"its configuration {path} (xl create)" for path, name in named.items() if name == vm]
        if what:
            _tell(
                vm, f"xendomains does not start {vm}, which may run elsewhere. There is {' and '.join(what)}."
            )


def _tell(vm: str, sentence: str) -> None:
    _say(sentence)
    directory = Path(STATE_DIR.format(vm=vm))
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        append_line(directory / "events.jsonl", {"time": now_utc(), "event": "held", "sentence": sentence})
    except OSError as error:  # a full disk: the journal has it
        _say(f"{vm}: an event was not kept: {error}")


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
