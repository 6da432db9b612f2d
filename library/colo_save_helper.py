#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Let xl save and restore every VM with our helper, or with Xen's own."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_save_helper
short_description: Let xl save and restore every VM with colo-save-helper, or with Xen's own helper
version_added: "0.1.0"
description:
  - For every installed release of Xen, C(libxl-save-helper) is diverted (C(dpkg-divert), local) to
    C(libxl-save-helper.distrib), and a link to C(colo-save-helper) takes its place. So it holds for every parent,
    whatever its environment, and for both sides of a migration; packages of Xen are upgraded beside it.
  - C(LIBXL_SAVE_HELPER) in the environment of one command still takes precedence.
  - There is no moment in which xl finds no helper.
options:
  state:
    description:
      - V(present) starts our helper once before xl gets it, and refuses where somebody else has changed the helper.
      - V(absent) puts Xen's own back where ours is; what somebody else did is left alone.
    type: str
    choices: [present, absent]
    default: present
  prefix:
    description: Where releases of colo_helper are installed. The link follows the release in use.
    type: path
    default: /opt/colo-helper
attributes:
  check_mode:
    description: Predicts, also when colo_helper is not installed yet; our helper is not started.
    support: full
  diff_mode:
    description: Shows each place before and after.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let xl save every VM with our helper
  colo_save_helper:
    state: present

- name: Give xl its own helper back
  colo_save_helper:
    state: absent
"""

RETURN = r"""
helpers:
  description: >-
    What xl of each installed release of Xen saves VMs with - V(ours), V(stock) (Xen's own), V(other) (somebody else's)
    or V(none).
  type: dict
  returned: success
  sample: {"4.17": ours}
left_alone:
  description: A sentence on each place where somebody else has changed the helper.
  type: list
  elements: str
  returned: success
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.save_helper import SaveHelper


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "prefix": {"type": "path", "default": "/opt/colo-helper"},
        },
        supports_check_mode=True,
    )
    SaveHelper(module).run()


if __name__ == "__main__":
    main()
