"""Running the project's playbooks on the lab, as an operator would, with what they do shown as they do it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from lab.errors import LabError
from lab.settings import Settings


def run(settings: Settings, name: str, log_dir: Path, *, extra: Mapping[str, object] | None = None) -> float:
    """Run `playbooks/NAME.yml` and return the seconds it took; a LabError names the log when it fails."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{name}.yml"]
    command += ["--inventory", str(settings.state_dir / "inventory.yml")]
    if extra:
        command += ["--extra-vars", json.dumps(dict(extra))]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(settings.checkout / "ansible.cfg"),
        "PYTHONUNBUFFERED": "1",
    }
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir / f"{name}.log"
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=settings.checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with log.open("w") as record:
        for line in process.stdout:
            record.write(line)
            print(f"    {line}", end="", flush=True)
    if process.wait() != 0:
        raise LabError(
            f"playbooks/{name}.yml failed with exit code {process.returncode}; its output is in {log}"
        )
    return time.monotonic() - started
