"""The primary's host loses its power at any moment, under load, and the copy takes over by itself: what clients see, and when.

Only in a full run. A pair is protected once for each knob, with an arbiter, and kept; every round begins from there and goes
on for a random time. Before the plug is pulled both copies are compared in all of memory, CPU and devices.

COLO_POWER_OFFS says how many rounds at each knob (20), COLO_VERIFIES how many comparisons in each (1), COLO_GUEST which guest
(h1 has virtio-net, h2 e1000), COLO_SEED how the dice fall.
"""

import os
import random
import time
from dataclasses import astuple, dataclass, fields
from datetime import datetime

import pytest

from colo_helper.quantiles import nearest_rank
from lab.guests import Client
from lab.settings import HOSTS
from tests.lab.kept_pair import KeptPair
from tests.lab.load import PACES_S, Clients, Writer, compare_many
from tests.lab.protected_vm import GUEST, ProtectedVm

pytestmark = pytest.mark.full

ROUNDS = int(os.environ.get("COLO_POWER_OFFS", "20"))
VERIFIES = int(os.environ.get("COLO_VERIFIES", "1"))
SEED = int(os.environ.get("COLO_SEED", "1"))
PRIMARY, SECONDARY = HOSTS
_ANSWER_TIMEOUT_S = 120


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


@pytest.fixture(params=KNOBS)
def kept(request, installed, witness, lab, settings, play):
    """A pair protected at a knob, kept with its witness under the knob's name."""
    installed()
    vm, knob = ProtectedVm(settings, GUEST), KNOBS[request.param]
    vm.have_guest(PRIMARY)
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


def lose_power(pair, settings, pace_s, delay_s):
    """End the primary's host while clients ask and write; what they saw, and what the survivor did meanwhile."""
    vm = pair.vm
    clients, writer = Clients(settings, GUEST), Writer(settings, pace_s, GUEST)
    client = Client(settings, GUEST, timeout_s=_ANSWER_TIMEOUT_S)
    writer.start()
    try:
        assert compare_many(vm, PRIMARY, VERIFIES) == []
        ahead = seconds_ahead(vm, SECONDARY)
        epoch = vm.wait_for_checkpoints(1)["epoch"]
        time.sleep(delay_s)
        clients.open_young()
        sure = client.write("sure")
        pair.lab.host(PRIMARY).power_off()
        dead, wall = time.monotonic(), time.time()
        silence = clients.steady.longest_silence(dead)
        clients.go_on("after")
        answer = client.read()
        assert answer.writes >= sure.writes, "a write that was answered is gone"
        assert answer.counter >= sure.counter
        while client.read().counter == answer.counter:
            assert time.monotonic() < dead + _ANSWER_TIMEOUT_S, "it hangs"
    finally:
        writer.close()
        client.close()
    counters = clients.close()
    assert counters == sorted(counters), "no step back"
    assert vm.written(SECONDARY)["epoch"] >= epoch, "an older checkpoint than the primary was told of"
    moments = {
        one["event"]: datetime.fromisoformat(one["time"]).timestamp() - ahead - wall
        for one in vm.events(SECONDARY)
    }
    return Parts(moments["peer_lost"], moments["active"], silence)


def test_nothing_that_a_client_has_seen_is_undone(kept, witness, settings):
    dice, found = random.Random(SEED), []
    for turn in range(ROUNDS):
        began = time.monotonic()
        kept.go_back()
        found.append(lose_power(kept, settings, PACES_S[turn % len(PACES_S)], dice.uniform(0, 3)))
        record = witness.read(kept.vm.name).record
        assert (record.owner, record.mode) == (SECONDARY, "alone")
        lost, running, answered = astuple(found[-1])
        print(
            f"{kept.tag} {turn}: the primary counts as lost after {lost:.1f} s, the copy is the VM after {running:.1f} s, and "
            f"the client has its answer after {answered:.1f} s; the round took {time.monotonic() - began:.0f} s",
            flush=True,
        )
    print(f"{ROUNDS} power-offs at {KNOBS[kept.tag]}, {ROUNDS * VERIFIES} comparisons without a difference")
    for part in fields(Parts):
        ordered = sorted(round(getattr(one, part.name) * 1000) for one in found)
        p50, p95 = (nearest_rank(ordered, share) for share in (0.5, 0.95))
        print(f"{part.name}: p50 {p50} ms, p95 {p95} ms, longest {ordered[-1]} ms")
