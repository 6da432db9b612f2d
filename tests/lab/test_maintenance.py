"""Maintenance by playbook: nobody takes over by itself, an operator's word does, and its end is the end of it: on real Xen.

Only in a full run. Ends with h1 unprotected.
"""

import time

import pytest

from lab.guests import Client
from lab.settings import HOSTS

pytestmark = pytest.mark.full
FIRST, SECOND = HOSTS
VM = {"colo_vm": "h1"}
REASON = "new disks"
LEASE_S = 10


def kept(witness):
    record = witness.read("h1").record
    return record.owner, record.mode


def begun_and_begun_again(play):
    """Both runs; the second one finds nothing to do."""
    runs = [play("maintenance", extra={**VM, "colo_reason": REASON}) for _ in range(2)]
    assert [run.code for run in runs] == [0, 0]
    assert all(runs[0].changed[host] for host in HOSTS)
    assert not any(runs[1].changed.values()), runs[1].changed


def test_a_copy_in_maintenance_does_not_take_over_by_itself(arbitrated, witness, play, lab, settings):
    vm = arbitrated
    begun_and_begun_again(play)
    assert kept(witness) == (FIRST, "alone")
    assert [vm.written(host)["maintenance"] for host in HOSTS] == [REASON, REASON]
    client = Client(settings, "h1", timeout_s=60)
    client.write("before")
    vm.wait_for_checkpoints(2)
    lab.host(FIRST).power_off()
    vm.wait_for(SECOND, "peer_lost")
    stays_until = time.monotonic() + 2 * LEASE_S
    while time.monotonic() < stays_until:
        assert vm.written(SECOND)["phase"] == "peer_lost"
        time.sleep(1)  # that nothing happens is no event
    assert kept(witness) == (FIRST, "alone")

    said = {**VM, "colo_confirm": "h1", "colo_reason": "its host has burnt"}
    refused = play("failover", extra=said)
    assert refused.code != 0
    assert REASON in refused.text
    overridden = play("failover", extra={**said, "colo_override": True})
    assert overridden.code == 0
    assert client.read().last == "before"
    client.close()
    assert kept(witness) == (SECOND, "alone")


def test_after_its_end_the_arbiter_decides_again(arbitrated, witness, play, lab):
    vm = arbitrated
    lab.power_on(FIRST)
    vm.wait_reachable(FIRST)
    vm.protect_from(SECOND)
    if not vm.written(SECOND)["maintenance"]:  # the word that let it go on has ended it
        begun_and_begun_again(play)
    assert kept(witness) == (SECOND, "alone")
    ended = play("maintenance", extra={**VM, "colo_maintenance": False})
    assert ended.code == 0
    assert kept(witness) == (SECOND, "protected")
    assert [vm.written(host)["maintenance"] for host in HOSTS] == ["", ""]
    again = play("maintenance", extra={**VM, "colo_maintenance": False})
    assert again.code == 0
    assert not any(again.changed.values()), again.changed
