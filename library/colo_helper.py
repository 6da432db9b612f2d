#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Keep a release of colo_helper in use on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_helper
short_description: Keep a release of colo_helper in use on a host
version_added: "0.1.0"
description:
  - Unpacks an archive of M(colo_bundle) beside the releases that are there, starts it once to see that it works, and
    only then switches the link C(current) to it. Until that moment the old release stays in use.
  - Where xl saves VMs with colo_helper (M(colo_save_helper)), the release's save helper must start, too.
  - Old releases go, except as many as O(keep) says and those that a running process still uses.
options:
  state:
    description: V(absent) removes all releases; it refuses while a process uses one, or xl by M(colo_save_helper).
    type: str
    choices: [present, absent]
    default: present
  digest:
    description: The release; required when O(state=present).
    type: str
  archive:
    description: The archive on the host; needed only when the release is not installed yet.
    type: path
  remove_archive:
    description: Remove O(archive) once the release is in use.
    type: bool
    default: false
  keep:
    description: How many old releases stay, to go back to.
    type: int
    default: 2
  prefix:
    description: Where releases are installed.
    type: path
    default: /opt/colo-helper
attributes:
  check_mode:
    description: Predicts, also when the archive is not there yet.
    support: full
  diff_mode:
    description: Shows the releases before and after.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Use a release
  colo_helper:
    digest: 0f1e2d3c4b5a6978
    archive: /var/tmp/colo-helper-0f1e2d3c4b5a6978.tar.gz
    remove_archive: true

- name: Remove colo_helper
  colo_helper:
    state: absent
"""

RETURN = r"""
digest:
  description: The release in use; null when there is none.
  type: str
  returned: success
  sample: 0f1e2d3c4b5a6978
releases:
  description: All installed releases.
  type: list
  elements: str
  returned: success
  sample: [0f1e2d3c4b5a6978, 8796a5b4c3d2e1f0]
version:
  description: The version of the release in use; null when there is none, also while it is only predicted.
  type: str
  returned: success
  sample: 0.1.0
path:
  description: The link to the release in use.
  type: str
  returned: success
  sample: /opt/colo-helper/current
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.release import HelperRelease


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "digest": {"type": "str"},
            "archive": {"type": "path"},
            "remove_archive": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 2},
            "prefix": {"type": "path", "default": "/opt/colo-helper"},
        },
        required_if=[("state", "present", ["digest"])],
        supports_check_mode=True,
    )
    HelperRelease(module).run()


if __name__ == "__main__":
    main()
