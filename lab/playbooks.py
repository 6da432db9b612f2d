"""Running the project's playbooks on the lab, as an operator would, with what they do shown as they do it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.settings import Settings

Extra = Mapping[str, object]
_RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """One run of a playbook: exit code, all it said with line breaks folded, changed tasks by host, seconds."""

    code: int
    text: str
    changed: dict[str, int]
    took_s: float


def play(
    settings: Settings, name: str, *arguments: str, extra: Extra | None = None, log: Path | None = None
) -> Played:
    """Run `playbooks/NAME.yml` on the lab's inventory with extra variables; the file `log` gets the output too."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{name}.yml", *arguments]
    command += ["--inventory", str(settings.state_dir / "inventory.yml")]
    if extra:
        command += ["--extra-vars", json.dumps(extra)]
    config = str(settings.checkout / "ansible.cfg")
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=settings.checkout,
        env={**os.environ, "ANSIBLE_CONFIG": config, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        print(f"    {line}", end="", flush=True)
    code, output = process.wait(), "".join(said)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(output)
    changed = {host: int(number) for host, number in _RECAP.findall(output)}
    return Played(code, " ".join(output.split()), changed, time.monotonic() - started)


def play_well(
    settings: Settings, name: str, *, extra: Extra | None = None, log: Path | None = None
) -> Played:
    """The same, where only success will do: a LabError otherwise."""
    played = play(settings, name, extra=extra, log=log)
    if played.code != 0:
        raise LabError(f"playbooks/{name}.yml failed with exit code {played.code}; its output is above")
    return played
