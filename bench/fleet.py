"""How the run time of status.yml and checks.yml grows with the fleet, against what Ansible itself needs to reach as many hosts.

Every host of these fleets is this machine (connection local), where nothing is protected: what is measured is the
controller, the playbooks and the modules' start. The peer is a play with one ping of each host.
"""

from __future__ import annotations

import argparse
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


def inventory(pairs: int) -> dict[str, object]:
    """So many pairs, each with a VM."""
    hosts = {
        f"x{at:04}{side}": {"colo_channel_address": f"10.{at // 250}.{at % 250}.{number}"}
        for at in range(pairs)
        for number, side in enumerate("ab", 1)
    }
    vms = {f"v{at:04}": {"primary": f"x{at:04}a", "secondary": f"x{at:04}b"} for at in range(pairs)}
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "colo_vms": vms,
    }
    return {"all": {"children": {"colo_hosts": {"hosts": hosts}}, "vars": variables}}


def play(playbook: Path, hosts: Path, *arguments: str) -> tuple[float, float]:
    """Run a playbook; seconds, and the largest MiB that one of its processes had so far in this program."""
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", hosts, playbook, *arguments]
    began = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return time.perf_counter() - began, peak


def main() -> None:
    """Play each at each size, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        hosts, ping = Path(directory) / "hosts.yml", Path(directory) / "ping.yml"
        ping.write_text(PING)
        for pairs in arguments.pairs:
            hosts.write_text(yaml.safe_dump(inventory(pairs)))
            floor, _peak = play(ping, hosts)
            checks, _peak = play(REPOSITORY / "playbooks" / "checks.yml", hosts)
            status, peak = play(
                REPOSITORY / "playbooks" / "status.yml", hosts, "-e", "colo_status_fail=false"
            )
            rows.append(
                [
                    pairs,
                    f"{floor:.1f}",
                    f"{checks:.1f}",
                    f"{status:.1f}",
                    f"{status / floor:.2f}",
                    f"{peak:.0f}",
                ]
            )
    print(f"Playbooks on fleets, {machine()}:\n")
    print(table(("pairs", "ping s", "checks s", "status s", "status of ping", "MiB"), rows))


if __name__ == "__main__":
    main()
