"""What becomes of a VM when a device model ends, its own or that of its copy: both sides for real, on emulated hosts."""

import time

import pytest

from colo_helper.arbiter.fencing import Fenced
from colo_helper.arbiter.record import ALONE, PROTECTED
from colo_helper.channel.wire import Kind
from colo_helper.devices.interface import DeviceError
from colo_helper.replication.guest import Guest
from colo_helper.replication.host import HostError
from tests.unit.colo_helper.arbitrated import (
    events,
    heard,
    lose_the_device_model,
    nic,
    on_network,
)
from tests.unit.colo_helper.replication_pair import VM, eventually


def device_model(host):
    return host.devices[host.find(VM)]


def test_a_guest_without_a_device_model_gives_way_to_its_copy_at_once(both, world):
    network = lose_the_device_model(both)
    assert both.phase("secondary", "active") == (
        "The copy of h1 here is the VM (h1 was handed over by xa: The device model of h1 has ended, so it can do and say "
        "nothing any more)."
    )
    assert on_network(both.secondary_host)
    assert world.kept == ("xb", ALONE)
    reason = both.phase("primary", "standby")
    assert reason == (
        "The device model of h1 has ended, so it can do and say nothing any more; the copy on xb is h1 now, and its domain "
        "here is gone."
    )
    assert both.ended("primary") == 0
    assert both.p_monitor.state.role == "secondary"
    assert both.primary_host.find(VM) is None
    assert heard(network) == b"", "what was held never leaves"


def taken_apart(both, how):
    """Before it ends the device model, the toolstack pauses a domain that it destroys, and suspends one that it moves."""
    if how == "paused":
        both.guest.pause_count += 1
    else:
        both.guest.suspended = True
    lose_the_device_model(both)


@pytest.mark.parametrize("how", ["paused", "suspended"])
def test_a_guest_that_the_toolstack_takes_apart_is_not_handed_over(both, world, how):
    taken_apart(both, how)
    assert f"h1 is {how}, and its device model has ended" in both.phase("primary", "awaiting_guest")
    assert world.kept == ("xa", ALONE)
    assert both.s_monitor.state.phase != "active"


@pytest.mark.parametrize("how", ["paused", "suspended"])
def test_not_even_when_nobody_can_be_asked(both, world, how):
    """Its secondary is told before the arbiter is asked, which may take long."""
    world.cut("xa")
    taken_apart(both, how)
    both.phase("primary", "asking")
    assert "The primary on xa says: h1 is " in both.phase("secondary", "peer_lost")
    eventually(lambda: both.saved_by("secondary")["guest_ended"], "known to whoever comes after a crash")
    world.now += 60
    assert not both.secondary.succession.pending
    world.mend()
    both.phase("primary", "awaiting_guest")
    assert world.kept == ("xa", ALONE)
    assert both.s_monitor.state.phase == "peer_lost"


def test_a_guest_that_rebooted_has_ended_in_order_although_its_device_model_is_gone(both, world):
    both.guest.ended = "reboot"
    lose_the_device_model(both)
    assert both.phase("primary", "awaiting_guest").startswith("h1 has ended by itself (reboot)")
    both.phase("secondary", "waiting")
    assert world.kept == ("xa", ALONE)


def test_a_word_of_the_arbiter_that_is_lost_is_asked_for_again(both, world):
    world.ways["xa"].lose_answer = True
    lose_the_device_model(both)
    both.phase("secondary", "active")
    assert both.phase("primary", "standby").endswith("its domain here is gone.")
    assert both.ended("primary") == 0
    assert world.kept == ("xb", ALONE)
    assert both.primary_host.find(VM) is None


def test_when_the_arbiter_is_silent_the_copy_goes_on_after_the_lease(both, world):
    world.cut("xa")
    lose_the_device_model(both)
    both.phase("primary", "asking")
    both.phase("secondary", "peer_lost")
    world.now += 10
    both.phase("secondary", "active")
    world.mend()
    assert "h1 is xb's since epoch" in both.phase("primary", "standby")
    assert both.primary_host.find(VM) is None, "nothing can come of it any more"
    assert world.kept == ("xb", ALONE)


def test_an_operator_may_keep_the_vm_where_it_is_meanwhile(both, world):
    world.cut("xa")
    lose_the_device_model(both)
    both.phase("primary", "asking")
    assert both.ask("primary", "maintenance", "debugging", forced=True)["ok"] is True
    assert "h1 stays as it is" in both.phase("primary", "unprotected")
    assert both.primary_host.find(VM) is not None
    world.mend()
    eventually(lambda: world.kept == ("xa", ALONE), "written down when that is possible")


def test_a_host_that_gave_its_vm_away_is_not_switched_off(both, world):
    both.secondary.succession.fence = lambda: Fenced(True, True, "xa was switched off.")
    lose_the_device_model(both)
    both.phase("secondary", "active")
    assert events(both, "secondary", "fencing") == []


def test_a_domain_that_cannot_be_destroyed_is_not_said_to_be_gone(both, world, monkeypatch):
    def refuses(_domid):
        raise HostError("'xl destroy' ended with status 1 (scripted).")

    monkeypatch.setattr(both.primary_host, "destroy", refuses)
    lose_the_device_model(both)
    both.phase("secondary", "active")
    assert both.phase("primary", "standby").endswith(
        "its domain here is still there: 'xl destroy h1' ends it."
    )


@pytest.fixture
def unheld(pair, world):
    """A pair that learns of a device model's end at the next checkpoint only: nothing has hold of its packets."""
    return pair(arbiters=world.ways, output="free").start().replicating()


def test_a_stop_does_not_give_up_the_only_copy_that_can_run(unheld, world):
    device_model(unheld.primary_host).dead = True
    answer = unheld.ask("primary", "stop")
    assert (answer["ok"], answer["code"]) == (False, "no_devices")
    assert "its copy on xb may be all that can run" in answer["error"]
    unheld.phase("secondary", "active")
    unheld.phase("primary", "standby")
    assert world.kept == ("xb", ALONE)


def test_a_vm_is_not_given_to_a_secondary_whose_copy_failed_first(both, world, monkeypatch):
    """As when one packet crashes both device models."""
    dies = device_model(both.primary_host)

    def fails():
        dies.dead = True
        raise DeviceError("The device model cannot be reached (scripted).")

    monkeypatch.setattr(device_model(both.secondary_host), "stop", fails)
    both.ask_without_waiting("primary", "checkpoint")
    eventually(lambda: world.kept == ("xa", ALONE), "taken back")
    assert "h1 stays as it is" in both.phase("primary", "unprotected")
    assert both.primary_host.find(VM) is not None


def test_an_owner_kept_by_an_operators_word_hears_when_another_has_the_vm(both, world):
    world.cut("xa")
    lose_the_device_model(both)
    both.phase("primary", "asking")
    assert both.ask("primary", "maintenance", "debugging", forced=True)["ok"] is True
    both.phase("primary", "unprotected")
    both.phase("secondary", "peer_lost")
    world.now += 10
    both.phase("secondary", "active")
    world.mend()
    assert both.phase("primary", "standby").endswith("its domain here is gone.")


@pytest.mark.parametrize("how", ["paused", "suspended"])
def test_a_secondary_of_the_release_before_is_not_told_what_it_does_not_know(both, world, how):
    both.primary.conversation.peer_keeps = False
    world.cut("xa")
    taken_apart(both, how)
    both.phase("primary", "asking")
    world.now += 60
    time.sleep(0.3)
    assert both.s_monitor.state.phase not in ("active", "peer_lost"), "it hears its primary"
    world.mend()
    both.phase("primary", "awaiting_guest")
    assert both.s_monitor.state.phase != "active"


def test_a_copy_in_maintenance_takes_what_its_owner_gives_it(both, world, monkeypatch):
    """Its host was told first, or the owner's could not be."""
    monkeypatch.setattr("colo_helper.replication.succession._MAINTAINED_AGAIN_S", 0.05)
    assert both.ask("secondary", "maintenance", "new disks")["ok"] is True
    lose_the_device_model(both)
    both.phase("secondary", "active")
    assert world.kept == ("xb", ALONE)


def test_a_copy_in_maintenance_says_why_it_waits(both, world):
    assert both.ask("secondary", "maintenance", "new disks")["ok"] is True
    world.cut("xa")
    both.cut_line()
    both.phase("secondary", "peer_lost")
    waits = eventually(lambda: events(both, "secondary", "takeover_waits"), "asked")
    assert waits == ["The copy of h1 here does not take over by itself, because it is in maintenance."]
    world.now += 60
    assert both.s_monitor.state.phase == "peer_lost"


def test_a_device_model_that_ends_while_a_stop_is_settled_keeps_the_copy(both, world, monkeypatch):
    tenure, dies = both.rights["primary"], device_model(both.primary_host)
    alone = tenure.alone

    def ends(*arguments, **given):
        dies.dead = True
        return alone(*arguments, **given)

    monkeypatch.setattr(tenure, "alone", ends)
    answer = both.ask("primary", "stop")
    assert (answer["ok"], answer["code"]) == (False, "no_devices")
    both.phase("primary", "unprotected")
    both.phase("secondary", "peer_lost")
    assert both.copy.running


def test_a_device_model_that_ends_at_the_very_end_keeps_the_copy(both, monkeypatch):
    """When logging is turned off, of which QEMU has been seen to abort."""
    dies = device_model(both.primary_host)
    release = Guest.release

    def ends(guest):
        if guest.devices is dies:
            dies.dead = True
        return release(guest)

    both.both_run()
    monkeypatch.setattr(Guest, "release", ends)
    both.p_inbox.put_stop("Enough.")
    reason = both.phase("primary", "stopped")
    assert "its copy on xb is kept." in reason
    both.phase("secondary", "peer_lost")
    assert both.secondary_host.destroyed == []


# -------------------------------------------------------------------------------------------- without an arbiter


@pytest.fixture
def by_hand(pair):
    return pair(output="free").start().replicating()


def test_without_an_arbiter_the_copy_is_kept_for_an_operator(by_hand):
    device_model(by_hand.primary_host).dead = True
    answer = by_hand.ask("primary", "stop")
    assert (answer["ok"], answer["code"]) == (False, "no_devices")
    reason = by_hand.phase("primary", "unprotected")
    assert "playbooks/failover.yml lets its copy on xb, if there is one, go on." in reason
    by_hand.phase("secondary", "peer_lost")
    answer = by_hand.ask("primary", "stop")
    assert (answer["ok"], answer["code"]) == (False, "no_devices"), "nor later, without a session"
    time.sleep(0.5)  # in which it would have been tried again a few times
    assert by_hand.sessions == 1, "a guest that can do nothing is not copied"
    assert by_hand.ask("secondary", "takeover")["ok"] is True
    assert on_network(by_hand.secondary_host)


def test_the_service_manager_may_stop_the_replicator_of_a_guest_that_can_do_nothing(by_hand):
    device_model(by_hand.primary_host).dead = True
    by_hand.p_inbox.put_stop("The service manager stops it.")
    assert by_hand.ended("primary") == 0
    assert by_hand.p_monitor.state.phase == "stopped"
    assert by_hand.p_monitor.state.reason.endswith("h1 stays as it is, and its copy on xb is kept.")
    by_hand.phase("secondary", "peer_lost")
    assert by_hand.copy.running


def test_a_copy_whose_device_model_has_ended_is_made_anew_when_its_primary_is_back(by_hand):
    by_hand.cut_line()
    by_hand.phase("secondary", "peer_lost")
    device_model(by_hand.secondary_host).dead = True
    by_hand.secondary_host.next_domid = 8
    by_hand.mend_line()
    by_hand.replicating()
    assert events(by_hand, "secondary", "discarded") == ["The device model of the copy of h1 has ended."]
    assert by_hand.secondary_host.destroyed == [7]
    assert by_hand.forward.count(Kind.COPY) == 2


# ------------------------------------------------------------------------------------------------------- the copy


def test_a_device_model_that_takes_a_moment_to_end_is_waited_for(both, world):
    dies = both.primary_host.devices[both.primary_host.find(VM)]
    nic(both.primary_host).close()
    time.sleep(0.1)  # its other sockets are still open
    dies.dead = True
    both.phase("secondary", "active")
    assert world.kept == ("xb", ALONE)


def test_a_copy_without_a_device_model_does_not_become_the_vm(both, world):
    both.secondary_host.devices[both.secondary_host.find(VM)].dead = True
    world.cut("xa")
    both.cut_line()
    waits = eventually(lambda: events(both, "secondary", "takeover_waits"), "looked at")
    assert waits == ["The device model of domain 7, the copy, has ended."]
    answer = both.ask("secondary", "takeover")
    assert (answer["ok"], answer["code"]) == (False, "takeover_failed")
    assert world.kept == ("xa", PROTECTED), "whoever has a guest that can run is still the owner"
