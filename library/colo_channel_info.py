#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Tell how the channels of VMs are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_channel_info
short_description: Tell how the channels of VMs from this host to their peers are
version_added: "0.1.0"
description:
  - Makes a connection of its own to the peer of each VM, with the VM's key, and measures on it. Channels in use go on.
  - Does not fail when there is no connection - it reports the cause.
options:
  names:
    description: The VMs; all that this host has channels of when empty.
    type: list
    elements: str
    default: []
  peer:
    description:
      - The other host. Only needed where the VM's replicator on this host does not know its address, which is so on a
        secondary; then for one host's VMs at a time.
    type: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      address:
        description: Where its sshd answers to channels.
        type: str
        required: true
      port:
        description: The port there.
        type: int
        default: 22
      heartbeat_address:
        description: Its address in a second network.
        type: str
        default: ""
  echoes:
    description: How many times 64 bytes go to the peer and back, at most 10000.
    type: int
    default: 100
  size_bytes:
    description: How much goes each way to measure throughput, at most 120 MiB; V(0) measures none.
    type: int
    default: 16777216
  timeout_s:
    description: How long a connection, and each answer on it, may take.
    type: int
    default: 20
attributes:
  check_mode:
    description: Only measures.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
seealso:
  - module: colo_channel
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Measure the channels of all VMs
  colo_channel_info:
  register: channels

- name: Measure those of one VM on its secondary
  colo_channel_info:
    names: [h1]
    peer: {name: xa, address: 192.168.77.1}
    size_bytes: 1048576
"""

RETURN = r"""
vms:
  description: One entry for each VM.
  type: list
  elements: dict
  returned: always
  sample:
    - vm: h1
      peer: xb
      address: 192.168.77.2
      port: 22
      own_key: SHA256:ZB0nR5c8w5sFvYwjvB1oI3rlZ1P0dPpUYyxZxY0oQ1I
      host_key: SHA256:Q3rlZ1P0dPpUYyxZxY0oQ1IZB0nR5c8w5sFvYwjvB1o
      cipher: aes128-gcm@openssh.com
      connect_ms: 210.5
      rtt_ms: {p50: 0.4, p99: 0.9, echoes: 100}
      throughput_mb_s: {to_peer: 210.3, from_peer: 190.1, bytes: 16777216}
      heartbeat: null
      error: null
  contains:
    vm:
      description: The VM.
      type: str
      returned: always
    peer:
      description: The other host; empty when unknown.
      type: str
      returned: always
    address:
      description: Its address; empty when unknown.
      type: str
      returned: always
    port:
      description: The port there.
      type: int
      returned: always
    own_key:
      description: Fingerprint of this host's key for the VM; null when it cannot be read.
      type: str
      returned: always
    host_key:
      description: Fingerprint of the host key that the peer proved; null without a connection.
      type: str
      returned: always
    cipher:
      description: What encrypts the connection; null without one.
      type: str
      returned: always
    connect_ms:
      description: How long it took to connect and log in; null without a connection.
      type: float
      returned: always
    rtt_ms:
      description: Round trips of 64 bytes in milliseconds, median and 99th percentile; null without a connection.
      type: dict
      returned: always
    throughput_mb_s:
      description: Megabytes (10^6 bytes) in a second each way; null when not measured.
      type: dict
      returned: always
    heartbeat:
      description: Address, RV(ignore:rtt_ms) and RV(ignore:error) of the second network; null without one.
      type: dict
      returned: always
    error:
      description: RV(ignore:cause), one word, and RV(ignore:sentence); null when all of it worked.
      type: dict
      returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.base import guarded
from ansible.module_utils.colo.channel import measure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "peer": {
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 22},
                    "heartbeat_address": {"type": "str", "default": ""},
                },
            },
            "echoes": {"type": "int", "default": 100},
            "size_bytes": {"type": "int", "default": 16777216},
            "timeout_s": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    guarded(module, lambda: measure(module))


if __name__ == "__main__":
    main()
