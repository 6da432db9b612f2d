"""How long a client waits when the primary's host loses its power, and for what: one pair, the same life again and again.

Only in a full run. The pair is protected once for each knob and kept; every run begins from there, goes on for a random
time, and ends with the plug pulled. COLO_TIMED says how many runs at each knob (50), COLO_SEED how the dice fall.
"""

import os
import random
import time
from dataclasses import dataclass
from datetime import datetime

import pytest

from colo_helper.quantiles import nearest_rank
from lab.settings import HOSTS
from tests.lab.arbiter import WitnessHost
from tests.lab.asker import Asker
from tests.lab.kept_pair import KeptPair
from tests.lab.protected_vm import ProtectedVm

pytestmark = pytest.mark.full

RUNS = int(os.environ.get("COLO_TIMED", "50"))
SEED = int(os.environ.get("COLO_SEED", "1"))
PRIMARY, SECONDARY = HOSTS


@dataclass(frozen=True)
class Knob:
    """The two times that an operator can choose, as in colo_vms."""

    peer_timeout_ms: int
    lease_s: int


#: The roles' defaults, and the shortest with which an emulated host is not taken for dead while it works.
KNOBS = {"default": Knob(5000, 10), "fast": Knob(2500, 4)}


@dataclass(frozen=True)
class Parts:
    """Seconds from the end of the power: until the peer counts as lost, the copy runs, and the client has its answer."""

    lost: float
    running: float
    answered: float


@pytest.fixture(scope="module")
def witness(installed, settings):
    installed()
    with WitnessHost(settings).running() as running:
        yield running


@pytest.fixture(params=KNOBS)
def kept(request, installed, witness, lab, settings, play):
    """A pair protected at a knob, kept with its witness under the knob's name."""
    installed()
    vm, knob = ProtectedVm(settings), KNOBS[request.param]
    arbiter = {"endpoints": [witness.url], "lease_s": knob.lease_s}
    hosts = {"primary": PRIMARY, "secondary": SECONDARY, "peer_timeout_ms": knob.peer_timeout_ms}
    wish = {"colo_vm": vm.name, "colo_vms": {vm.name: {**hosts, "arbiter": arbiter}}}
    assert play("protect", extra=wish).code == 0
    pair = KeptPair(lab, vm, witness, request.param)
    pair.keep()
    yield pair
    pair.go_back()  # not with a host that is off


def seconds_ahead(vm, host):
    """By how much a host's clock is ahead of this one's."""
    asked = time.time()
    theirs = float(vm.on(host, "date +%s.%N"))
    return theirs - (asked + time.time()) / 2


def lose_power(vm, lab, settings, dice):
    """End the primary's host while a client asks; what the client saw, and what the survivor did meanwhile."""
    asker = Asker(settings).begin()
    vm.wait_for_checkpoints(1)
    ahead = seconds_ahead(vm, SECONDARY)
    time.sleep(dice.uniform(0, 3))  # any moment of an epoch
    lab.host(PRIMARY).power_off()
    dead, wall = time.monotonic(), time.time()
    silence = asker.longest_silence(dead)
    counters = asker.close()
    assert counters == sorted(counters), "no step back"
    moments = {
        one["event"]: datetime.fromisoformat(one["time"]).timestamp() - ahead - wall
        for one in vm.events(SECONDARY)
    }
    return Parts(moments["peer_lost"], moments["active"], silence)


def test_how_long_a_client_waits(kept, witness, lab, settings):
    vm, tag = kept.vm, kept.tag
    dice = random.Random(SEED)
    found = []
    for run in range(RUNS):
        kept.go_back()
        found.append(lose_power(vm, lab, settings, dice))
        record = witness.read(vm.name).record
        assert (record.owner, record.mode) == (SECONDARY, "alone")
        print(f"{tag} {run}: {found[-1]}", flush=True)
    for part in ("lost", "running", "answered"):
        ordered = sorted(round(getattr(one, part) * 1000) for one in found)
        p50, p95 = (nearest_rank(ordered, share) for share in (0.5, 0.95))
        print(
            f"{tag} {KNOBS[tag]}: {part} p50 {p50} ms, p95 {p95} ms, longest {ordered[-1]} ms of {len(ordered)}"
        )
