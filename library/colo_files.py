#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Keep a set of small files and directories."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_files
short_description: Keep a set of small files and directories as one state
version_added: "0.1.0"
description:
  - Files and directories that belong together, in the order given, in one task. A task costs seconds on a slow host.
  - Each file is replaced atomically. When O(validate) refuses the result, all of them are put back.
options:
  files:
    description: What shall be.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      state:
        description: What.
        type: str
        choices: [file, directory, absent]
        default: file
      content:
        description: The whole content; needed for a file.
        type: str
      mode:
        description: Octal, quoted; C(0644) for a file and C(0755) for a directory when not given.
        type: str
      owner:
        description: Name of the owner.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
  validate:
    description: A command that must succeed after something was changed, as a list of words.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Predicts; O(validate) is not run.
    support: full
  diff_mode:
    description: One diff for each path.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let sshd know the user colo
  colo_files:
    files:
      - {path: /etc/colo/ssh, state: directory, mode: "0750", group: colo}
      - path: /etc/ssh/sshd_config.d/colo.conf
        content: "{{ lookup('ansible.builtin.template', 'sshd.conf.j2') }}"
    validate: [/usr/sbin/sshd, -t]
"""

RETURN = r"""
paths:
  description: The paths that are there.
  type: list
  elements: str
  returned: success
  sample: [/etc/colo/ssh, /etc/ssh/sshd_config.d/colo.conf]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.filetree import FileTree


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
                    "content": {"type": "str"},
                    "mode": {"type": "str"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                },
            },
            "validate": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    FileTree(module).run()


if __name__ == "__main__":
    main()
