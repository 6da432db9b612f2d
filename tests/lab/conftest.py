"""Fixtures of the tests on the real lab; they run one after the other, on the one lab of this checkout."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.settings import here


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def settings():
    return here()


@pytest.fixture(scope="session")
def lab(settings):
    made = Lab(settings, print)
    made.up()
    return made


@dataclass(frozen=True)
class Played:
    """One run of a playbook: exit code, all it said with line breaks folded, changed tasks per host."""

    code: int
    text: str
    changed: dict[str, int]


@pytest.fixture(scope="session")
def play(settings):
    def run(name, *arguments):
        command = [Path(sys.executable).parent / "ansible-playbook", f"playbooks/{name}.yml", *arguments]
        command += ["--inventory", settings.state_dir / "inventory.yml"]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(settings.checkout / "ansible.cfg")}
        done = subprocess.run(
            command, cwd=settings.checkout, env=environment, capture_output=True, text=True, check=False
        )
        print(done.stdout, done.stderr)
        recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE)
        return Played(
            done.returncode, " ".join((done.stdout + done.stderr).split()), {h: int(n) for h, n in recap}
        )

    return run
