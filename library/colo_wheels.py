#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Fetch what a controller without a network needs to run the playbooks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_wheels
short_description: Fetch what a controller without a network needs to run the playbooks
version_added: "0.1.0"
description:
  - Keeps the wheels of ansible-core and of what else the playbooks need, for this controller's Python and in the versions that
    the tests ran with, and a pip that can install them, in C(wheels/controller-pyVERSION).
  - Runs on the controller; delegate it to C(localhost). What is there is not looked for on the network again.
options:
  source:
    description: The checkout of this project.
    type: path
    required: true
  build_dir:
    description: Where wheels are kept; C(build) in O(source) when not given.
    type: path
  groups:
    description: Dependency groups of C(pyproject.toml).
    type: list
    elements: str
    default: [controller]
attributes:
  check_mode:
    description: Says whether wheels would be fetched.
    support: full
  diff_mode:
    description: Shows which wheels come and go.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Fetch what the controller needs, to plan fleets as well
  colo_wheels:
    source: "{{ playbook_dir }}/.."
    groups: [controller, fleet]
  delegate_to: localhost
"""

RETURN = r"""
directory:
  description: Where the wheels are.
  type: str
  returned: always
  sample: /srv/colo/build/wheels/controller-py3.11
wheels:
  description: Their file names; empty in check mode when they are not complete.
  type: list
  elements: str
  returned: always
  sample: [ansible_core-2.19.3-py3-none-any.whl, jinja2-3.1.6-py3-none-any.whl]
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.bundle import fetch_controller_wheels


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "build_dir": {"type": "path"},
            "groups": {"type": "list", "elements": "str", "default": ["controller"]},
        },
        supports_check_mode=True,
    )

    def action() -> dict[str, Any]:
        source = Path(module.params["source"]).resolve()
        build = Path(module.params["build_dir"] or source / "build")
        return fetch_controller_wheels(source, build, module.params["groups"], predict=module.check_mode)

    guarded(module, action)


if __name__ == "__main__":
    main()
