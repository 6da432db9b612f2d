"""Hosts whose toolstack starts their VMs when they boot: only the one that has the VM by then starts it.

Only in a full run: a host takes minutes to boot under software emulation.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lab import guests
from lab.settings import HOSTS
from tests.lab.asker import Asker

pytestmark = pytest.mark.full
_BOOT_TIMEOUT_S, _COPY_TIMEOUT_S = 600, 900
AUTO = "/etc/xen/auto/h1.cfg"


@pytest.fixture(scope="module")
def starting(installed, vm, witness, play):
    """The VM h1, protected with an arbiter; both hosts are to start it when they boot."""
    installed()
    arbiter = {"endpoints": [witness.url]}
    sides = {"primary": "xa", "secondary": "xb", "peer_timeout_ms": 20_000, "arbiter": arbiter}
    assert play("protect", extra={"colo_vm": "h1", "colo_vms": {"h1": sides}}).code == 0
    for host in HOSTS:
        vm.on(host, f"mkdir -p /etc/xen/auto && ln -s /etc/xen/lab/h1.cfg {AUTO}")
    return vm


def boot(lab, vm, host):
    """Put the plug in again; the host has started what it starts by itself."""
    lab.power_on(host)
    vm.wait_reachable(host)
    vm.on(host, "systemctl is-system-running --wait || true", _BOOT_TIMEOUT_S)


def held(vm, host):
    return [one["sentence"] for one in vm.events(host) if one["event"] == "held"]


def test_after_both_hosts_lost_their_power_the_owner_starts_the_vm_and_protects_it(
    starting, lab, settings, witness
):
    vm = starting
    for host in HOSTS:
        lab.host(host).power_off()
    record = witness.read("h1").record
    assert (record.owner, record.mode) == ("xa", "protected"), "nobody has gone on"
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: boot(lab, vm, host), HOSTS))
    guests.wait_answer(settings, "h1", _BOOT_TIMEOUT_S)
    assert held(vm, "xa") == []
    assert len(held(vm, "xb")) == 1
    vm.wait_for("xa", "replicating", _COPY_TIMEOUT_S)


def test_what_was_taken_over_elsewhere_is_not_started_again(starting, lab, settings):
    vm = starting
    vm.wait_for_checkpoints()
    asker = Asker(settings).begin()
    lab.host("xa").power_off()
    vm.wait_for("xb", "active")
    boot(lab, vm, "xa")
    counters = asker.close()  # one connection through all of it: nobody else answered
    assert counters == sorted(counters)
    assert vm.domains("xa") == []
    (sentence,) = held(vm, "xa")
    assert sentence.startswith("h1 is not started here: it is xb's since epoch")
    assert f"It was not created from {AUTO} (xl create)." in sentence

    # The copy that took over is the VM: when its host has lost its power too, it is started there, and only there.
    before = len(held(vm, "xb"))
    lab.host("xb").power_off()
    boot(lab, vm, "xb")
    assert vm.domains("xb") == ["h1"]
    assert vm.domains("xa") == []
    assert len(held(vm, "xb")) == before
