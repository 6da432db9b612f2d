"""Both ends of a session over the real channels of h1, without a VM: many frames to a taker that rests in the middle.

pressure.py receive          prints one line of JSON at the end
pressure.py send PEER ADDRESS MIB
"""

import hashlib
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, "/opt/colo-helper/current/site-packages")

from colo_helper.channel.dialer import Dialer, PeerAddress
from colo_helper.channel.listener import AttachListener
from colo_helper.channel.opening import Opening
from colo_helper.channel.session import BACK, FORWARD, Session, Timing
from colo_helper.channel.wire import Kind

VM = "h1"
TIMING = Timing(10.0)
#: The taker rests for this long after so many frames: longer than a silent peer would live.
REST_S, REST_AFTER = 20, 60
FRAME_BYTES = 1 << 20


class End:
    """How a session ended."""

    def __init__(self):
        self.event, self.sentence = threading.Event(), ""

    def lost(self, sentence):
        self.sentence = sentence
        self.event.set()


def receive():
    digest, end, sessions = hashlib.sha256(), End(), []
    seen = {"frames": 0, "in_order": True}

    def take(frame):
        if frame.kind is Kind.END:
            end.event.set()
            return
        seen["in_order"] &= frame.head == {"n": seen["frames"]}
        seen["frames"] += 1
        digest.update(frame.parts[0])
        if seen["frames"] == REST_AFTER:
            time.sleep(REST_S)  # the fault itself: a taker that takes nothing

    def begin(session):
        sessions.append(session)
        session.start(take, end.lost)

    directory = Path("/run/colo") / VM
    directory.mkdir(parents=True, exist_ok=True)
    listener = AttachListener(
        directory / "attach.sock", VM, lambda: "", lambda name: Session(name, BACK, TIMING), begin
    )
    listener.start()
    came = end.event.wait(900)
    reopened = sum(sessions[0].figures()["reopened"].values())
    for session in sessions:
        session.close()
    listener.close()
    print(
        json.dumps(
            {**seen, "sha256": digest.hexdigest(), "lost": end.sentence, "came": came, "reopened": reopened}
        )
    )


def send(peer, address, mib):
    end, digest = End(), hashlib.sha256()
    dialer = Dialer.start(PeerAddress(peer, address, 22), VM)
    session = Session("pressure-" + os.urandom(4).hex(), FORWARD, TIMING, opener=Opening(VM, dialer, 60))
    session.open()
    session.start(lambda _frame: None, end.lost)
    waits, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(mib):
        data = os.urandom(FRAME_BYTES)
        digest.update(data)
        started = time.monotonic()
        session.send(Kind.CHUNK, {"n": number}, (data,))
        waits.append(time.monotonic() - started)
    session.send(Kind.END)
    end.event.wait(120)  # the taker closes when it has read that
    session.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"sha256": digest.hexdigest(), "longest_s": round(max(waits), 1), "grown_kib": grown}))


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive()
    else:
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]))
