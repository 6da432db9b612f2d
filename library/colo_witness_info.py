#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Find out what etcd a host has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_witness_info
short_description: Find out whether a host can be a witness, and what VMs it keeps a lease of
version_added: "0.1.0"
description:
  - Reads, changes nothing, and never fails because of what it finds - every finding has a sentence for an assertion.
options:
  cluster:
    description: All witnesses with the URLs of their peers, as etcd's C(--initial-cluster); not looked at when empty.
    type: str
    default: ""
  client_url:
    description: Where the hosts would ask this witness; nobody else may listen there.
    type: str
    default: ""
  peer_url:
    description: Where the other witnesses would.
    type: str
    default: ""
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
- name: Look at the witness
  colo_witness_info:
    cluster: w1=https://192.0.2.13:2380
    client_url: https://192.0.2.13:2379
    peer_url: https://192.0.2.13:2380
  register: witness

- name: Stop where it cannot be one
  ansible.builtin.assert:
    that: witness.problems | length == 0
    fail_msg: "{{ witness.problems | join(' ') }}"
"""

RETURN = r"""
installed:
  description: Whether etcd is installed.
  type: bool
  returned: always
  sample: true
ours:
  description: Whether the role colo_witness has set it up.
  type: bool
  returned: always
  sample: true
active:
  description: Whether the unit etcd runs.
  type: bool
  returned: always
  sample: true
outdated:
  description: Whether it runs since before its configuration was written.
  type: bool
  returned: always
  sample: false
data:
  description: Whether there are data of a witness.
  type: bool
  returned: always
  sample: true
cluster:
  description: The witnesses that they are of; empty when there are none.
  type: str
  returned: always
  sample: w1=https://192.0.2.13:2380
protected:
  description: The VMs whose lease it keeps now; null when it does not tell.
  type: list
  elements: str
  returned: always
  sample: [h1]
problems:
  description: Why the host cannot be a witness, one sentence each.
  type: list
  elements: str
  returned: always
  sample: []
removal_problems:
  description: Why the witness must not be removed now, one sentence each.
  type: list
  elements: str
  returned: always
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.witness import report


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cluster": {"type": "str", "default": ""},
            "client_url": {"type": "str", "default": ""},
            "peer_url": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    guarded(module, lambda: report(module))


if __name__ == "__main__":
    main()
