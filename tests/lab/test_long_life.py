"""One long life: the hosts lose their power in turns, and each comes back and gets the copy; one connection lasts through all.

Only in a full run, and slow: each turn boots a host and makes a first copy. COLO_TURNS says how many (4), COLO_GUEST which
guest (h1 has virtio-net, h2 e1000). An operator decides here; tests/lab/test_power_offs.py has an arbiter.
"""

import os
import random
import time

import pytest

from colo_helper.quantiles import nearest_rank
from lab.demo.witness import Witness
from lab.guests import Client
from tests.lab.load import PACES_S, Clients, Writer, compare_many
from tests.lab.protected_vm import ProtectedVm

TURNS = int(os.environ.get("COLO_TURNS", "4"))
GUEST = os.environ.get("COLO_GUEST", "h1")
SEED = int(os.environ.get("COLO_SEED", "1"))
_ANSWER_TIMEOUT_S = 120
_COPY_TIMEOUT_S = 400
pytestmark = pytest.mark.full


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


def protect(vm, play):
    """Have the guest protected from xa to xb."""
    if vm.is_replicating():
        return
    vm.have_guest("xa")
    assert play("protect", extra=wish(vm)).code == 0


def test_one_connection_lasts_through_all_turns(installed, lab, play, settings):
    installed()
    vm = ProtectedVm(settings, GUEST)
    protect(vm, play)
    dice = random.Random(SEED)
    silences, work = [], 0
    source, target = "xa", "xb"
    clients = Clients(settings, GUEST)
    for turn in range(TURNS + TURNS % 2):
        began = time.monotonic()
        writer = Writer(settings, PACES_S[turn % len(PACES_S)], GUEST)
        writer.start()
        assert compare_many(vm, source, 1) == []
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
            vm.take_over(target)
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
        f"{len(silences)} power-offs of {GUEST}'s host, {len(counters)} answers, "
        f"{work} writes; without answer p50 {nearest_rank(ordered, 0.5)} ms, longest {ordered[-1]} ms"
    )
