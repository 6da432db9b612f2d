#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Plan which host gets the copy of which VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_placement
short_description: Plan which host gets the copy of which VM
version_added: "0.1.0"
description:
  - Runs on the controller, asks no host anything and changes nothing - it returns C(colo_vms) with a secondary for each VM.
  - A copy is never in its primary's failure domain; memory and links stay within their limits; the death of a host leaves its
    VMs to many others. Copies that may stay where they are stay there.
  - The same hosts and VMs get the same plan.
requirements:
  - ortools
options:
  hosts:
    description: The hosts, and what VMs and copies may use of them.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Its name in the inventory.
        type: str
        required: true
      failure_domain:
        description: What it may share the end with - a rack, a room, a power feed.
        type: str
        required: true
      memory_mib:
        description: Memory for VMs and copies.
        type: int
        required: true
      link_mbit:
        description: What it can receive of checkpoints; not limited when it is not given.
        type: int
  vms:
    description: >-
      The VMs as in C(colo_vms), each with C(primary) and C(memory_mib), and as the case may be C(secondary) and
      C(checkpoint_mbit).
    type: dict
    required: true
  settled:
    description: >-
      The same VMs with what their classes say besides, which is where their sizes are read; O(vms) when not given.
    type: dict
    default: {}
  moves:
    description: How many copies may move only to make the spread more even.
    type: int
    default: 0
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Plan
  colo_placement:
    hosts:
      - {name: xa, failure_domain: rack-1, memory_mib: 65536}
      - {name: xb, failure_domain: rack-2, memory_mib: 65536}
    vms:
      h1: {primary: xa, memory_mib: 4096}
  register: colo_plan
"""

RETURN = r"""
vms:
  description: RV(ignore:colo_vms) as given, with the secondary of each VM; a VM that no host has room for has none.
  type: dict
  returned: always
  sample: {h1: {primary: xa, memory_mib: 4096, secondary: xb}}
sentences:
  description: What is to be done with which copy, and why.
  type: list
  elements: str
  returned: always
  sample: ["h1: its copy comes to xb (rack-2), as it had none; 61440 of 65536 MiB stay free there."]
problems:
  description: What does not fit, and what to do about it.
  type: list
  elements: str
  returned: always
  sample: []
quality:
  description: >-
    How full the fullest host is, beside what no placement can be better than; and the death that leaves most to one other host,
    beside an even spread.
  type: dict
  returned: always
  sample:
    hosts: 2
    vms: 1
    copies: 1
    moved: 0
    fullest_host: xb
    fullest: 0.0625
    fullest_bound: 0.0625
    worst_death: {host: xa, to: xb, mib: 4096, even_mib: 4096}
"""

import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.colo.base import guarded

try:
    from ansible.module_utils.colo.fleet import plan
except ImportError:  # ortools is not there
    MISSING = traceback.format_exc()
else:
    MISSING = ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "hosts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "failure_domain": {"type": "str", "required": True},
                    "memory_mib": {"type": "int", "required": True},
                    "link_mbit": {"type": "int"},
                },
            },
            "vms": {"type": "dict", "required": True},
            "settled": {"type": "dict", "default": {}},
            "moves": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("ortools"), exception=MISSING)
    given = module.params
    guarded(
        module,
        lambda: {"changed": False, **plan(given["hosts"], given["vms"], given["moves"], given["settled"])},
    )


if __name__ == "__main__":
    main()
