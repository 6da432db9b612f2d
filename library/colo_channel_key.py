#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the key of a host's COLO channels."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_channel_key
short_description: Keep the key of a host's COLO channels
version_added: "0.1.0"
description:
  - Makes an ed25519 key pair unless there is one. The private half never leaves the host.
  - Also returns the public host keys of the host's sshd, so that its peers know them before they first connect.
options:
  path:
    description: The private key.
    type: path
    default: /etc/colo/ssh/id_ed25519
  comment:
    description: Comment in a new key.
    type: str
    default: colo-channel
  host_key_directory:
    description: Where sshd has its host keys.
    type: path
    default: /etc/ssh
attributes:
  check_mode:
    description: Predicts that a key is made; the key itself cannot be foretold and is empty.
    support: full
  diff_mode:
    description: Shows the public key.
    support: full
author: COLO for Xen authors
"""

EXAMPLES = r"""
- name: Have a key for the channels
  colo_channel_key:
    comment: "colo-channel {{ inventory_hostname }}"
  register: channel_key
"""

RETURN = r"""
public_key:
  description: Type and text of the public key, without comment; empty while it is only predicted.
  type: str
  returned: success
  sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample
host_keys:
  description: sshd's public host keys, without comments.
  type: list
  elements: str
  returned: success
  sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOther]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.channel import ChannelKey


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/colo/ssh/id_ed25519"},
            "comment": {"type": "str", "default": "colo-channel"},
            "host_key_directory": {"type": "path", "default": "/etc/ssh"},
        },
        supports_check_mode=True,
    )
    ChannelKey(module).run()


if __name__ == "__main__":
    main()
