#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare both copies of a VM, page by page."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_vm_verify
short_description: Compare both copies of a VM page by page
version_added: "0.1.0"
description:
  - Asks the replicator on the primary for a checkpoint after which every page of both copies is compared by hash
    while both stand still, and fails with a sentence when pages differ that nothing explains.
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
author: COLO for Xen authors
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
