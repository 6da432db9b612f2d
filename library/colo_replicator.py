#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Have the replicator of a VM run with the release of colo_helper in use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_replicator
short_description: Have the replicator of a VM run with the release of colo_helper in use
version_added: "0.1.0"
description:
  - A replicator goes on with the release that it was started from. This starts one anew that runs with another release than
    the one in use; the VM and its copy run on meanwhile, and the pair finds together by comparing.
  - Does nothing where no replicator runs. Who may take over while it is away is not its business - see
    V(playbooks/upgrade.yml).
options:
  name:
    description: The VM.
    type: str
    required: true
  wait_replicating:
    description: Wait until the VM runs on two hosts again.
    type: bool
    default: false
  wait_timeout_s:
    description: How long each wait may take.
    type: int
    default: 600
  prefix:
    description: Where releases of colo_helper are installed.
    type: path
    default: /opt/colo-helper
attributes:
  check_mode:
    description: Predicts.
    support: full
  diff_mode:
    description: Shows the releases.
    support: full
seealso:
  - module: colo_helper
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run with the release in use
  colo_replicator:
    name: h1
    wait_replicating: true
"""

RETURN = r"""
name:
  description: The VM.
  type: str
  returned: always
  sample: h1
found:
  description: The release that its replicator ran with before; empty where none ran.
  type: str
  returned: always
  sample: 89abcdef01234567
outdated:
  description: Whether that was another release than the one in use on this host; those of two distributions differ.
  type: bool
  returned: always
  sample: true
release:
  description: The release that it runs with now.
  type: str
  returned: always
  sample: 0f1e2d3c4b5a6978
phase:
  description: The replicator's phase.
  type: str
  returned: always
  sample: replicating
reason:
  description: Why.
  type: str
  returned: always
  sample: Both copies of h1 run; the other is on xb.
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.replicator import Replicator


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "wait_replicating": {"type": "bool", "default": False},
            "wait_timeout_s": {"type": "int", "default": 600},
            "prefix": {"type": "path", "default": "/opt/colo-helper"},
        },
        supports_check_mode=True,
    )
    Replicator(module).run()


if __name__ == "__main__":
    main()
