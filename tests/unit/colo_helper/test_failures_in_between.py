"""Failures of this host in the middle of what decides who is the VM: it runs on one side, and that side's file says so."""

import threading
from dataclasses import replace

import pytest

from colo_helper.channel.session import Session, Timing
from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import boot_id
from colo_helper.replication.host import HostError
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.moved import MovesFile
from tests.unit.colo_helper.arbitrated import (
    asks_in_vain,
    events,
    on_network,
    taken_over_although_the_owner_goes_on,
)
from tests.unit.colo_helper.emulated_host import EmulatedHost, running_guest
from tests.unit.colo_helper.replication_pair import VM, eventually
from tests.unit.colo_helper.traffic.test_moves import MOVES


@pytest.fixture
def by_hand(pair):
    """A VM that replicates without an arbiter."""
    return pair().start().replicating()


def lost(pair_of):
    """The two have lost each other, and the secondary has its copy."""
    pair_of.cut_line()
    pair_of.phase("primary", "unprotected")
    pair_of.phase("secondary", "peer_lost")
    return pair_of


def killed(*_arguments):
    """Ends the replicator's thread then and there."""
    raise SystemExit


# ------------------------------------------------------------------------------------------------------ switch-over


@pytest.mark.parametrize("fault", ["announce", "cont"])
def test_a_copy_that_was_handed_over_is_not_destroyed_by_a_slow_device_model(by_hand, fault):
    by_hand.both_run()
    by_hand.secondary_host.devices[7].faults.add(fault)
    assert by_hand.ask("primary", "switchover")["ok"] is True
    assert (by_hand.ended("primary"), by_hand.ended("secondary")) == (0, 0)
    assert by_hand.secondary_host.destroyed == []
    assert by_hand.saved_by("secondary")["phase"] == "unprotected"
    assert on_network(by_hand.secondary_host)
    assert by_hand.copy.running
    assert by_hand.secondary_host.devices[7].running


def test_a_switch_over_whose_nics_fail_half_way_leaves_the_vm_on_the_network(by_hand):
    by_hand.both_run()
    by_hand.primary_host.nics[by_hand.guest.domid].faults.add("isolate")
    by_hand.ask_without_waiting("primary", "switchover")
    eventually(lambda: "'isolate'" in by_hand.p_monitor.state.reason, "the failure")
    assert on_network(by_hand.primary_host)
    assert by_hand.guest.running
    assert not on_network(by_hand.secondary_host)


def test_a_switch_over_in_maintenance_that_nobody_answers_does_not_leave_the_vm_mute(both, world):
    both.p_monitor.restore(maintenance="new disks")
    both.rights["primary"].alone("maintenance")
    world.cut("xa")
    both.line.dead = True  # and the secondary is not found again
    both.ask_without_waiting("primary", "switchover")
    both.phase("primary", "asking")
    world.mend()
    both.phase("primary", "unprotected")
    assert both.rights["primary"].permits()
    assert both.guest.running
    assert on_network(both.primary_host)


# --------------------------------------------------------------------------------------------------------- takeover


def test_a_copy_is_on_the_network_only_when_its_file_says_so(by_hand, full):
    lost(by_hand)
    full.set()
    answer = by_hand.ask("secondary", "takeover")
    assert (answer["ok"], answer["code"]) == (False, "takeover_failed")
    assert not on_network(by_hand.secondary_host)
    full.clear()
    assert by_hand.ask("secondary", "takeover")["ok"] is True
    assert by_hand.saved_by("secondary")["phase"] == "active"
    assert on_network(by_hand.secondary_host)


def test_a_replicator_that_comes_after_a_takeover_puts_its_vm_on_the_network(pair):
    there = EmulatedHost()
    there.add(VM, running_guest(5))
    there.nics[5].isolate()  # the one before it died right after it had written down what it was about to do
    saved = {"role": "secondary", "phase": "active", "domid": 5, "boot_id": boot_id(), "reason": "Decided."}
    both = pair(secondary_host=there, saved=saved, only_secondary=True).start()
    both.phase("secondary", "active")
    eventually(lambda: on_network(there), "on the network")


@pytest.mark.parametrize(("role", "start"), [("secondary", "active"), ("primary", "replicating")])
@pytest.mark.parametrize("step", ["connect", "cont"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_heir_whose_replicator_is_killed_when_it_was_handed_the_vm_runs_it(
    pair, monkeypatch, tmp_path, step, role, start
):
    """With its old role, or with the one that the playbook has given it meanwhile."""
    heir = EmulatedHost(run_dir=tmp_path)
    before = pair(secondary_host=heir).start().replicating()
    before.both_run()
    domid = before.copy.domid
    with monkeypatch.context() as patch:
        patch.setattr(heir.nics[domid] if step == "connect" else heir.devices[domid], step, killed)
        before.ask_without_waiting("primary", "switchover")
        before.phase("primary", "handed_over")
        before.threads[0].join()
    before.copy.own_pauses = 0  # what the process knew is gone with it
    assert not heir.domains[VM].running
    assert not on_network(before.primary_host)
    saved = before.saved_by("secondary")
    if role == "secondary":
        after = pair(secondary_host=heir, saved=saved, only_secondary=True).start()
    else:
        after = pair(
            primary_host=heir,
            secondary_host=before.primary_host,
            p_saved=saved,
            saved=before.saved_by("primary"),
        ).start()
    after.phase(role, start)
    eventually(lambda: heir.domains[VM].running, "the VM runs")
    eventually(lambda: on_network(heir), "on the network")
    assert heir.devices[domid].running
    assert not on_network(before.primary_host)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("another", [False, True])
def test_an_heir_that_did_not_run_yet_asks_the_arbiter_whose_the_vm_is_now(
    pair, world, monkeypatch, tmp_path, another
):
    """An operator may have let the other side go on meanwhile."""
    heir = EmulatedHost(run_dir=tmp_path)
    both = pair(arbiters=world.ways, secondary_host=heir).start().replicating()
    both.both_run()
    with monkeypatch.context() as patch:
        patch.setattr(heir.nics[both.copy.domid], "connect", killed)
        both.ask_without_waiting("primary", "switchover")
        both.threads[0].join()
    both.copy.own_pauses = 0  # what the process knew is gone with it
    assert world.kept == ("xb", "alone")
    world.cut("xb")
    saved = both.saved_by("secondary")
    after = pair(secondary_host=heir, saved=saved, only_secondary=True, arbiters=world.ways).start()
    after.phase("secondary", "active")
    eventually(lambda: events(after, "secondary", "takeover_waits"), "no answer")
    assert not heir.domains[VM].running
    assert not on_network(heir)
    if another:
        seen = world.store.read(VM)
        world.store.change(seen, replace(seen.record, owner="xa", epoch=seen.record.epoch + 1), 10)
    world.mend()
    if another:
        after.phase("secondary", "standby")
        assert not heir.domains[VM].running
        assert not on_network(heir)
    else:
        eventually(lambda: heir.domains[VM].running and on_network(heir), "the VM runs, on the network")
        assert events(after, "secondary", "runs") == ["h1 had been handed over, and runs here now."]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_heir_that_has_to_try_again_takes_hold_of_its_moved_connections_once(pair, monkeypatch, tmp_path):
    heir = EmulatedHost(run_dir=tmp_path)
    both = pair(secondary_host=heir).start().replicating()
    both.both_run()
    domid = both.copy.domid
    with monkeypatch.context() as patch:
        patch.setattr(heir.nics[domid], "connect", killed)
        both.ask_without_waiting("primary", "switchover")
        both.threads[0].join()
    both.copy.own_pauses = 0  # what the process knew is gone with it
    MovesFile(tmp_path / "moved.json", domid).write(MOVES[1:])
    attached = []
    attach = heir.filters[domid].attach
    monkeypatch.setattr(heir.filters[domid], "attach", lambda **how: attached.append(how) or attach(**how))
    heir.devices[domid].faults = {"cont"}
    after = pair(secondary_host=heir, saved=both.saved_by("secondary"), only_secondary=True).start()
    eventually(lambda: events(after, "secondary", "runs"), "it runs")
    assert len(events(after, "secondary", "takeover_waits")) == 1
    assert len(attached) == 1
    assert after.secondary.copy.failure == ""


def test_a_replicator_that_comes_in_the_middle_of_a_switch_over_puts_its_vm_on_the_network(pair):
    here = EmulatedHost()
    here.add(VM, running_guest(3))
    here.nics[
        3
    ].isolate()  # the one before it died when it had written nothing yet, or had been handed the VM
    saved = {"role": "primary", "phase": "replicating", "domid": 3, "boot_id": boot_id(), "generation": "abc"}
    both = pair(primary_host=here, p_saved=saved).start()
    eventually(lambda: on_network(here), "on the network")
    assert both.guest.running


# --------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_destroys_no_copy_and_ends_no_primary(by_hand, full):
    lost(by_hand)
    full.set()
    by_hand.mend_line()
    by_hand.replicating()
    assert by_hand.secondary_host.destroyed == []
    by_hand.cut_line()
    by_hand.phase("primary", "unprotected")
    assert by_hand.exit_codes == {}
    full.clear()


# ------------------------------------------------------------------------------------------------------------ others


def test_a_guest_that_may_be_anothers_is_put_aside_while_it_boots(pair, world, monkeypatch):
    first = pair(arbiters=world.ways, output="hold").start().replicating()
    world.cut("xa")
    first.cut_line()
    world.now += 10
    first.phase("secondary", "active")
    world.mend()
    monkeypatch.setattr("colo_helper.replication.primary_guest.io_share", lambda _domain: 1.0)
    rebooted = EmulatedHost()
    rebooted.add(VM, running_guest(3))
    after = pair(
        primary_host=rebooted,
        arbiters=world.ways,
        p_saved=first.saved_by("primary") | {"boot_id": "of another boot", "shared": True},
    ).start()
    after.phase("primary", "standby")
    assert not on_network(rebooted)


def test_the_devices_of_a_guest_that_did_not_start_are_started_at_the_next_attempt(by_hand):
    devices = by_hand.primary_host.devices[by_hand.guest.domid]
    devices.faults |= {"save_state", "cont"}
    by_hand.ask_without_waiting("primary", "checkpoint")
    eventually(lambda: events(by_hand, "primary", "unprotected"), "failed")
    eventually(lambda: devices.running and by_hand.guest.running, "runs")


def test_a_copy_that_was_built_and_cannot_be_opened_does_not_stay(pair):
    both = pair()
    opened = both.secondary_host.open_guest

    def fails_once(_domid):
        both.secondary_host.open_guest = opened
        raise OSError(110, "The device model does not answer.")

    both.secondary_host.open_guest = fails_once
    both.start()
    assert both.ended("primary") == 1
    assert "does not answer; the unfinished copy of h1 was destroyed" in both.phase("secondary", "waiting")
    assert both.copy is None


# ---------------------------------------------------------------------------------------- what is tried once more


def test_a_guest_whose_taps_fail_once_is_put_back_on_the_network(both, world):
    """It was taken off because it was not known whether it is the VM; its replicator does not end because of that."""
    asks_in_vain(both, world)
    both.guest.ended = "reboot"
    both.primary_host.add(VM, running_guest(9))
    eventually(lambda: not on_network(both.primary_host), "taken off")
    both.primary_host.nics[9].faults.add("connect")
    world.mend()
    eventually(lambda: on_network(both.primary_host), "put back at the next attempt")
    eventually(
        lambda: "'connect' (scripted)" in " ".join(events(both, "primary", "unprotected")), "it is told"
    )


def test_a_copy_that_has_to_stop_is_stopped_at_the_next_look(both, world):
    taken_over_although_the_owner_goes_on(both, world)
    both.secondary_host.nics[7].faults.add("isolate")
    world.mend()
    assert "'isolate' (scripted)" in both.phase("secondary", "standby"), "written down at once"
    eventually(lambda: not on_network(both.secondary_host), "off the network")
    eventually(lambda: events(both, "secondary", "stand_aside"), "it is told")
    assert not both.copy.running


def test_a_primary_that_is_there_comes_before_an_operator_who_asked_for_a_takeover(by_hand, monkeypatch):
    lost(by_hand)
    take = Inbox._take

    def take_both(self, item):
        take(self, item)
        if isinstance(item, Request) and self is by_hand.s_inbox:
            self.put_session(Session("in the same moment", "back", Timing(0.2)))

    monkeypatch.setattr(Inbox, "_take", take_both)
    assert by_hand.ask("secondary", "takeover")["code"] == "primary_alive"
    assert not on_network(by_hand.secondary_host)


def test_a_copy_that_could_not_be_destroyed_is_no_copy_any_more(by_hand, monkeypatch):
    lost(by_hand)
    destroy, tries, allowed = by_hand.secondary_host.destroy, [], threading.Event()

    def fail_for_a_while(domid):
        tries.append(domid)
        if not allowed.is_set():
            raise HostError("'xl destroy' failed (scripted).")
        destroy(domid)

    monkeypatch.setattr(by_hand.secondary_host, "destroy", fail_for_a_while)
    by_hand.guest.ended = "reboot"
    by_hand.phase("primary", "awaiting_guest")
    by_hand.primary_host.add(VM, running_guest(9))
    by_hand.secondary_host.next_domid = 8
    by_hand.mend_line()
    eventually(lambda: len(tries) > 4, "it is tried at every session")
    assert by_hand.ask("secondary", "takeover")["ok"] is False
    by_hand.cut_line()
    by_hand.phase("secondary", "waiting")
    assert by_hand.ask("secondary", "takeover")["code"] == "no_copy", "nor when its primary is lost once more"
    said = events(by_hand, "secondary", "waiting")[1:]
    assert all(one.startswith("The copy of h1 was to be destroyed, and may still be here") for one in said)
    allowed.set()
    by_hand.mend_line()
    by_hand.replicating()
    assert set(tries) == {7}
    assert by_hand.secondary_host.destroyed == [7]
