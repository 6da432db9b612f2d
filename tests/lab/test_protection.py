"""The life of one protected VM: installed, protected, keys changed, replicators killed, roles swapped, unprotected, destroyed.

Only in a full run: molecule's colo_vm and the demo protect a VM too. That a second run of protect.yml changes nothing is
molecule's to show.
"""

import json

import pytest

from lab.guests import Client
from tests.lab.protected_vm import HELPER

pytestmark = pytest.mark.full

NOTHING = {"localhost": 0, "xa": 0, "xb": 0}


@pytest.fixture(scope="module")
def client(installed, settings):
    installed()
    made = Client(settings, "h1", timeout_s=10)
    yield made
    made.close()


@pytest.fixture(scope="module")
def written(client):
    return client.write("before")


def test_a_second_run_of_site_changes_nothing(written, play):
    again = play("site")
    assert again.code == 0
    assert again.changed == NOTHING


def test_protect_makes_two_copies_of_which_one_is_on_the_network(client, written, vm, play):
    assert play("protect", "-e", "colo_vm=h1").code == 0
    assert vm.domains("xa") == ["h1"]
    assert vm.domains("xb") == ["h1"]
    assert client.write("protected").writes == written.writes + 1
    bridge = vm.on("xb", "ls /sys/class/net/xenbr0/brif").split()
    assert bridge == ["eth1"], "the secondary's taps are off the network"
    channels = vm.wait_for_checkpoints()["channels"]
    assert channels["life"] == "alive"
    assert channels["broken"] == {}
    assert 0 < channels["round_trip"]["p50_ms"] < 5000


def test_a_primary_that_may_run_is_not_failed_over(play):
    refused = play("failover", "-e", "colo_vm=h1", "-e", "colo_confirm=h1")
    assert refused.code != 0
    assert "h1 is not failed over, because it may still run on its primary xa" in refused.text


def test_new_keys_while_the_vm_is_protected(vm, play):
    hosts = ("xa", "xb")

    def keys():
        return {
            host: vm.on(host, "ssh-keygen -y -f /etc/colo/ssh/h1/id_ed25519").split()[1] for host in hosts
        }

    def let_in(host):
        lines = vm.on(host, "cat /etc/colo/ssh/authorized_keys").splitlines()
        return [line.split("ssh-ed25519 ")[1].split()[0] for line in lines if "attach h1" in line]

    old, processes, before = keys(), vm.processes(), vm.status()
    rotated = play("rotate", "-e", "colo_vm=h1")
    assert rotated.code == 0
    new = keys()
    assert not set(new.values()) & set(old.values())
    assert let_in("xb") == [new["xa"]], "the old key is not let in any more"
    assert let_in("xa") == [new["xb"]]
    after = vm.wait_for_checkpoints()
    made = after["totals"]["checkpoints"] - before["totals"]["checkpoints"]
    assert made == after["epoch"] - before["epoch"] > 0, "an epoch without its checkpoint"

    # The connections that the old key opened end; the replicator makes new ones, which only the new key can. One after the
    # other: an emulated host takes longer over three at once than a peer may be silent.
    for count in (1, 2, 3):
        vm.on("xb", "pkill -KILL --oldest -u colo")
        vm.wait_for_event("xa", "channel_reopened", count)
    after = vm.wait_for_checkpoints()
    assert after["channels"]["reopened"] == {"forward": 1, "back": 1, "heartbeat": 1}
    assert vm.processes() == processes, "the replicators went on"
    assert vm.status("xb")["phase"] == "replicating"


def verified(vm, host):
    """One checkpoint, and both compared: of memory only the ring of each host's xenstored may differ, of the rest clocks."""
    found = vm.verify(host)
    assert found["pages_compared"] > 30_000
    assert found["unexplained"] == []
    for part in ("cpu", "devices"):
        assert found["state"][part]["records"] > 10
        assert found["state"][part]["unexplained"] == []


@pytest.mark.parametrize("host", ["xb", "xa"])
def test_a_replicator_that_is_killed_is_taken_up_and_only_what_differs_goes_over(client, vm, host):
    before, domains = client.read(), [vm.on(one, "xl domid h1") for one in ("xa", "xb")]
    compared = sum(event["event"] == "compared" for event in vm.events("xa"))
    vm.on(host, f"kill -KILL {vm.processes()[host]}")
    vm.wait_for_event("xa", "compared", compared + 1)
    vm.wait_for("xa", "replicating")
    vm.wait_for_checkpoints()
    assert [vm.on(one, "xl domid h1") for one in ("xa", "xb")] == domains, "the same domains as before"
    verified(vm, "xa")
    assert client.read().counter > before.counter


def test_the_roles_are_swapped_and_swapped_back(client, vm, play):
    for source, target in (("xa", "xb"), ("xb", "xa")):
        before = client.write(f"before-{source}-hands-over")
        assert play("switchover", "-e", "colo_vm=h1").code == 0
        after = client.read()
        assert (after.writes, after.last) == (before.writes, f"before-{source}-hands-over")
        assert after.counter > before.counter
        state = vm.status(target)
        assert (state["role"], state["phase"]) == ("primary", "replicating")
        assert vm.status(source)["role"] == "secondary"
        assert vm.on(source, "ls /sys/class/net/xenbr0/brif").split() == ["eth1"], "off the network"
        verified(vm, target)
        if target == "xb":
            refused_where_it_does_not_run(vm, play)


def refused_where_it_does_not_run(vm, play):
    """colo_vms still has xa, where the copy is: nothing is done to it; and what only looks goes by who is the primary now."""
    processes = vm.processes()
    refused = play("protect", "-e", "colo_vm=h1")
    assert refused.code != 0
    assert "h1 runs on xb, and colo_vms has xa as its primary" in refused.text
    assert vm.processes() == processes
    assert play("verify", "-e", "colo_vm=h1").code == 0
    status = play("status")
    assert status.code == 0
    assert "xb replicating xa replicating" in status.text


def test_unprotect_leaves_the_vm_alone_where_it_is(client, vm, play):
    written = client.read()
    assert play("unprotect", "-e", "colo_vm=h1").code == 0
    again = play("unprotect", "-e", "colo_vm=h1")
    assert again.code == 0
    assert again.changed == NOTHING
    assert vm.domains("xa") == ["h1"]
    assert vm.domains("xb") == []
    after = client.read()
    assert after.writes == written.writes
    assert after.counter > written.counter


def test_a_copy_that_may_be_all_that_is_left_goes_only_when_it_is_confirmed(vm, play):
    assert play("protect", "-e", "colo_vm=h1").code == 0
    vm.on("xa", "xl destroy h1")
    vm.wait_for("xb", "peer_lost")
    asked = json.loads(vm.on("xb", f"{HELPER} ctl h1 stop || true"))
    assert (asked["ok"], asked["code"]) == (False, "alone")
    refused = play("unprotect", "-e", "colo_vm=h1")
    assert refused.code != 0
    assert "has lost its primary and may be the only one left" in refused.text
    assert vm.domains("xb") == ["h1"]
    assert play("unprotect", "-e", "colo_vm=h1", "-e", "colo_confirm=h1").code == 0
    assert vm.domains("xb") == []
    vm.have_guest("xa")
