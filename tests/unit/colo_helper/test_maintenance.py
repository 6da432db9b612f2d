"""Maintenance, an operator's word where nobody can tell, and fencing: both sides for real, on the emulated hypervisor."""

import threading

import pytest

from colo_helper.arbiter.fencing import Fenced
from colo_helper.arbiter.record import ALONE, PROTECTED, Record
from colo_helper.hypervisor.interface import HypervisorError
from tests.unit.colo_helper.arbitrated import (
    asks_in_vain,
    events,
    heard,
    lose_the_device_model,
    nic,
    on_network,
    says,
)
from tests.unit.colo_helper.replication_pair import PATIENCE_S, VM, eventually


def maintained(both, reason="new disks"):
    answer = both.ask("primary", "maintenance", reason)
    assert (answer["ok"], answer["maintenance"]) == (True, reason)


def cause(world):
    return world.store.read(VM).record.cause


def test_in_maintenance_checkpoints_go_on_and_the_copy_has_no_right(both, world):
    maintained(both)
    assert world.kept == ("xa", ALONE)
    assert cause(world) == "maintenance: new disks"
    assert both.ask("primary", "checkpoint")["ok"] is True
    world.cut("xa")
    world.now += 3600
    end = nic(both.primary_host)
    network = end.to_network.dup()
    says(end, b"speak")
    assert both.ask("primary", "checkpoint")["ok"] is True
    assert heard(network) == b"speak", "it needs no arbiter"
    both.cut_line()
    both.phase("secondary", "peer_lost")
    refused = eventually(lambda: events(both, "secondary", "takeover_refused"), "refused")
    assert refused[0].startswith("h1 runs on xa (maintenance: new disks)")
    assert not on_network(both.secondary_host)
    both.mend_line()
    world.mend()
    both.replicating()
    assert world.kept == ("xa", ALONE), "it lasts until somebody ends it"


def test_in_maintenance_a_guest_without_a_device_model_stays(both, world):
    maintained(both)
    lose_the_device_model(both)
    both.phase("primary", "unprotected")
    assert both.primary_host.find(VM) is not None
    assert world.kept == ("xa", ALONE)


def test_an_arbiter_that_has_lost_all_lets_nobody_go_on_without_a_word(both, world):
    asks_in_vain(both, world)
    world.store.forget()
    world.now += 3600
    world.mend()
    eventually(lambda: "it has lost what it knew" in both.p_monitor.state.reason, "asked")
    refused = eventually(lambda: events(both, "secondary", "takeover_refused"), "refused")
    assert refused[0].startswith("The arbiter knows nothing of h1")
    eventually(lambda: not both.guest.running, "it stands still")
    answer = both.ask("primary", "maintenance", "xb is off")
    assert (answer["ok"], answer["code"]) == (False, "no_answer")
    assert both.ask("primary", "maintenance", "xb is off", forced=True)["ok"] is True
    both.phase("primary", "unprotected")
    assert both.guest.running


def test_an_arbiter_that_has_lost_all_is_told_anew_by_a_pair(both, world):
    world.store.forget()
    eventually(lambda: world.kept == ("xa", PROTECTED), "written down again, for the lease lasts")


def test_an_arbiter_that_was_away_and_lost_all_is_told_once_the_copy_has_shown_that_it_is_one(both, world):
    world.cut()
    world.now += 3600
    world.store.forget()
    world.mend()
    eventually(lambda: both.rights["primary"].forgotten, "noticed")
    assert world.kept is None
    for _ in range(3):
        assert both.ask("primary", "checkpoint")["ok"] is True
    eventually(lambda: world.kept == ("xa", PROTECTED), "written down again")


def test_when_maintenance_ends_the_copy_has_its_right_again(both, world):
    maintained(both)
    assert both.saved_by("primary")["maintenance"] == "new disks"
    assert both.ask("primary", "automatic")["ok"] is True
    assert world.kept == ("xa", PROTECTED)
    assert both.saved_by("primary")["maintenance"] == ""
    world.cut("xa")
    both.cut_line()
    both.phase("secondary", "peer_lost")
    world.now += 10
    both.phase("secondary", "active")


def test_it_is_not_ended_while_nobody_can_write_that_down(both, world):
    maintained(both)
    world.cut("xa")
    answer = both.ask("primary", "automatic")
    assert (answer["ok"], answer["code"]) == (False, "no_answer")
    assert both.saved_by("primary")["maintenance"] == "new disks"
    assert both.rights["primary"].permits()


def test_it_does_not_begin_without_the_arbiter_unless_an_operator_answers_for_it(both, world):
    world.cut("xa")
    answer = both.ask("primary", "maintenance", "new disks")
    assert (answer["ok"], answer["code"]) == (False, "no_answer")
    assert "Nothing was changed on this host." in answer["error"]
    assert both.saved_by("primary")["maintenance"] == ""
    assert both.ask("primary", "maintenance", "witness is dead", forced=True)["ok"] is True
    world.now += 3600
    assert both.rights["primary"].permits()
    world.mend()
    both.cut_line()
    eventually(lambda: world.kept == ("xa", ALONE), "written down when it can be")
    assert cause(world) == "maintenance: witness is dead"
    assert both.guest.running


def test_a_word_of_yesterday_lets_nobody_go_on_today(both, world):
    world.cut("xa")
    assert both.ask("primary", "maintenance", "witness is dead", forced=True)["ok"] is True
    world.mend()
    eventually(lambda: world.kept == ("xa", ALONE), "written down while the session lives")
    assert both.ask("primary", "automatic")["ok"] is True
    assert world.kept == ("xa", PROTECTED)
    asks_in_vain(both, world, "xa")
    both.phase("secondary", "peer_lost")
    world.now += 10
    both.phase("secondary", "active")
    assert not both.rights["primary"].permits()
    eventually(lambda: not both.guest.running, "it stands still")


def test_a_session_that_begins_anew_in_maintenance_needs_no_arbiter(both, world):
    maintained(both)
    world.cut()
    both.cut_line()
    both.phase("primary", "unprotected")
    both.mend_line()
    both.replicating()
    assert not both.p_monitor.state.shared


def test_a_primary_in_maintenance_that_starts_anew_does_not_doubt(pair, both, world):
    maintained(both)
    both.close_replicators()
    world.cut()
    again = pair(
        arbiters=world.ways, output="hold", p_saved=both.saved_by("primary"), primary_host=both.primary_host
    ).start()
    again.phase("primary", "asking")
    assert again.guest.running
    assert on_network(both.primary_host)
    assert again.p_monitor.state.maintenance == "new disks"
    world.mend()
    again.replicating()
    assert world.kept == ("xa", ALONE)


def test_wishes_are_heard_between_checkpoints_that_never_rest(pair, world):
    both = pair(arbiters=world.ways, output="hold").start().replicating()
    ended = threading.Event()

    def busy():
        while not ended.is_set():
            both.ask("primary", "checkpoint")

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            assert both.ask("secondary", "maintenance", "rack moves")["ok"] is True
            assert both.ask("secondary", "automatic")["ok"] is True
    finally:
        ended.set()
        thread.join()


def test_a_domain_that_still_boots_is_put_aside_when_another_has_the_vm(pair, world, monkeypatch):
    world.store.change(world.store.read(VM), Record(VM, "xb", 1, ALONE, "silence", 1), 0)
    monkeypatch.setattr("colo_helper.replication.primary_guest.io_share", lambda _domain: 1.0)
    both = pair(arbiters=world.ways, output="hold").start()
    both.phase("primary", "standby")
    assert not both.guest.running
    assert not on_network(both.primary_host)


def test_an_operator_lets_a_vm_stay_where_nobody_can_tell(both, world):
    asks_in_vain(both, world)
    both.phase("secondary", "peer_lost")
    world.now += 9
    eventually(lambda: not both.guest.running, "it stands still")
    assert both.ask("secondary", "maintenance", "witness is dead")["ok"] is True
    assert both.ask("primary", "maintenance", "witness is dead", forced=True)["ok"] is True
    both.phase("primary", "unprotected")
    assert both.guest.running
    assert both.rights["primary"].permits()
    world.now += 3600
    world.ways["xb"].cut = False
    assert both.s_monitor.state.phase == "peer_lost", "nor does the copy take over by itself"
    world.mend()
    eventually(lambda: world.kept == ("xa", ALONE), "written down")
    both.mend_line()
    both.replicating()


def test_an_operator_who_was_wrong_is_told_when_the_arbiter_answers(both, world):
    asks_in_vain(both, world, "xa")
    both.phase("secondary", "peer_lost")
    world.now += 10
    both.phase("secondary", "active")
    assert both.ask("primary", "maintenance", "witness is dead", forced=True)["ok"] is True
    both.phase("primary", "unprotected")
    world.mend()
    assert "h1 is xb's since epoch" in both.phase("primary", "standby")
    assert not both.guest.running


def test_a_copy_in_maintenance_does_not_take_over_by_itself_and_does_when_that_ends(both, world):
    assert both.ask("secondary", "maintenance", "rack moves")["ok"] is True
    world.cut("xa")
    both.cut_line()
    both.phase("secondary", "peer_lost")
    world.now += 3600
    assert both.saved_by("secondary")["maintenance"] == "rack moves"
    assert not on_network(both.secondary_host)
    assert both.ask("secondary", "automatic")["ok"] is True
    both.phase("secondary", "active")


def test_an_operator_may_override_the_arbiter_with_a_reason_that_is_recorded(both, world):
    maintained(both)
    both.cut_line()
    both.phase("secondary", "peer_lost")
    answer = both.ask("secondary", "takeover")
    assert answer["code"] == "takeover_refused"
    assert both.ask("secondary", "takeover", "xa burned down", forced=True)["ok"] is True
    assert world.kept == ("xb", ALONE)
    assert cause(world) == (
        "An operator decided: xa burned down. Before that it was xa's (maintenance: new disks)."
    )
    assert "xa burned down" in both.s_monitor.state.reason
    assert on_network(both.secondary_host)


def test_an_override_that_nobody_could_be_told_of_is_undone_when_the_owner_lives(both, world):
    world.cut("xb")
    both.freeze_line()
    both.phase("secondary", "peer_lost")
    both.phase("primary", "unprotected")
    assert both.ask("secondary", "takeover", "xa burned down", forced=True)["ok"] is True
    assert both.saved_by("secondary")["override"] == "An operator decided: xa burned down."
    seen = world.store.read(VM)
    world.store.change(seen, Record(VM, "xa", 9, PROTECTED, "another copy", 1, "xc", "g9"), 10)
    world.mend()
    assert "its lease has not ended" in both.phase("secondary", "standby")
    assert not both.copy.running


def test_a_lease_that_lasts_is_not_overridden(both, world):
    world.cut("xa")
    both.cut_line()
    both.phase("secondary", "peer_lost")
    answer = both.ask("secondary", "takeover", "hurry", forced=True)
    assert (answer["ok"], answer["code"]) == (False, "takeover_refused")
    assert "its lease has not ended" in answer["error"]


def test_an_end_of_maintenance_whose_answer_is_lost_leaves_state_and_arbiter_of_one_mind(both, world):
    maintained(both)
    world.ways["xa"].lose_answer = True
    answer = both.ask("primary", "automatic")
    assert (answer["ok"], answer["code"]) == (False, "no_answer")
    eventually(lambda: events(both, "primary", "unprotected"), "that session ends")
    both.replicating()
    assert world.kept == ("xa", ALONE)
    world.now += 3600
    assert both.p_monitor.state.maintenance == "new disks"
    assert both.rights["primary"].permits()
    assert both.ask("primary", "automatic")["ok"] is True
    assert world.kept == ("xa", PROTECTED)


def test_a_full_disk_is_told_and_nothing_is_changed(both, world, monkeypatch):
    def full(**_known):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(both.p_monitor, "note", full)
    answer = both.ask("primary", "maintenance", "new disks")
    assert answer["error"] == "That cannot be written down: No space left on device."
    assert world.kept == ("xa", PROTECTED)


# ------------------------------------------------------------------------------------------------------ fencing


@pytest.fixture
def fences(both):
    """What becomes of the next attempts to switch the primary's host off; the last one stays."""
    outcomes = []

    def fence():
        return outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]

    both.secondary.succession.fence = fence
    return outcomes


OFF = Fenced(True, True, "xa was switched off by fence_ipmilan.")
STUCK = Fenced(False, False, "xa could not be switched off: fence_ipmilan: ended with 1.")


def lose_the_primary(both, world):
    world.cut("xa")
    both.cut_line()
    both.phase("secondary", "peer_lost")
    world.now += 10


def test_a_host_is_switched_off_before_its_vm_goes_on(both, world, fences):
    fences.append(OFF)
    lose_the_primary(both, world)
    assert both.phase("secondary", "active") == f"The lease of xa has ended. {OFF.sentence}"
    assert events(both, "secondary", "fencing") == [OFF.sentence]


def test_nobody_goes_on_when_it_cannot_be_switched_off_until_it_can(both, world, fences, monkeypatch):
    monkeypatch.setattr("colo_helper.replication.succession.FENCE_AGAIN_S", 0.1)
    fences.append(STUCK)
    lose_the_primary(both, world)
    eventually(lambda: STUCK.sentence in events(both, "secondary", "takeover_waits"), "said")
    assert not on_network(both.secondary_host)
    assert world.kept == ("xb", ALONE), "nor does the primary come back"
    fences.append(OFF)
    assert "switched off" in both.phase("secondary", "active")


def test_nobody_goes_on_when_it_cannot_be_switched_off_until_an_operator_says_that_it_is_off(
    both, world, fences
):
    fences.append(STUCK)
    lose_the_primary(both, world)
    eventually(lambda: events(both, "secondary", "fencing"), "tried")
    assert both.ask("secondary", "takeover")["ok"] is True
    assert on_network(both.secondary_host)


def test_a_host_is_switched_off_once_though_the_takeover_fails(both, world, fences, monkeypatch):
    fences.append(OFF)
    failing = [HypervisorError("no tap", operation="connect")] * 2
    connect = both.secondary.copy.join_network

    def join():
        if failing:
            raise failing.pop()
        connect()

    monkeypatch.setattr(type(both.secondary.copy), "join_network", lambda _self: join())
    lose_the_primary(both, world)
    both.phase("secondary", "active")
    assert events(both, "secondary", "fencing") == [OFF.sentence]


def test_operators_are_heard_while_a_host_is_being_switched_off(both, world):
    off = threading.Event()

    def fence():
        assert off.wait(PATIENCE_S)
        return OFF

    both.secondary.succession.fence = fence
    lose_the_primary(both, world)
    eventually(lambda: "being switched off" in "".join(events(both, "secondary", "takeover_waits")), "begun")
    assert both.ask("secondary", "maintenance", "wait")["ok"] is True
    assert not on_network(both.secondary_host)
    assert both.ask("secondary", "automatic")["ok"] is True
    off.set()
    both.phase("secondary", "active")


def test_no_host_is_switched_off_that_still_has_its_lease(both, world, fences):
    fences.append(OFF)
    world.cut("xb")
    both.cut_line()
    both.phase("primary", "unprotected")
    both.phase("secondary", "peer_lost")
    world.mend()
    eventually(lambda: events(both, "secondary", "takeover_refused"), "refused")
    assert events(both, "secondary", "fencing") == []
