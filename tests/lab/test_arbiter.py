"""Who goes on when hosts or links fail, with a witness: nobody decides by hand, and never do both copies speak.

Only in a full run. Ends with h1 unprotected.
"""

import time

import pytest

from lab.demo.witness import Witness
from lab.settings import CLIENT_NUMBER, address, host_number, peer_of
from tests.lab.asker import Asker

pytestmark = pytest.mark.full

_ANSWER_TIMEOUT_S = 120
_COPY_TIMEOUT_S = 400
_BOOT_TIMEOUT_S = 600
LEASE_S = 10


@pytest.fixture(scope="module")
def vm(arbitrated):
    return arbitrated


def bridged(vm, host):
    """Whether a guest of a host is on the network."""
    return len(vm.on(host, "ls /sys/class/net/xenbr0/brif").split()) > 1


def kept(witness):
    record = witness.read("h1").record
    return record.owner, record.mode


def events(vm, host, name):
    return [event["sentence"] for event in vm.events(host) if event["event"] == name]


def test_the_secondary_has_its_right_once_it_has_a_copy(vm, witness):
    assert kept(witness) == ("xa", "protected")
    assert witness.read("h1").record.secondary == "xb"


def test_a_cut_between_the_hosts_leaves_the_one_that_runs_alone(vm, witness, settings):
    """Neither hears the other, both hear the witness and the clients."""
    asker = Asker(settings).begin()
    cut = time.monotonic()
    peers = [address(path, host_number("xa")) for path in ("data", "mgmt")]
    for peer in peers:
        vm.on("xb", f"ip route add blackhole {peer}/32")
    try:
        vm.wait_for("xa", "unprotected")
        vm.wait_for("xb", "peer_lost")
        vm.wait_for_event("xb", "takeover_refused", 1)
        assert kept(witness) == ("xa", "alone")
        print(f"without answer for {asker.longest_silence(cut):.1f} s")
        assert bridged(vm, "xa")
        assert not bridged(vm, "xb")
    finally:
        for peer in peers:
            vm.on("xb", f"ip route del blackhole {peer}/32")
    vm.wait_for("xa", "replicating")
    assert kept(witness) == ("xa", "protected")
    counters = asker.close()
    assert counters == sorted(counters)


def test_a_primary_without_power_is_succeeded_by_itself(vm, witness, lab, settings):
    watcher, asker = Witness(settings, "h1"), Asker(settings).begin()
    try:
        lab.host("xa").power_off()
        dead = time.monotonic()
        sighting = watcher.wait_answer(dead, _ANSWER_TIMEOUT_S)
        assert sighting is not None, "nobody answers"
        assert watcher.wait_count(sighting.answer.counter, _ANSWER_TIMEOUT_S) is not None, "it hangs"
    finally:
        watcher.close()
    print(f"without answer for {asker.longest_silence(dead):.1f} s")
    assert vm.wait_for("xb", "active").startswith("The lease of xa has ended.")
    assert kept(witness) == ("xb", "alone")
    counters = asker.close()
    assert counters == sorted(counters)
    lab.power_on("xa")
    vm.wait_reachable("xa")
    vm.protect_from("xb")
    assert kept(witness) == ("xb", "protected")


def test_a_primary_that_nobody_hears_stands_still_before_it_is_succeeded(vm, witness, lab, settings):
    """It is cut off from clients, peer and witness, and comes back when the other one is the VM."""
    primary = vm.home
    secondary = peer_of(primary)
    host = lab.host(primary)
    for path in ("data", "mgmt"):
        host.set_cable(path, plugged=False)
    try:
        vm.wait_for(secondary, "active")
        assert "p" in vm.on(primary, "xl list h1 | tail -1").split()[4], "it stands still by now"
        asked = vm.status(primary)
        assert asked["phase"] == "asking"
    finally:
        for path in ("data", "mgmt"):
            host.set_cable(path, plugged=True)
    assert f"h1 is {secondary}'s since epoch" in vm.wait_for(primary, "standby")
    assert not bridged(vm, primary)
    assert "p" in vm.on(primary, "xl list h1 | tail -1").split()[4]
    assert kept(witness) == (secondary, "alone")
    asker = Asker(settings).begin()
    vm.protect_from(secondary)
    counters = asker.close()
    assert counters == sorted(counters)
    assert kept(witness) == (secondary, "protected")
    found = vm.verify(secondary)
    assert found["unexplained"] == []


def test_a_primary_whose_device_model_dies_gives_way_to_the_copy(vm, witness, settings):
    primary = vm.home
    secondary = peer_of(primary)
    asker = Asker(settings).begin()
    vm.on(primary, "kill -KILL $(xenstore-read /local/domain/$(xl domid h1)/image/device-model-pid)")
    killed = time.monotonic()
    assert "was handed over by" in vm.wait_for(secondary, "active")
    print(f"without answer for {asker.longest_silence(killed):.1f} s")
    counters = asker.close()
    assert counters == sorted(counters)
    assert kept(witness) == (secondary, "alone")
    assert "The device model of h1 has ended" in vm.wait_for(primary, "standby")
    assert vm.domains(primary) == []
    vm.protect_from(secondary)


@pytest.mark.parametrize("asked", ["the arbiter answers", "the arbiter does not answer it"])
def test_a_vm_that_is_destroyed_does_not_come_back_as_its_copy(vm, witness, asked):
    """Its device model ends seconds before its domain."""
    primary = vm.home
    nobody = asked != "the arbiter answers"
    way = f"{address('mgmt', CLIENT_NUMBER)}/32"
    if nobody:
        vm.on(primary, f"ip route add blackhole {way}")
    began = len(vm.events(primary))
    vm.on(primary, "xl destroy h1")
    try:
        stays_until = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < stays_until:
            assert vm.written(peer_of(primary))["phase"] != "active"
            time.sleep(1)  # that nothing happens is no event
    finally:
        if nobody:
            vm.on(primary, f"ip route del blackhole {way}")
    vm.wait_for(primary, "awaiting_guest")
    said = [f"{one['event']}: {one['sentence']}" for one in vm.events(primary)[began:]]
    print("\n".join(said))
    assert not any(one.startswith("unprotected") for one in said), "it has ended from the first moment on"
    assert kept(witness) == (primary, "alone")
    vm.have_guest(primary)
    vm.wait_for(primary, "replicating", _COPY_TIMEOUT_S)
    assert kept(witness) == (primary, "protected")


def test_a_frozen_host_with_a_watchdog_never_thaws(vm, witness, lab, play, settings):
    """Xen restarts it before dom0 or a guest of it runs again."""
    primary = vm.home
    secondary = peer_of(primary)
    assert play("site", extra={"colo_host_watchdog_s": 6}).code == 0
    host = lab.host(primary)
    asker = Asker(settings).begin()
    host.freeze()
    frozen = time.monotonic()
    vm.wait_for(secondary, "active")
    print(f"without answer for {asker.longest_silence(frozen):.1f} s")
    console = (host.directory / "console.log").stat().st_size
    host.thaw()
    host.wait_booted(_BOOT_TIMEOUT_S)
    with (host.directory / "console.log").open("rb") as log:
        log.seek(console)
        assert b"Watchdog timer fired for domain 0" in log.read()
    counters = asker.close()
    assert counters == sorted(counters)
    vm.wait_reachable(primary)
    assert vm.domains(primary) == []
    assert kept(witness) == (secondary, "alone")
    vm.protect_from(secondary)
    assert play("site").code == 0
    assert "inactive" in vm.on(primary, "systemctl is-active colo-watchdog || true")
