#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Keep a host's key and certificate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_certificate
short_description: Keep a host's key, its certificate and the authority's
version_added: "0.1.0"
description:
  - Makes a key with openssl where there is none, and returns a request for it; M(colo_authority) signs that on the
    controller. A second task with O(certificate) and O(authority) writes what was signed.
  - The key never leaves the host and stays when the certificate is renewed.
options:
  state:
    description: V(absent) removes all three; it refuses while a protected VM's replicator uses them.
    type: str
    choices: [present, absent]
    default: present
  directory:
    description: Where C(key.pem), C(certificate.pem) and C(ca.pem) are.
    type: path
    required: true
  group:
    description: Who may read them beside root; with V(root) nobody may.
    type: str
    default: root
  certificate:
    description: The host's certificate; the one that is there stays when not given.
    type: str
  authority:
    description: The authority's certificate; the one that is there stays when not given.
    type: str
attributes:
  check_mode:
    description: Predicts; O(certificate) and O(authority) may be empty, as M(colo_authority) returns them.
    support: full
  diff_mode:
    description: One diff for each path; of the key only its mode and owner.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Have a key
  colo_certificate:
    directory: /etc/colo/arbiter
  register: key

- name: Have what was signed
  colo_certificate:
    directory: /etc/colo/arbiter
    certificate: "{{ signed.certificate }}"
    authority: "{{ signed.authority }}"
"""

RETURN = r"""
request:
  description: A request for the key (PKCS 10, PEM); empty in check mode when there is no key yet.
  type: str
  returned: success
  sample: "-----BEGIN CERTIFICATE REQUEST-----..."
certificate:
  description: The certificate that is there; empty when there is none.
  type: str
  returned: success
  sample: "-----BEGIN CERTIFICATE-----..."
authority:
  description: The authority's certificate that is there; empty when there is none.
  type: str
  returned: success
  sample: "-----BEGIN CERTIFICATE-----..."
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.colo.certificate import HostCertificate


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "directory": {"type": "path", "required": True},
            "group": {"type": "str", "default": "root"},
            "certificate": {"type": "str"},
            "authority": {"type": "str"},
        },
        supports_check_mode=True,
    )
    HostCertificate(module).run()


if __name__ == "__main__":
    main()
