"""What ssh is told by the playbooks, and what they make of what it says."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.ansible.module_host import REPOSITORY

REFUSED = "root@192.0.2.11: Permission denied (publickey)."


def play(tmp_path: Path, playbook: str, *options: str, **operators: str) -> tuple[str, list[str]]:
    """Run a playbook where ssh gets to no host; returns its output, and the arguments of each ssh to xa."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {tmp_path}/asked\necho '{REFUSED}' >&2\nexit 255\n")
    ssh.chmod(0o755)
    inventory = yaml.safe_load((REPOSITORY / "inventory" / "example" / "hosts.yml").read_text())
    inventory["all"]["vars"] |= {"ansible_ssh_executable": str(ssh), **operators}
    inventory["all"]["children"]["colo_hosts"]["hosts"]["xb"] |= {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", tmp_path / "hosts.yml", f"playbooks/{playbook}.yml", "-e", "colo_vm=h1", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    asked = (tmp_path / "asked").read_text().splitlines()
    return " ".join(done.stdout.split()), [line for line in asked if "192.0.2.11" in line]


@pytest.mark.parametrize("playbook", ["status", "failover"])
def test_what_the_operator_has_told_ssh_stays(tmp_path: Path, playbook: str) -> None:
    operators = {
        f"ansible_ssh_{kind}": f"-o SetEnv=OPERATOR={kind}" for kind in ("args", "common_args", "extra_args")
    }
    _said, asked = play(tmp_path, playbook, "-e", "colo_confirm=h1", **operators)
    assert asked
    assert all(option in arguments for arguments in asked for option in operators.values())


def test_a_dead_host_is_noticed(tmp_path: Path) -> None:
    _said, asked = play(tmp_path, "status")
    assert all(
        "-o ControlPersist=120s -o ServerAliveInterval=5 -o ServerAliveCountMax=3" in arguments
        for arguments in asked
    )


def test_failover_looks_by_a_connection_of_its_own_and_does_not_take_a_refusal_for_silence(
    tmp_path: Path,
) -> None:
    said, asked = play(tmp_path, "failover", "-e", "colo_confirm=h1")
    assert asked
    assert all(line.startswith("-o ControlMaster=no -o ControlPath=none -o ServerAlive") for line in asked), (
        asked
    )
    assert (
        "h1 is not failed over, because xa lets nobody in, and is not silent as a dead host is: root@192.0.2.11: "
        "Permission denied (publickey). Its VM may run."
    ) in said, said


def test_failover_goes_on_when_an_operator_answers_for_a_host_that_lets_nobody_in(tmp_path: Path) -> None:
    word = ("-e", "colo_confirm=h1", "-e", "colo_override=true", "-e", '{"colo_reason": "It is off."}')
    said, _asked = play(tmp_path, "failover", *word)
    assert "lets nobody in" not in said
    assert "xb" in said
    assert "so there is no copy that could take over" in said or "colo_helper is not installed on" in said
