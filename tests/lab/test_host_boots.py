"""Hosts whose toolstack starts their VMs when they boot: a protected one is started by nobody but an operator.

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


def protect(play, witness, primary, secondary):
    hosts = {"primary": primary, "secondary": secondary, "peer_timeout_ms": 20_000}
    vms = {"h1": {**hosts, "arbiter": {"endpoints": [witness.url]}}}
    assert play("protect", extra={"colo_vm": "h1", "colo_vms": vms}).code == 0


@pytest.fixture(scope="module")
def starting(installed, vm, witness, play):
    """The VM h1, protected with an arbiter; both hosts are to start it when they boot."""
    installed()
    protect(play, witness, "xa", "xb")
    for host in HOSTS:
        vm.on(host, f"mkdir -p /etc/xen/auto && ln -s /etc/xen/lab/h1.cfg {AUTO} && sync")
    return vm


def boot(lab, vm, host):
    """Put the plug in again; the host has started what it starts by itself, and not h1."""
    lab.power_on(host)
    vm.wait_reachable(host)
    vm.on(host, "systemctl is-system-running --wait || true", _BOOT_TIMEOUT_S)
    assert vm.on(host, "systemctl is-active xendomains").strip() == "active"
    assert vm.domains(host) == []
    assert vm.on(host, "journalctl -b -u xendomains --no-pager").count("does not start h1") == 1
    sentence = held(vm, host)[-1]
    assert sentence == (
        "xendomains does not start h1, which may run elsewhere. There is its configuration "
        f"{AUTO} (xl create)."
    )


def held(vm, host):
    return [one["sentence"] for one in vm.events(host) if one["event"] == "held"]


def test_after_both_hosts_lost_their_power_an_operator_starts_the_vm_and_it_is_protected(
    starting, lab, settings, witness
):
    vm = starting
    for host in HOSTS:
        lab.host(host).power_off()
    record = witness.read("h1").record
    assert (record.owner, record.mode) == ("xa", "protected"), "nobody has gone on"
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: boot(lab, vm, host), HOSTS))
    vm.on("xa", f"xl create -q {AUTO}", 120)
    guests.wait_answer(settings, "h1", _BOOT_TIMEOUT_S)
    vm.wait_for("xa", "replicating", _COPY_TIMEOUT_S)
    record = witness.read("h1").record
    assert (record.owner, record.mode) == ("xa", "protected")


def test_what_was_taken_over_elsewhere_is_not_started_again(starting, lab, play, settings, witness):
    vm = starting
    vm.wait_for_checkpoints()
    asker = Asker(settings).begin()
    lab.host("xa").power_off()
    vm.wait_for("xb", "active")
    boot(lab, vm, "xa")
    counters = asker.close()  # one connection through all of it: nobody else answered
    assert counters == sorted(counters)

    # The copy that took over is the VM. When its host has lost its power too, an operator starts it there.
    lab.host("xb").power_off()
    boot(lab, vm, "xb")
    vm.on("xb", f"xl create -q {AUTO}", 120)
    guests.wait_answer(settings, "h1", _BOOT_TIMEOUT_S)
    protect(play, witness, "xb", "xa")
    assert vm.status("xb")["phase"] == "replicating"
