#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Keep the protection of a VM on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_vm
short_description: Keep the protection of a VM on one of its two hosts
version_added: "0.1.0"
description:
  - Writes what the replicator of the VM shall do on this host, starts or ends it, or lets the copy here take over.
  - Run it on the secondary before the primary to protect, and the other way round to end the protection.
  - It refuses with a sentence whatever could leave two running copies, or none.
options:
  name:
    description: The VM, which is also the name of its domain.
    type: str
    required: true
  state:
    description:
      - V(protected) - the replicator runs in O(role), and where O(wait) is true, both copies run.
      - V(unprotected) - no replicator and no configuration; the VM itself goes on where it runs.
      - V(standby) - this host, the primary until now, hands the VM over and keeps its copy, which stands still. Then give
        both hosts their new roles with V(protected), the new secondary first.
      - V(active) - the copy on this host took over. Refused while the primary is alive, needs O(confirm).
    type: str
    choices: [protected, unprotected, standby, active]
    default: protected
  role:
    description: What this host is for the VM; required when O(state=protected).
    type: str
    choices: [primary, secondary]
  peer:
    description: The other host; required when O(state=protected).
    type: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      address:
        description: Where its sshd answers to channels; used on the primary.
        type: str
        default: ""
      port:
        description: The port there.
        type: int
        default: 22
      heartbeat_address:
        description: Where the same sshd answers in a second network, for heartbeats; used on the primary, none when empty.
        type: str
        default: ""
  interval_ms:
    description: The longest time between two checkpoints; used on the primary.
    type: int
    default: 1000
  min_interval_ms:
    description: The shortest time between two checkpoints that no differing output asks for; used on the primary.
    type: int
    default: 100
  latency_ms:
    description: How long a client shall wait at most for an output that differs; sets the time between checkpoints.
    type: int
    default: 500
  copy_downtime_ms:
    description: How long the VM may stand still at the end of its first copy; used on the primary.
    type: int
    default: 300
  output:
    description:
      - When a packet of the VM leaves; used on the primary. V(compare) lets it go when both copies say the same, else after a
        checkpoint; V(hold) after a checkpoint only, as Remus does; V(free) at once, so a takeover may undo what a client has
        seen.
    type: str
    choices: [compare, hold, free]
    default: compare
  peer_timeout_ms:
    description: A peer that is silent for so long on every path counts as lost.
    type: int
    default: 5000
  heartbeat_misses:
    description: How many beats a peer misses in that time; the beats of both hosts follow from it.
    type: int
    default: 5
  bridge:
    description: The bridge of the VM's network cards.
    type: str
    default: xenbr0
  arbiter:
    description:
      - Who says who may run the VM. With it the copy takes over by itself when the primary is gone, and a primary that
        the arbiter does not know alive says nothing more; both sides are given the same. Without it operators decide.
    type: dict
    suboptions:
      endpoints:
        description: URLs of etcd 3.4 or newer.
        type: list
        elements: str
        required: true
      host:
        description: This host's name there.
        type: str
        required: true
      lease_s:
        description: How long a primary that is not heard of any more keeps its secondary waiting, in seconds.
        type: int
        default: 10
      ca:
        description: Path of the CA's certificate on this host, for https.
        type: path
        default: ""
      certificate:
        description: Path of this host's certificate.
        type: path
        default: ""
      key:
        description: Path of its key.
        type: path
        default: ""
  fencing:
    description:
      - How the other host shall be switched off, as C(/etc/colo/fencing/HOST.json) says it. It is only looked at, and refused
        when it cannot work; write it after that, for all VMs of the two hosts use it.
    type: str
    default: ""
  confirm:
    description: The VM's name once more, where the state cannot be undone.
    type: str
    default: ""
  reason:
    description: Why the copy shall take over, for the record.
    type: str
    default: ""
  override:
    description:
      - Take over although the arbiter says no; needs O(reason), and means that you answer for it that no other copy runs. A
        lease that lasts says that one does, so this is refused until it has ended.
    type: bool
    default: false
  wait:
    description: Wait until the protection protects.
    type: bool
    default: true
  wait_checkpoints:
    description: How many checkpoints a primary must have made by then.
    type: int
    default: 2
  wait_timeout_s:
    description: How long to wait.
    type: int
    default: 300
attributes:
  check_mode:
    description: Predicts, also where colo_helper is not installed yet, and refuses what would be refused.
    support: full
  diff_mode:
    description: Shows the configuration and the protection.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Protect h1, on its secondary
  colo_vm:
    name: h1
    role: secondary
    peer: {name: xa}

- name: Protect h1, on its primary
  colo_vm:
    name: h1
    role: primary
    peer: {name: xb, address: 192.168.77.2}
    interval_ms: 1000

- name: Hand h1 over to its secondary
  colo_vm:
    name: h1
    state: standby

- name: Let the copy take over
  colo_vm:
    name: h1
    state: active
    confirm: h1

- name: End the protection
  colo_vm:
    name: h1
    state: unprotected
"""

RETURN = r"""
name:
  description: The VM.
  type: str
  returned: success
  sample: h1
config:
  description: What the replicator shall do; null when the VM is not protected here.
  type: dict
  returned: success
  sample:
    {format: 1, vm: h1, role: secondary, peer: {name: xa}, peer_timeout_ms: 5000, heartbeat_misses: 5, bridge: xenbr0}
protection:
  description: V(running), V(stopped), V(standby) after a switch-over, V(active) when the VM goes on alone after a takeover.
  type: str
  returned: success
  sample: running
restarts:
  description: Whether O(state=protected) ended a running protection, or would in check mode, to begin it anew.
  type: bool
  returned: success
  sample: false
phase:
  description: The replicator's phase.
  type: str
  returned: success
  sample: replicating
reason:
  description: The replicator's own sentence.
  type: str
  returned: success
  sample: The interval has passed.
checkpoints:
  description: Checkpoints since the replicator started.
  type: int
  returned: success
  sample: 2
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.vm import ProtectedVm


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["protected", "unprotected", "standby", "active"],
                "default": "protected",
            },
            "role": {"type": "str", "choices": ["primary", "secondary"]},
            "peer": {
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "default": ""},
                    "port": {"type": "int", "default": 22},
                    "heartbeat_address": {"type": "str", "default": ""},
                },
            },
            "interval_ms": {"type": "int", "default": 1000},
            "min_interval_ms": {"type": "int", "default": 100},
            "latency_ms": {"type": "int", "default": 500},
            "copy_downtime_ms": {"type": "int", "default": 300},
            "output": {"type": "str", "choices": ["compare", "hold", "free"], "default": "compare"},
            "peer_timeout_ms": {"type": "int", "default": 5000},
            "heartbeat_misses": {"type": "int", "default": 5},
            "bridge": {"type": "str", "default": "xenbr0"},
            "arbiter": {
                "type": "dict",
                "options": {
                    "endpoints": {"type": "list", "elements": "str", "required": True},
                    "host": {"type": "str", "required": True},
                    "lease_s": {"type": "int", "default": 10},
                    "ca": {"type": "path", "default": ""},
                    "certificate": {"type": "path", "default": ""},
                    "key": {"type": "path", "default": ""},
                },
            },
            "fencing": {"type": "str", "default": "", "no_log": True},
            "confirm": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "override": {"type": "bool", "default": False},
            "wait": {"type": "bool", "default": True},
            "wait_checkpoints": {"type": "int", "default": 2},
            "wait_timeout_s": {"type": "int", "default": 300},
        },
        required_if=[("state", "protected", ["role", "peer"])],
        supports_check_mode=True,
    )
    ProtectedVm(module).run()


if __name__ == "__main__":
    main()
