"""The primary's host loses its power again and again under load; every time the secondary is the VM, and the host comes back.

Only in a full run. Each round makes checkpoints whose copies are compared in all of memory, CPU and devices, then pulls
the plug at a random moment, lets the other side take over, starts the dead host and protects the VM in the other
direction. COLO_POWER_OFFS says how many rounds (20), COLO_VERIFIES how many comparisons in each (10).
"""

import json
import os
import random
import threading
import time

import pytest

from colo_helper.quantiles import nearest_rank
from lab.demo.witness import Witness
from lab.errors import LabError
from lab.guests import Client
from tests.lab.protected_vm import HELPER

ROUNDS = int(os.environ.get("COLO_POWER_OFFS", "20"))
VERIFIES = int(os.environ.get("COLO_VERIFIES", "10"))
SEED = int(os.environ.get("COLO_SEED", "1"))
#: Pauses between two writes of the load in the rounds, in seconds: as fast as the guest answers, and slower.
PACES_S = (0.0, 0.02, 0.2)
_ANSWER_TIMEOUT_S = 120
pytestmark = pytest.mark.full


class Writer(threading.Thread):
    """Writes tokens at a pace until stopped; a guest that does not answer is asked again over a new connection."""

    def __init__(self, settings, pace_s, guest="h1"):
        super().__init__(daemon=True)
        self._client = Client(settings, guest, timeout_s=2.0)
        self._pace_s = pace_s
        self._stop = threading.Event()
        self.last = None

    def run(self):
        number = 0
        while not self._stop.wait(self._pace_s):
            number += 1
            try:
                self.last = self._client.write(f"load-{number}")
            except OSError:
                continue  # between the two hosts nobody answers; how long is the witness's to say

    def close(self):
        self._stop.set()
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
    answer = json.loads(vm.on(target, f"{HELPER} ctl h1 takeover", 120))
    assert answer["ok"] is True


def protect_the_other_way(vm, play, source, target, *, by_playbook):
    """The host that died has booted: it becomes the secondary. By playbook, as an operator does, costs a minute more."""
    _wait_ssh(vm, source)
    assert vm.domains(source) == [], "no half domain after the boot"
    if by_playbook:
        vms = {"h1": {"primary": target, "secondary": source, "peer_timeout_ms": 10000}}
        again = play("protect", "-e", "colo_vm=h1", "-e", json.dumps({"colo_vms": vms}))
        assert again.code == 0
    else:
        vm.give_roles(target, source)


def test_the_secondary_goes_on_from_what_it_has_said_to_have(installed, lab, vm, play, settings):
    installed()
    if not vm.is_replicating():
        assert play("protect", "-e", "colo_vm=h1").code == 0
    dice = random.Random(SEED)
    silences, compared, work = [], 0, 0
    source, target = "xa", "xb"
    for turn in range(ROUNDS + ROUNDS % 2):
        began = time.monotonic()
        writer = Writer(settings, PACES_S[turn % len(PACES_S)])
        writer.start()
        assert compare_many(vm, source) == []
        compared += VERIFIES
        witness = Witness(settings, "h1")
        try:
            client = Client(settings, "h1", timeout_s=20)
            sure = client.write(f"sure-{turn}")
            client.close()
            # The checkpoint under way may not have it, the next one does.
            state = vm.status(source)
            while vm.status(source)["epoch"] < state["epoch"] + 2:
                time.sleep(0.2)  # a program on another host
            epoch = vm.status(source)["epoch"]
            time.sleep(dice.uniform(0, 1.5))  # any moment of an epoch
            lab.host(source).power_off()
            dead = time.monotonic()
            take_over(vm, target)
            sighting = witness.wait_answer(dead, _ANSWER_TIMEOUT_S)
            assert sighting is not None, "nobody answers"
            assert witness.wait_count(sighting.answer.counter, _ANSWER_TIMEOUT_S) is not None, "it hangs"
        finally:
            witness.close()
            writer.close()
        answer, state = sighting.answer, vm.status(target)
        assert state["epoch"] >= epoch, "an older checkpoint than the primary was told of"
        assert answer.writes >= sure.writes, "a write that a checkpoint had is gone"
        assert answer.counter >= sure.counter
        silences.append(sighting.asked_s - dead)
        work += answer.writes
        lab.power_on(source)
        protect_the_other_way(vm, play, source, target, by_playbook=turn == 0)
        vm.wait_for(target, "replicating")
        print(
            f"turn {turn}: {source} died at epoch {epoch}, {target} answered {silences[-1]:.1f} s later from epoch "
            f"{state['epoch']}; the round took {time.monotonic() - began:.0f} s",
            flush=True,
        )
        source, target = target, source
    ordered = sorted(round(one * 1000) for one in silences)
    print(f"{len(silences)} power-offs, {compared} comparisons without a difference, {work} writes;", end=" ")
    print(f"without answer p50 {nearest_rank(ordered, 0.5)} ms, longest {ordered[-1]} ms")


def _wait_ssh(vm, host):
    deadline = time.monotonic() + 120
    while True:
        try:
            vm.on(host, "true")
        except LabError:
            assert time.monotonic() < deadline, f"{host} does not answer on ssh"
            time.sleep(1)  # sshd of a host that boots tells nobody
        else:
            return
