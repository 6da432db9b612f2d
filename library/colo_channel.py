#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Keep the channels of a VM on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_channel
short_description: Keep what a host needs for the channels of one VM
version_added: "0.1.0"
description:
  - A key of this host for this VM, the peer's key in this host's C(authorized_keys) where it can attach to this VM and do
    nothing else, and the peer's host keys in C(known_hosts). The private half of a key never leaves its host.
  - Each host of a VM needs the other's public keys, so it is run twice - without O(peer) for a key, then with it.
  - Lines of other VMs are left as they are. A line of C(authorized_keys) that lets anybody do anything else goes.
options:
  vm:
    description: The VM.
    type: str
    required: true
  state:
    description:
      - V(present) - the key is here, and what O(peer) tells is authorized and pinned.
      - V(established) - so, and a connection to the peer works. Otherwise it fails with the cause and a sentence.
      - V(absent) - nothing of the VM's channels is here. Refused while the VM is protected here.
    type: str
    choices: [present, established, absent]
    default: present
  peer:
    description: The other host of the VM; required when O(state=established).
    type: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      address:
        description: Where its sshd answers to channels; needed to pin host keys.
        type: str
        default: ""
      port:
        description: The port there.
        type: int
        default: 22
      heartbeat_address:
        description: Its address in a second network, for heartbeats; O(state=established) proves it as well.
        type: str
        default: ""
      public_keys:
        description: Its keys for this VM, and no others; left as they are when not given.
        type: list
        elements: str
      receive:
        description:
          - Whether these keys may also ask for C(xl migrate-receive) here, which is as good as a login as root; only with
            O(peer.public_keys). Left as it is when not given.
        type: bool
      host_keys:
        description: The keys of its sshd, and no others; left as they are when not given.
        type: list
        elements: str
  rotation:
    description:
      - How far the key of this host is being changed for a new one. Each step leaves a key that works.
      - V(none) - not at all; a next key stays when there is one.
      - V(prepare) - a next key lies beside the key. O(state=established) proves the next key.
      - V(switch) - the next key, when there is one, takes the key's place.
    type: str
    choices: [none, prepare, switch]
    default: none
  host_key_directory:
    description: Where sshd has its host keys.
    type: path
    default: /etc/ssh
attributes:
  check_mode:
    description:
      - Predicts, also where nothing is installed yet. A key that is only predicted is empty, and no connection is made.
    support: full
  diff_mode:
    description: One diff for each file and directory; of private keys their public half.
    support: full
seealso:
  - module: colo_channel_info
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Have a key for h1
  colo_channel:
    vm: h1
  register: channel

- name: Let the peer in and know it
  colo_channel:
    vm: h1
    peer:
      name: xb
      address: 192.168.77.2
      public_keys: ["{{ hostvars['xb'].channel.public_key }}"]
      host_keys: "{{ hostvars['xb'].channel.host_keys }}"

- name: Prove that the peer can be reached
  colo_channel:
    vm: h1
    state: established
    peer: {name: xb, address: 192.168.77.2}

- name: Remove the channels of a VM that is not protected any more
  colo_channel:
    vm: h1
    state: absent
"""

RETURN = r"""
vm:
  description: The VM.
  type: str
  returned: success
  sample: h1
public_key:
  description: This host's key for the VM, type and text without comment; empty while it is only predicted, or absent.
  type: str
  returned: success
  sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample
next_public_key:
  description: The key that takes its place next; empty when none is prepared.
  type: str
  returned: success
  sample: ""
host_keys:
  description: The public host keys of this host's sshd, without comments.
  type: list
  elements: str
  returned: success
  sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOther]
authorized:
  description: Whose keys may attach to the VM here, and whether they may have xl receive one.
  type: list
  elements: dict
  returned: success
  sample: [{peer: xb, public_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPeer, receive: false}]
connection:
  description: What O(state=established) found; null otherwise, and in check mode.
  type: dict
  returned: success
  sample: {cipher: aes128-gcm@openssh.com, host_key: "SHA256:abc", own_key: "SHA256:def", connect_ms: 210.5}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.channel import VmChannel


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "vm": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "established", "absent"], "default": "present"},
            "peer": {
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "default": ""},
                    "port": {"type": "int", "default": 22},
                    "heartbeat_address": {"type": "str", "default": ""},
                    "public_keys": {"type": "list", "elements": "str"},
                    "receive": {"type": "bool"},
                    "host_keys": {"type": "list", "elements": "str", "no_log": False},  # public ones
                },
            },
            "rotation": {"type": "str", "choices": ["none", "prepare", "switch"], "default": "none"},
            "host_key_directory": {"type": "path", "default": "/etc/ssh"},
        },
        required_if=[("state", "established", ["peer"])],
        supports_check_mode=True,
    )
    VmChannel(module).run()


if __name__ == "__main__":
    main()
