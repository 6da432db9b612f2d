"""How the run time of playbooks grows with the fleet, against what Ansible itself needs to reach as many hosts.

Every host is emulated by a connection that answers at once (bench.connection): what is measured is the controller. Of each
pair a VM is protected, and everything is as it should be. The peer is a play with one ping of each host.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from bench.tables import machine, table

REPOSITORY = Path(__file__).resolve().parents[1]
PING = """
- name: Reach every host
  hosts: colo_hosts
  gather_facts: false
  tasks:
    - name: Reach it
      ansible.builtin.ping:
"""
PLAYBOOKS = ("checks", "status", "site", "rebalance")


def inventory(pairs: int) -> dict[str, object]:
    """So many pairs, each with a VM."""
    hosts = {
        f"x{at:04}{side}": {"colo_channel_address": f"10.{at // 250}.{at % 250}.{number}"}
        for at in range(pairs)
        for number, side in enumerate("ab", 1)
    }
    vms = {f"v{at:04}": {"primary": f"x{at:04}a", "secondary": f"x{at:04}b"} for at in range(pairs)}
    emulated = {"ansible_connection": "answers", "ansible_python_interpreter": "/usr/bin/python3"}
    return {
        "all": {"children": {"colo_hosts": {"hosts": hosts, "vars": emulated}}, "vars": {"colo_vms": vms}}
    }


def digest() -> str:
    """The release that every host has already: the one that site.yml would bring."""
    ansible = Path(sys.executable).with_name("ansible")
    arguments = json.dumps({"source": str(REPOSITORY), "python_version": "3.11"})
    command = [ansible, "localhost", "-i", "localhost,", "-c", "local", "-m", "colo_bundle", "-a", arguments]
    configured = {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_PYTHON_INTERPRETER": sys.executable}
    done = subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True, env={**os.environ, **configured}
    )
    found: str = json.loads(done.stdout[done.stdout.index("{") :])["digest"]
    return found


def play(playbook: Path, hosts: Path, release: str) -> tuple[float, float]:
    """Run a playbook that changes nothing; seconds, and the most MiB that one process has had so far."""
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", hosts, playbook]
    configured = {
        "ANSIBLE_CONNECTION_PLUGINS": str(REPOSITORY / "bench" / "connection"),
        "ANSIBLE_PIPELINING": "1",  # what is asked for comes with the command, and nothing else is
        "COLO_BENCH_DIGEST": release,
    }
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **configured},
    )
    took = time.perf_counter() - began
    if done.returncode or re.search(r"changed=[1-9]", done.stdout):
        raise SystemExit(f"{playbook.name} did not find everything as it should be:\n{done.stdout[-3000:]}")
    return took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Play each at each size, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10, 100])
    arguments = parser.parse_args()
    rows = []
    release = digest()
    with tempfile.TemporaryDirectory() as directory:
        hosts, ping = Path(directory) / "hosts.yml", Path(directory) / "ping.yml"
        ping.write_text(PING)
        for pairs in arguments.pairs:
            hosts.write_text(yaml.safe_dump(inventory(pairs)))
            floor, _peak = play(ping, hosts, release)
            row: list[object] = [pairs, f"{floor:.1f}"]
            peak = 0.0
            for name in PLAYBOOKS:
                took, peak = play(REPOSITORY / "playbooks" / f"{name}.yml", hosts, release)
                print(f"{pairs} pairs: {name} {took:.1f} s", flush=True)
                row += [f"{took:.1f}", f"{took / floor:.1f}"]
            rows.append([*row, f"{peak:.0f}"])
    print(f"Playbooks on fleets of emulated hosts, {machine()}:\n")
    head = ["pairs", "ping s", *(word for name in PLAYBOOKS for word in (f"{name} s", "of ping")), "MiB"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
