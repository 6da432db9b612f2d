"""Secrets of an inventory, kept as docs/guide.md says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.ansible.module_host import REPOSITORY

BEGIN, END = "          # colo_fencing:", "        xb:\n"


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example inventory with its fencing in use, and a vault with the password of it."""
    path = tmp_path_factory.mktemp("inventory") / "mine"
    shutil.copytree(REPOSITORY / "inventory" / "example", path)
    hosts = (path / "hosts.yml").read_text()
    block = hosts[hosts.index(BEGIN) : hosts.index(END)]
    assert "{{ vault_bmc_xa }}" in block
    (path / "hosts.yml").write_text(hosts.replace(block, block.replace("  # ", "  ")))
    vault = path / "group_vars" / "all" / "vault.yml"
    vault.parent.mkdir(parents=True)
    vault.write_text('vault_bmc_xa: "secret of xa"\n')
    (path.parent / "password").write_text("password\n")
    run("ansible-vault", "encrypt", "--vault-password-file", path.parent / "password", vault)
    assert vault.read_text().startswith("$ANSIBLE_VAULT;")
    return path


def run(program: str, *arguments: str | Path) -> str:
    """Run a program of Ansible; returns its exit code and what it says, in one line."""
    command = [Path(sys.executable).with_name(program), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return " ".join([str(done.returncode), *(done.stdout + done.stderr).split()])


def test_every_playbook_needs_the_vaults_password(inventory: Path) -> None:
    arguments = ("-i", inventory, "playbooks/checks.yml")
    said = run("ansible-playbook", *arguments)
    assert not said.startswith("0 ")
    sentence = "Attempting to decrypt but no vault secrets found"
    assert sentence in said
    assert sentence in (REPOSITORY / "docs" / "guide.md").read_text()
    said = run("ansible-playbook", *arguments, "--vault-password-file", inventory.parent / "password")
    assert said.startswith("0 "), said


def test_a_password_of_the_vault_is_there_for_fencing(inventory: Path) -> None:
    ask = ("xa", "-i", inventory, "-m", "debug", "-a", "var=colo_fencing.devices[0].options.password")
    assert "secret of xa" in run("ansible", *ask, "--vault-password-file", inventory.parent / "password")
