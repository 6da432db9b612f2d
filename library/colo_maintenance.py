#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Keep a VM where it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_maintenance
short_description: Let nobody take over a protected VM by itself, on one of its two hosts
version_added: "0.1.0"
description:
  - While it lasts the VM stays where it runs, whatever happens to hosts, links and arbiter, and its copy is kept equal as far
    as that can be. Only an operator lets the copy take over then.
  - Run it on the secondary before the primary. What the primary is told is written down by the arbiter, and counts for both.
options:
  name:
    description: The VM.
    type: str
    required: true
  state:
    description: Whether there is maintenance.
    type: str
    choices: [present, absent]
    default: present
  reason:
    description: Why, for the record; required when O(state=present).
    type: str
    default: ""
  confirm:
    description:
      - The VM's name, where the arbiter does not answer the primary. It means that you answer for it that no other copy
        runs, and none will.
    type: str
    default: ""
attributes:
  check_mode:
    description: Predicts; whether the arbiter answers is not asked.
    support: full
  diff_mode:
    description: Shows the reason.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Keep h1 where it is
  colo_maintenance:
    name: h1
    reason: new disks in xa

- name: Let its copy take over again when its primary is gone
  colo_maintenance:
    name: h1
    state: absent
"""

RETURN = r"""
maintenance:
  description: The reason; empty when there is no maintenance.
  type: str
  returned: success
  sample: new disks in xa
asking:
  description: Whether the VM is silent until somebody can tell who may run it.
  type: bool
  returned: success
  sample: false
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.maintenance import Maintenance


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "reason": {"type": "str", "default": ""},
            "confirm": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "present" and not module.params["reason"].strip():
        module.fail_json(msg=f"Say why {module.params['name']} shall stay where it is: reason.")
    Maintenance(module).run()


if __name__ == "__main__":
    main()
