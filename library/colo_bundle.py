#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Build the release of colo_helper that the hosts get."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_bundle
short_description: Build the release of colo_helper that the hosts get
version_added: "0.1.0"
description:
  - Builds colo_helper and everything it depends on from wheels into one archive, for the Python of a host.
  - Runs on the controller; delegate it to C(localhost). Hosts need neither pip nor a network.
  - The archive's name holds a digest of all that went into it. An unchanged source is not built again, and is not
    looked for on the network either.
options:
  source:
    description: The checkout of this project.
    type: path
    required: true
  build_dir:
    description: Where wheels and archives are kept; C(build) in O(source) when not given.
    type: path
  python_version:
    description: The Python of the host, such as V(3.11).
    type: str
    required: true
attributes:
  check_mode:
    description: Predicts; the digest is only known when the wheels are at hand.
    support: full
  diff_mode:
    description: Shows the archive before and after.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Build the release for Debian 12
  colo_bundle:
    source: "{{ playbook_dir }}/.."
    python_version: "3.11"
  delegate_to: localhost
  register: bundle
"""

RETURN = r"""
digest:
  description: Names the release; empty in check mode when it cannot be known without the network.
  type: str
  returned: always
  sample: 0f1e2d3c4b5a6978
path:
  description: The archive on the controller; empty when O(ignore:digest) is.
  type: str
  returned: always
  sample: /srv/colo/build/bundles/colo-helper-0.1.0-py3.11-0f1e2d3c4b5a6978.tar.gz
version:
  description: The version of colo_helper.
  type: str
  returned: always
  sample: 0.1.0
built:
  description: Whether the archive exists now; false only in check mode.
  type: bool
  returned: always
  sample: true
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.bundle import make_bundle


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "build_dir": {"type": "path"},
            "python_version": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )

    def action() -> dict[str, Any]:
        source = Path(module.params["source"]).resolve()
        build = Path(module.params["build_dir"] or source / "build")
        result = make_bundle(source, build, module.params["python_version"], predict=module.check_mode)
        name = f"{result['path'] or 'an archive of ' + str(source)}\n"
        return {**result, "diff": {"before": "" if result["changed"] else name, "after": name}}

    guarded(module, action)


if __name__ == "__main__":
    main()
