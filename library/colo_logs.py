#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Gather what a host can tell of its VMs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_logs
short_description: Gather what a host can tell of its VMs in one archive
version_added: "0.1.0"
description:
  - States, events, verifications, settings and journals of the replicators, the device models' logs, and what Xen and the
    network say.
  - No key or password is gathered, and nothing of a guest's memory. Of a large log only the end is.
options:
  path:
    description: The archive that is written on the host, readable by root.
    type: path
    required: true
  names:
    description: The VMs; all that this host knows when empty.
    type: list
    elements: str
    default: []
  since:
    description: From when on journals are gathered, as C(journalctl --since) takes it.
    type: str
    default: "-24h"
attributes:
  check_mode:
    description: Writes nothing.
    support: full
  diff_mode:
    description: There is none.
    support: none
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Gather what happened in the last hour
  colo_logs:
    path: /var/tmp/colo-logs.tar.gz
    since: "-1h"
"""

RETURN = r"""
path:
  description: The archive.
  type: str
  returned: always
  sample: /var/tmp/colo-logs.tar.gz
files:
  description: What is in it, below a directory with the host's name.
  type: list
  elements: str
  returned: always
  sample: [xl-info.txt, h1/config.json, h1/state.json, h1/events.jsonl, h1/journal.txt, h1/qemu-dm-h1.log]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.logs import gather


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "since": {"type": "str", "default": "-24h"},
        },
        supports_check_mode=True,
    )
    guarded(module, lambda: gather(module))


if __name__ == "__main__":
    main()
