"""Runs on a lab host: how often and how long a domain stands still, as Xen says it.

    pause_sampler.py DOMID SECONDS        prints one line of JSON: the lengths of all pauses, in milliseconds

Xen is asked every 2 ms, so a pause is known to about twice that. A domain that is suspended stands still as well.
"""

import ctypes
import json
import sys
import time

sys.path.insert(0, "/opt/colo-helper/current/site-packages")

from colo_helper.hypervisor.libraries import open_libraries
from colo_helper.hypervisor.xen import XenDomain

_STEP_S = 0.002


def main() -> None:
    """See above."""
    domain = XenDomain(open_libraries(), int(sys.argv[1]))
    end = time.monotonic() + float(sys.argv[2])
    pauses: list[float] = []
    since = 0.0
    while (now := time.monotonic()) < end:
        info = domain.info()
        if info.paused or info.shutdown:
            since = since or now
        elif since:
            pauses.append(round((now - since) * 1000, 1))
            since = 0.0
        time.sleep(_STEP_S)  # the sampling itself
    print(json.dumps(pauses))


if __name__ == "__main__":
    ctypes.CDLL(None).mlockall(
        3
    )  # MCL_CURRENT | MCL_FUTURE: waiting for a page of ours would look like a pause
    main()
