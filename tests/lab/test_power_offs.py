"""The primary's host loses its power again and again under load; every time the secondary is the VM, and the host comes back.

Only in a full run. Each round makes checkpoints whose copies are compared in all of memory, CPU and devices, then pulls
the plug at a random moment, lets the other side take over, starts the dead host and protects the VM in the other
direction. One connection lasts through all rounds; others are opened just before the power goes, and last through the next
power-off as well.

COLO_POWER_OFFS says how many rounds (20), COLO_VERIFIES how many comparisons in each (10), COLO_GUEST which guest (h1 has
virtio-net, h2 e1000).
"""

import json
import os
import random
import threading
import time

import pytest

from colo_helper.quantiles import nearest_rank
from lab import guests
from lab.demo.witness import Witness
from lab.guests import Client
from tests.lab.asker import Asker
from tests.lab.protected_vm import HELPER, ProtectedVm

ROUNDS = int(os.environ.get("COLO_POWER_OFFS", "20"))
VERIFIES = int(os.environ.get("COLO_VERIFIES", "10"))
GUEST = os.environ.get("COLO_GUEST", "h1")
SEED = int(os.environ.get("COLO_SEED", "1"))
#: Pauses between two writes of the load in the rounds, in seconds: as fast as the guest answers, and slower.
PACES_S = (0.0, 0.02, 0.2)
_ANSWER_TIMEOUT_S = 120
_COPY_TIMEOUT_S = 400
_BOOT_S = 600
#: Connections opened in each round just before the power goes.
_YOUNG = 3
pytestmark = pytest.mark.full


class Writer(threading.Thread):
    """Writes tokens at a pace until stopped; a guest that does not answer is asked again over a new connection."""

    def __init__(self, settings, pace_s, guest="h1"):
        super().__init__(daemon=True)
        self._client = Client(settings, guest, timeout_s=2.0)
        self._pace_s = pace_s
        self._ended = threading.Event()
        self.last = None

    def run(self):
        number = 0
        while not self._ended.wait(self._pace_s):
            number += 1
            try:
                self.last = self._client.write(f"load-{number}")
            except OSError:
                continue  # between the two hosts nobody answers; how long is the witness's to say

    def close(self):
        self._ended.set()
        self.join()
        self._client.close()


def compare_many(vm, host):
    """Checkpoints under load, after each of which both copies are compared; returns what must be none."""
    wrong = []
    for _ in range(VERIFIES):
        found = vm.verify(host)
        parts = [found, *found["state"].values()]
        assert found["pages_compared"] > 30_000
        wrong += [one for part in parts for one in part["unexplained"]]
    return wrong


def take_over(vm, target):
    """The operator's decision, as soon as it is allowed."""
    vm.wait_for(target, "peer_lost")
    answer = json.loads(vm.on(target, f"{HELPER} ctl {vm.name} takeover", 120))
    assert answer["ok"] is True


def protect_the_other_way(vm, play, source, target, *, by_playbook):
    """The host that died has booted: it becomes the secondary. By playbook, as an operator does, costs a minute more."""
    vm.wait_reachable(source)
    assert vm.domains(source) == [], "no half domain after the boot"
    if by_playbook:
        assert play("reprotect", extra=wish(vm)).code == 0
    else:
        vm.give_roles(target, source)


def wish(vm):
    """The VM as the inventory knows it all the time."""
    hosts = {"primary": "xa", "secondary": "xb", "peer_timeout_ms": 10000}
    return {"colo_vm": vm.name, "colo_vms": {vm.name: hosts}}


class Clients:
    """Who talks with the guest over connections that must not break: one for ever, and some that are opened before each end.

    Those are, as likely as not, younger than the last checkpoint; each lasts through two power-offs.
    """

    def __init__(self, settings):
        self._settings = settings
        self.steady = Asker(settings, GUEST)
        self.steady.start()
        self._open, self._older = [], []

    def open_young(self):
        self._older = self._open
        self._open = [Client(self._settings, GUEST, timeout_s=_ANSWER_TIMEOUT_S) for _ in range(_YOUNG)]
        self.go_on("young")

    def go_on(self, token):
        """Ask over each connection; an error when one was reset, or gets another's answer."""
        for number, client in enumerate(self._open + self._older):
            assert client.ask(f"echo {token}-{number}") == f"echo={token}-{number}\n"

    def let_old_go(self):
        """Close those that have seen two power-offs."""
        for client in self._older:
            client.close()
        self._older = []

    def close(self):
        """Return the counters that the guest told over the connection that lasted."""
        self.go_on("last")
        self._older += self._open
        self.let_old_go()
        return self.steady.close()


def protect(vm, play, settings):
    """Have the guest protected from xa to xb; a host of the lab has room for one."""
    if vm.is_replicating():
        return
    if vm.name not in vm.domains("xa"):
        vm.on("xa", "xl destroy h1")
        guests.create(settings, vm.name, "xa")
        guests.wait_answer(settings, vm.name, _BOOT_S)
    assert play("protect", extra=wish(vm)).code == 0


def test_nothing_that_a_client_has_seen_is_undone(installed, lab, play, settings):
    installed()
    vm = ProtectedVm(settings, GUEST)
    protect(vm, play, settings)
    dice = random.Random(SEED)
    silences, compared, work = [], 0, 0
    source, target = "xa", "xb"
    clients = Clients(settings)
    for turn in range(ROUNDS + ROUNDS % 2):
        began = time.monotonic()
        writer = Writer(settings, PACES_S[turn % len(PACES_S)], GUEST)
        writer.start()
        assert compare_many(vm, source) == []
        compared += VERIFIES
        witness = Witness(settings, GUEST)
        try:
            client = Client(settings, GUEST, timeout_s=20)
            epoch = vm.status(source)["epoch"]
            time.sleep(dice.uniform(0, 1.5))  # any moment of an epoch
            clients.open_young()
            sure = client.write(f"sure-{turn}")
            client.close()
            lab.host(source).power_off()
            dead = time.monotonic()
            take_over(vm, target)
            sighting = witness.wait_answer(dead, _ANSWER_TIMEOUT_S)
            assert sighting is not None, "nobody answers"
            assert witness.wait_count(sighting.answer.counter, _ANSWER_TIMEOUT_S) is not None, "it hangs"
            clients.go_on("after")
            clients.let_old_go()
        finally:
            witness.close()
            writer.close()
        answer, state = sighting.answer, vm.status(target)
        assert state["epoch"] >= epoch, "an older checkpoint than the primary was told of"
        assert answer.writes >= sure.writes, "a write that was answered is gone"
        assert answer.counter >= sure.counter
        silences.append(clients.steady.longest_silence(dead))
        work += answer.writes
        lab.power_on(source)
        protect_the_other_way(vm, play, source, target, by_playbook=turn == 0)
        vm.wait_for(target, "replicating", _COPY_TIMEOUT_S)
        print(
            f"turn {turn}: {source} died at epoch {epoch}, {target} took over from {state['epoch']} with "
            f"{state['followed']} connections younger than that; {silences[-1]:.1f} s without answer; the round took "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        source, target = target, source
    counters = clients.close()
    assert counters == sorted(counters), "no step back"
    ordered = sorted(round(one * 1000) for one in silences)
    print(
        f"{len(silences)} power-offs of {GUEST}'s host, {compared} comparisons without a difference, {len(counters)} answers, "
        f"{work} writes; without answer p50 {nearest_rank(ordered, 0.5)} ms, longest {ordered[-1]} ms"
    )
