#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE)
"""Sign a host's certificate with the inventory's own authority."""

from __future__ import annotations

DOCUMENTATION = r"""
module: colo_authority
short_description: Sign a host's certificate with a certificate authority of the inventory's own
version_added: "0.1.0"
description:
  - Runs on the controller; delegate it to C(localhost). M(colo_certificate) makes the key and the request on the host.
  - The authority is made when there is none, and never written again. It is C(authority.pem) in O(directory), for its
    owner only; the directory keeps itself out of git.
  - A certificate is signed when there is none, when it is not of this authority (see O(new_authority)) or of another key,
    when it does not say what it shall, or when it ends soon. Otherwise the present one is returned.
options:
  directory:
    description: Where the authority is kept.
    type: path
    required: true
  subject:
    description: Whom the certificate names.
    type: str
    required: true
  names:
    description: DNS names and IP addresses that it is good for.
    type: list
    elements: str
    default: []
  server:
    description: Whether it is good for a server, too.
    type: bool
    default: false
  request:
    description: The host's request, as M(colo_certificate) returns it; only its public key counts.
    type: str
    default: ""
  present:
    description: The certificate that the host has.
    type: str
    default: ""
  new_authority:
    description:
      - Whether O(present) may be replaced although it works and is of another authority than the one in O(directory). Without
        this it is refused, as a controller without the authority would otherwise silence all hosts that have its certificates.
    type: bool
    default: false
  days:
    description: How long a new certificate lasts.
    type: int
    default: 1095
  renew_days:
    description: A certificate that ends in fewer days is renewed.
    type: int
    default: 365
attributes:
  check_mode:
    description: Predicts; a certificate that would be new is returned empty.
    support: full
  diff_mode:
    description: Shows in words what the certificate says. No key is ever shown.
    support: full
author: COLO for Xen authors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Sign what the host has the key of
  colo_authority:
    directory: "{{ inventory_dir }}/.colo-authority"
    subject: "{{ inventory_hostname }}"
    names: [192.0.2.13]
    server: true
    request: "{{ key.request }}"
    present: "{{ key.certificate }}"
  delegate_to: localhost
  register: signed
"""

RETURN = r"""
certificate:
  description: The host's certificate; empty in check mode when it would be a new one.
  type: str
  returned: success
  sample: "-----BEGIN CERTIFICATE-----..."
authority:
  description: The authority's certificate; empty in check mode when there is none yet.
  type: str
  returned: success
  sample: "-----BEGIN CERTIFICATE-----..."
not_after:
  description: The day on which the host's certificate ends.
  type: str
  returned: success
  sample: "2029-11-25"
reasons:
  description: Why the certificate is a new one; empty when it is not.
  type: list
  elements: str
  returned: success
  sample: [it ends on 2026-12-24]
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.colo.authority import IMPORT_ERROR, SignedCertificate


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "subject": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "server": {"type": "bool", "default": False},
            "request": {"type": "str", "default": ""},
            "present": {"type": "str", "default": ""},
            "new_authority": {"type": "bool", "default": False},
            "days": {"type": "int", "default": 1095},
            "renew_days": {"type": "int", "default": 365},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("cryptography >= 42"), exception=str(IMPORT_ERROR))
    SignedCertificate(module).run()


if __name__ == "__main__":
    main()
