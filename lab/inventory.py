"""The lab as an Ansible inventory: what an operator would write for real hosts."""

import json

from lab.seed import controller_key, known_hosts
from lab.settings import HOSTS, Settings, address, host_number

#: Times for hosts that are emulated, as a class of VMs.
CLASS, SLOW = "emulated", {"interval_ms": 2000, "latency_ms": 2000, "peer_timeout_ms": 10000}


def write_inventory(settings: Settings, ports: dict[str, int]) -> None:
    """Write `.lab/inventory.yml` (JSON is YAML)."""
    ssh_options = (
        f"-o UserKnownHostsFile={known_hosts(settings)} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    )
    hosts = {
        name: {
            "ansible_host": "127.0.0.1",
            "ansible_port": ports[name],
            "colo_channel_address": address("data", host_number(name)),
            "colo_channel_heartbeat_address": address("mgmt", host_number(name)),
        }
        for name in ports
    }
    inventory = {
        "all": {
            "children": {"colo_hosts": {"hosts": hosts}},
            "vars": {
                "ansible_user": "root",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_private_key_file": str(controller_key(settings)),
                "ansible_ssh_common_args": ssh_options,
                "ansible_control_path_dir": str(settings.ssh_dir),
                "colo_classes": {CLASS: SLOW},
                "colo_vms": vms("h1"),
            },
        }
    }
    (settings.state_dir / "inventory.yml").write_text(json.dumps(inventory, indent=2) + "\n")


def vms(*guests: str) -> dict[str, dict[str, object]]:
    """Return colo_vms with these guests, from the first host to the second."""
    first, second = HOSTS
    return {guest: {"primary": first, "secondary": second, "class": CLASS} for guest in guests}
