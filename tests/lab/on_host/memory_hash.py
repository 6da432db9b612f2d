"""Runs on a host: one line per page of a domain, "GFN HASH", and one per frame that belongs to the host, "GFN special".

Usage: memory_hash.py DOMID
"""

import sys

sys.path.insert(0, "/opt/colo-helper/current/site-packages")

from colo_helper.hypervisor.frames import search_order
from colo_helper.hypervisor.hashing import hash_window
from colo_helper.hypervisor.libraries import open_libraries
from colo_helper.hypervisor.xen import XenDomain

domain = XenDomain(open_libraries(), int(sys.argv[1]))
found, pages = 0, domain.info().pages
for window in search_order(domain.nr_frames(), pages, 16384):
    for gfn, value in hash_window(domain, window).items():
        print(gfn, value.hex())
        found += 1
    if found >= pages:
        break
for gfn in domain.special_frames():
    print(gfn, "special")
