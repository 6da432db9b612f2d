#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Find out whether a host can take part."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_preflight_info
short_description: Find out whether a host can protect VMs or hold their copies
version_added: "0.1.0"
description:
  - Reads, changes nothing, and never fails because of what it finds - every finding has a sentence for an assertion.
options:
  bridges:
    description: Bridges that have to be there.
    type: list
    elements: str
    default: []
  minimum_memory_mib:
    description: How much memory Xen must have left for a new domain.
    type: int
    default: 0
  guests:
    description: VMs to describe, those of them that run here.
    type: list
    elements: str
    default: []
  reach:
    description: TCP ports of others that shall answer to this host.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What it is called in RV(reach).
        type: str
        required: true
      address:
        description: Where.
        type: str
        required: true
      port:
        description: The port there.
        type: int
        required: true
  paths:
    description: Files and devices that shall be there.
    type: list
    elements: path
    default: []
  prefix:
    description: Where releases of colo_helper are installed; what is there is reported.
    type: path
    default: /opt/colo-helper
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
- name: Look at the host
  colo_preflight_info:
    bridges: [xenbr0]
    minimum_memory_mib: 256
  register: preflight

- name: Stop where something is missing
  ansible.builtin.assert:
    that: preflight.ok
    fail_msg: "{{ preflight.problems | join(' ') }}"
"""

RETURN = r"""
ok:
  description: Whether every finding is.
  type: bool
  returned: always
  sample: false
findings:
  description: Every check.
  type: list
  elements: dict
  returned: always
  sample:
    - check: the bridge xenbr0
      ok: false
      found: missing
      wanted: there
      sentence: >-
        xa: the bridge xenbr0 is missing, not there: make the bridge xenbr0 in /etc/network/interfaces,
        or name another in colo_vms.
problems:
  description: The sentences of those that are not ok.
  type: list
  elements: str
  returned: always
  sample: []
xen_release:
  description: Xen's release, empty when Xen does not answer.
  type: str
  returned: always
  sample: "4.17"
xen_version:
  description: Xen's full version.
  type: str
  returned: always
  sample: 4.17.7
debian_release:
  description: The distribution's release.
  type: str
  returned: always
  sample: "12"
python_version:
  description: The Python that runs modules and will run colo_helper.
  type: str
  returned: always
  sample: "3.11"
free_memory_mib:
  description: What Xen has left for a new domain.
  type: int
  returned: always
  sample: 902
processor:
  description: The processor's features as Xen has them, C(hw_caps); equal on hosts of the same kind.
  type: str
  returned: always
  sample: "078bf3fd:82982203:20100800:00000005:00000000:00000000:00000000:00000000"
time:
  description: The host's clock, in seconds since 1970.
  type: float
  returned: always
  sample: 1764150000.25
guests:
  description: The VMs of O(guests) that run here.
  type: dict
  returned: always
  sample:
    h1:
      type: hvm
      memory_mib: 136
      vcpus: 1
      pv_platform: false
      passthrough: 0
      nics: [vif_ioemu]
      bridges: [xenbr0]
      disks: []
      writable_disks: []
reach:
  description: >-
    For each of O(reach), milliseconds to a connection, or what was wrong, and the speed in Mbit/s of the link that leads
    there, as far as its driver says it.
  type: dict
  returned: always
  sample: {xb: {ms: 0.4, error: "", mbit_s: 10000}}
missing:
  description: Those of O(paths) that are not there.
  type: list
  elements: str
  returned: always
  sample: []
helper:
  description: The release of colo_helper in use, and all that are installed, newest first.
  type: dict
  returned: always
  sample: {digest: 0f1e2d3c4b5a6978, releases: [0f1e2d3c4b5a6978]}
save_helper:
  description: >-
    What xl of each installed release of Xen saves VMs with - V(ours), V(stock) (Xen's own), V(other) (somebody else's)
    or V(none).
  type: dict
  returned: always
  sample: {"4.17": stock}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.preflight import report


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bridges": {"type": "list", "elements": "str", "default": []},
            "minimum_memory_mib": {"type": "int", "default": 0},
            "guests": {"type": "list", "elements": "str", "default": []},
            "reach": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                },
            },
            "paths": {"type": "list", "elements": "path", "default": []},
            "prefix": {"type": "path", "default": "/opt/colo-helper"},
        },
        supports_check_mode=True,
    )
    guarded(module, lambda: report(module))


if __name__ == "__main__":
    main()
