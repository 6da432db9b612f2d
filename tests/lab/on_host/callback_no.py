"""Runs on a host as a parent that says no: one live save of a domain, whose outcome it prints as JSON.

Usage: callback_no.py DOMID CALLBACK (suspend or switch_qemu_logdirty). The guest is not touched by this parent.
"""

import json
import os
import sys

sys.path.insert(0, "/opt/colo-helper/current/site-packages")

from colo_helper.helper.argv import FLAG_LIVE, SaveRequest, StreamType
from colo_helper.helper.callout import HelperProcess


class SaysNo:
    """Answers one callback with no, and remembers what was asked."""

    def __init__(self, refused):
        self.refused, self.asked, self.said = refused, [], []

    def suspend(self):
        self.asked.append("suspend")
        return 0

    def switch_qemu_logdirty(self, domid, enable):
        self.asked.append(f"logdirty {enable}")
        return int(enable and self.refused == "switch_qemu_logdirty")

    def log(self, level, errnoval, context, text):
        self.said.append(text)

    def progress(self, *_):
        pass


parent = SaysNo(sys.argv[2])
sink = os.open("/dev/null", os.O_WRONLY)
request = SaveRequest(int(sys.argv[1]), FLAG_LIVE, StreamType.PLAIN)
outcome = HelperProcess.start(request, sink, program="/opt/colo-helper/current/bin/colo-save-helper").serve(
    parent
)
print(
    json.dumps({"retval": outcome.retval, "error": outcome.error, "asked": parent.asked, "said": parent.said})
)
