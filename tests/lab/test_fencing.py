"""A copy takes over when its primary's host has been switched off, and not before; a host that gave its VM away stays on.

Only in a full run. Ends with h1 unprotected.
"""

import time

import pytest

from lab.settings import HOSTS
from tests.lab.arbiter import with_arbiter
from tests.lab.asker import Asker
from tests.lab.power_strip import PROGRAM, PowerStrip, install

pytestmark = pytest.mark.full

FENCING = {"devices": [{"command": ["/bin/false"], "timeout_s": 5}, {"command": [PROGRAM], "timeout_s": 20}]}


@pytest.fixture(scope="module")
def strip(settings, lab, arbitrated):
    made = PowerStrip(settings, lab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def vm(arbitrated, witness, strip, play):
    """h1, whose hosts are switched off by a program, after another one that fails."""
    install(arbitrated, HOSTS)
    variables = {**with_arbiter(witness), "colo_fencing": FENCING}
    assert play("protect", extra=variables).code == 0
    assert not any(play("protect", extra=variables).changed.values())
    arbitrated.wait_for(HOSTS[0], "replicating")
    return arbitrated


def fenced(vm, host):
    return [event["sentence"] for event in vm.events(host) if event["event"] == "fencing"]


def test_a_host_that_hangs_is_switched_off_before_its_copy_takes_over(vm, witness, lab, settings, strip):
    asker = Asker(settings).begin()
    lab.host("xa").freeze()
    frozen = time.monotonic()
    reason = vm.wait_for("xb", "active")
    print(f"without answer for {asker.longest_silence(frozen):.1f} s")
    said = "xa was switched off by switch-off (false: ended with 1)."
    assert "The primary on xa was lost" in reason
    assert reason.endswith(said)
    assert fenced(vm, "xb") == [said]
    assert strip.switched == ["xa"]
    assert lab.host("xa").pid is None, "a host that is off never thaws"
    record = witness.read("h1").record
    assert (record.owner, record.mode, record.given_by) == ("xb", "alone", "")
    counters = asker.close()
    assert counters == sorted(counters)
    lab.power_on("xa")
    vm.wait_reachable("xa")
    install(vm, ["xa"])
    vm.protect_from("xb")


def test_a_host_whose_device_model_died_gives_its_vm_away_and_stays_on(vm, witness, lab, strip):
    vm.on("xb", "kill -KILL $(xenstore-read /local/domain/$(xl domid h1)/image/device-model-pid)")
    assert "was handed over by xb" in vm.wait_for("xa", "active")
    record = witness.read("h1").record
    assert (record.owner, record.mode, record.given_by) == ("xa", "alone", "xb")
    assert strip.switched == ["xa"], "only the one before"
    assert lab.host("xb").pid is not None
    vm.wait_for("xb", "standby")
    assert vm.domains("xb") == []


def test_who_needs_no_fencing_any_more_leaves_nothing_of_it(vm, play, witness):
    vm.protect_from("xa")
    assert play("protect", extra=with_arbiter(witness)).code == 0
    for host in HOSTS:
        assert vm.on(host, "find /etc/colo/fencing -type f") == ""
