#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Tell how VMs are protected on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_vm_info
short_description: Tell how VMs are protected on a host
version_added: "0.1.0"
description:
  - Reads the configuration, state file, last verification, systemd unit and domain of each VM.
  - Needs no colo_helper, and does not fail for a dead replicator - it reports one.
options:
  names:
    description: The VMs; all that this host knows when empty.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Only reads.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Look at all VMs
  colo_vm_info:
  register: colo
"""

RETURN = r"""
vms:
  description: One entry for each VM.
  type: list
  elements: dict
  returned: always
  sample:
    - name: h1
      config: {format: 1, vm: h1, role: secondary, peer: {name: xa}, peer_timeout_ms: 5000, bridge: xenbr0}
      unit: {active: active, sub: running, result: success}
      alive: true
      state: {format: 1, vm: h1, role: secondary, phase: replicating, reason: Both copies run., epoch: 42}
      stale: false
      phase: replicating
      protection: running
      verification: null
      domain: {domid: 3, memory_mib: 100, state: "-b----", headless: false}
      domains_known: true
      may_run_vm: true
      sentence: Both copies run.
  contains:
    name:
      description: The VM.
      type: str
      returned: always
    config:
      description: What its replicator shall do; null when it is not protected here.
      type: dict
      returned: always
    unit:
      description: What systemd says of the replicator.
      type: dict
      returned: always
    alive:
      description: Whether the replicator runs.
      type: bool
      returned: always
    state:
      description: The contents of C(state.json); null when there is none.
      type: dict
      returned: always
    stale:
      description: Whether RV(ignore:state) tells of before the host's last boot.
      type: bool
      returned: always
    phase:
      description: The phase; empty when unknown or stale.
      type: str
      returned: always
    protection:
      description: V(running), V(stopped) or V(active).
      type: str
      returned: always
    verification:
      description: The contents of C(verify.json).
      type: dict
      returned: always
    domain:
      description: Number, memory and state of the domain; null when there is none.
      type: dict
      returned: always
    domains_known:
      description: Whether Xen told its domains.
      type: bool
      returned: always
    may_run_vm:
      description: Whether the VM may be running on this host; true as well when that cannot be known.
      type: bool
      returned: always
    sentence:
      description: What an operator should know first.
      type: str
      returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.snapshot import report


def main() -> None:
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str", "default": []}},
        supports_check_mode=True,
    )
    guarded(module, lambda: report(module))


if __name__ == "__main__":
    main()
