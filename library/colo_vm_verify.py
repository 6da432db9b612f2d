#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Compare both copies of a VM: memory, CPU and devices."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_vm_verify
short_description: Compare memory, CPU and device state of both copies of a VM
version_added: "0.1.0"
description:
  - Asks the replicator on the primary for a checkpoint after which both copies are compared while both stand still,
    every page by hash, the state of the vCPUs and of the devices field by field. Fails with a sentence when anything
    differs that nothing explains.
options:
  name:
    description: The VM.
    type: str
    required: true
  timeout_s:
    description: How long the comparison may take.
    type: int
    default: 300
attributes:
  check_mode:
    description: Compares nothing and says so in RV(verified).
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Compare both copies of h1
  colo_vm_verify:
    name: h1
  register: verification
"""

RETURN = r"""
verified:
  description: Whether the copies were compared; false in check mode.
  type: bool
  returned: success
  sample: true
epoch:
  description: The epoch at whose beginning they were compared.
  type: int
  returned: when compared
  sample: 43
pages_compared:
  description: Pages of 4 KiB.
  type: int
  returned: success
  sample: 25612
different:
  description: Pages that differ, each with its owner and the reason when there is one.
  type: list
  elements: dict
  returned: success
  sample: [{gfn: 1044476, owner: xenstore, reason: its ring belongs to the host}]
unexplained:
  description: The frames among them that nothing explains; the task fails unless this is empty.
  type: list
  elements: int
  returned: success
  sample: []
state:
  description:
    - What was found in the state of the vCPUs, C(cpu), and of the devices, C(devices); empty in check mode.
    - C(bytes) and C(records) say how much was compared. C(different) names each field that differs, by its record, instance,
      field, offset in the record and length, with the reason when it may differ; C(unexplained) repeats those that may not,
      and the task fails unless it is empty.
  type: dict
  returned: success
  sample:
    cpu:
      bytes: 4112
      records: 17
      different:
        - {record: CPU, instance: 0, field: tsc, offset: 1008, length: 8, reason: it goes on while the domain is paused}
      unexplained: []
    devices: {bytes: 54321, records: 29, different: [], unexplained: []}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.vm import verify


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "timeout_s": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    guarded(module, lambda: verify(module))


if __name__ == "__main__":
    main()
