#!/usr/bin/python3 -IS
"""Runs on both hosts as libxl's save helper: one plain save and restore becomes a COLO pair on an empty domain.

`xl save -p` starts it on the primary, `xl restore -p` on the secondary. Each starts our real helper in stream type COLO,
over sockets to the other host, and stands between it and libxl: libxl sees a plain save that writes no memory and a
plain restore that reads none, and builds its domain and device model around what the COLO stream brings. When libxl has
finished, the same helpers go on with epochs. At every checkpoint both memories are compared by hash.

The primary writes its findings to RESULT. The test says on GO, a named pipe, when libxl is done on that host.
"""

import base64
import json
import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, "/opt/colo-helper/current/site-packages")

from colo_helper.devices.filters import QmpFilters
from colo_helper.devices.nics import HostNics
from colo_helper.devices.qmp import QmpDeviceModel
from colo_helper.helper import argv
from colo_helper.helper.argv import FLAG_LIVE, RestoreRequest, SaveRequest, StreamType
from colo_helper.helper.callout import HelperProcess
from colo_helper.helper.messages import Callback, Level
from colo_helper.helper.parent import EPOCH, PipeParent
from colo_helper.hypervisor.frames import search_order
from colo_helper.hypervisor.hashing import hash_window
from colo_helper.hypervisor.libraries import open_libraries
from colo_helper.hypervisor.xen import XenDomain
from colo_helper.replication.guest import Guest

PROGRAM = "/opt/colo-helper/current/bin/colo-save-helper"
CONFIG, GO, RESULT, LOG = (Path(f"/run/colo-pair.{name}") for name in ("json", "go", "result", "log"))
PORT = 7100
EPOCHS = 5
RUN_S = 2.0
QMP_TIMEOUT_S = 60.0


class Lines:
    """JSON objects, one a line, over a socket or a pair of pipes."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, **message):
        self.writer.write(json.dumps(message).encode() + b"\n")
        self.writer.flush()

    def receive(self, *expected):
        message = json.loads(self.reader.readline() or b'{"op": "lost"}')
        if message["op"] not in expected:
            raise RuntimeError(f"{message['op']} came where {expected} was due")
        return message


def relay(parent, lines):
    """What libxl started: passes the daemon's questions on to libxl until the daemon says that the plain part is done."""
    while True:
        message = lines.receive("ask", "tell", "complete")
        if message["op"] == "complete":
            parent.complete(0, 0)
            return 0
        callback = Callback[message["callback"]]
        if message["op"] == "tell":
            parent.tell(callback, *message["arguments"])
        else:
            lines.send(op="answer", value=parent.ask(callback, *message["arguments"]))


class Side:
    """What both sides' parents have in common."""

    def __init__(self, request, libxl, peer):
        self.request, self.libxl, self.peer = request, libxl, peer
        self.epoch = 0
        self.guest = None
        self.figures = {}

    def ask_libxl(self, callback, *arguments):
        self.libxl.send(op="ask", callback=callback.name, arguments=arguments)
        return self.libxl.receive("answer")["value"]

    def leave_libxl(self):
        """libxl finishes its part; returns when the test says that it has."""
        self.libxl.send(op="complete")
        GO.read_bytes()
        domid = self.request.domid
        domain = XenDomain(open_libraries(), domid)
        devices = QmpDeviceModel(domid, Path("/run"), QMP_TIMEOUT_S)
        self.guest = Guest(domain, devices, HostNics(domid), QmpFilters(devices))
        self.guest.nics.isolate()

    def hashes(self):
        domain = self.guest.domain
        found, pages = {}, domain.info().pages
        for window in search_order(domain.nr_frames(), pages, 16384):
            found.update((gfn, value.hex()) for gfn, value in hash_window(domain, window).items())
            if len(found) >= pages:
                break
        return found

    def log(self, level, errnoval, context, text):
        if level >= Level.DETAIL:
            print(f"{context}: {text}", flush=True)

    def progress(self, context, what, done, total):
        if context == EPOCH:
            self.figures[what] = done


class PrimarySide(Side):
    """Serves the saving helper."""

    results = ()

    def switch_qemu_logdirty(self, domid, enable):
        if not self.guest:
            return self.ask_libxl(Callback.SWITCH_QEMU_LOGDIRTY, domid, int(enable))
        self.guest.devices.log_dirty(enable)
        return 0

    def suspend(self):
        self.epoch += 1
        self.figures = {}
        if self.epoch == 1:
            return self.ask_libxl(Callback.SUSPEND)
        self.peer.send(op="suspend")
        self.guest.domain.suspend()
        self.guest.devices.stop()
        return 1

    def checkpoint(self):
        if self.epoch == 1:
            self.leave_libxl()  # leaves the guest paused, and not suspended any more
            return 1
        state = base64.b64encode(self.guest.devices.save_state()).decode()
        self.peer.send(op="complete", state=state)
        return 1

    def postcopy(self):
        applied = self.peer.receive("applied")
        ours = self.hashes()
        self.peer.send(op="hash")
        theirs = {int(gfn): value for gfn, value in self.peer.receive("hashes")["hashes"].items()}
        own = set(self.guest.domain.special_frames())
        differ = sorted(gfn for gfn in ours.keys() | theirs.keys() if ours.get(gfn) != theirs.get(gfn))
        record = {
            "epoch": self.epoch,
            **self.figures,
            "pages": len(ours.keys() | theirs.keys()),
            "different": differ,
            "unexplained": [gfn for gfn in differ if gfn not in own],
            "secondary": applied,
        }
        self.results = (*self.results, record)
        RESULT.write_text(json.dumps(self.results))
        self.peer.send(op="run")
        self.guest.devices.cont()
        if self.epoch == 1:
            self.guest.domain.adopt_pause()
            self.guest.domain.unpause()
        else:
            self.guest.domain.resume()
        return 1

    def wait_checkpoint(self):
        time.sleep(RUN_S)  # both guests run and dirty pages of their own
        if self.epoch < EPOCHS:
            return 1
        self.peer.send(op="end")
        return 0


class SecondarySide(Side):
    """Serves the restoring helper."""

    frames_at_start = 0
    state = b""

    def static_data_done(self, missing):
        return self.ask_libxl(Callback.STATIC_DATA_DONE, missing)

    def restore_results(self, store_gfn, console_gfn):
        if not self.guest:
            self.libxl.send(op="tell", callback="RESTORE_RESULTS", arguments=[store_gfn, console_gfn])

    def checkpoint(self):
        self.epoch += 1
        if self.epoch > 1:
            self.state = base64.b64decode(self.peer.receive("complete")["state"])
        return 1

    def postcopy(self):
        if self.epoch == 1:
            self.leave_libxl()
            self.guest.adopt_halt()
            self.guest.start_logging()
        else:
            self.guest.devices.load_state(self.state)
        self.peer.send(op="applied", frames_at_start=self.frames_at_start)
        while self.peer.receive("hash", "run")["op"] == "hash":
            self.peer.send(op="hashes", hashes=self.hashes())
        self.guest.resume()
        return 1

    def wait_checkpoint(self):
        return 1 if self.peer.receive("suspend", "end")["op"] == "suspend" else 2

    def suspend(self):
        self.guest.halt()
        return 1


def connect(address):
    """Reach the secondary; libxl starts it in its own time."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection((address, PORT), 60)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def daemon(invocation, libxl):
    config = json.loads(CONFIG.read_text())
    saving = isinstance(invocation.request, SaveRequest)
    if saving:
        sockets = [connect(config["peer"]) for _ in range(3)]
    else:
        listener = socket.create_server(("", PORT))
        sockets = [listener.accept()[0] for _ in range(3)]
    for sock in sockets:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    forward, back, control = sockets
    peer = Lines(control.makefile("rb"), control.makefile("wb"))
    given = invocation.request
    if saving:
        side, request = PrimarySide(given, libxl, peer), SaveRequest(given.domid, FLAG_LIVE, StreamType.COLO)
    else:
        side = SecondarySide(given, libxl, peer)
        request = RestoreRequest(
            given.domid, given.store_evtchn, given.console_evtchn, stream_type=StreamType.COLO
        )
        side.frames_at_start = XenDomain(open_libraries(), given.domid).nr_frames()
    helper = HelperProcess.start(request, forward.fileno(), back.fileno(), program=PROGRAM)
    forward.close()
    back.close()
    outcome = helper.serve(side)
    print(f"ended: {outcome}", flush=True)
    if saving:
        RESULT.write_text(json.dumps([*side.results, {"ended": outcome.succeeded, "why": str(outcome)}]))
    else:
        side.guest.release()


def main():
    invocation = argv.parse(sys.argv[1:])
    down, up = socket.socketpair()
    if os.fork():
        down.close()
        return relay(PipeParent(0, 1, invocation), Lines(up.makefile("rb"), up.makefile("wb")))
    up.close()
    os.setsid()
    os.close(invocation.stream_fd)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2):
        os.dup2(log, fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    daemon(invocation, Lines(down.makefile("rb"), down.makefile("wb")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
