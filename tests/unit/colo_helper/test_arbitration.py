"""Who goes on when the two lose each other, with an arbiter: both sides for real, on the emulated hypervisor.

The arbiter's clock is the tests' own.
"""

import threading
import time

from colo_helper.arbiter.record import ALONE, PROTECTED, Record
from colo_helper.channel.wire import Kind
from colo_helper.hypervisor.interface import HypervisorError
from colo_helper.monitor.monitor import boot_id
from colo_helper.monitor.watch import STUCK_S
from colo_helper.replication.guest import Guest
from tests.unit.colo_helper.arbitrated import (
    asks_in_vain,
    events,
    heard,
    nic,
    on_network,
    says,
    taken_over_although_the_owner_goes_on,
)
from tests.unit.colo_helper.emulated_host import EmulatedHost, running_guest
from tests.unit.colo_helper.replication_pair import PATIENCE_S, VM, eventually


def test_a_secondary_has_its_right_from_the_first_checkpoint_on(both, world):
    assert world.kept == ("xa", PROTECTED)
    record = world.store.read(VM).record
    assert (record.secondary, record.generation) == ("xb", both.p_monitor.state.generation)


def test_a_primary_that_lost_its_secondary_goes_on_and_the_copy_never_does(both, world):
    both.cut_line()
    assert "runs on unprotected" in both.phase("primary", "unprotected")
    eventually(lambda: world.kept == ("xa", ALONE), "written down")
    both.phase("secondary", "peer_lost")
    refused = eventually(lambda: events(both, "secondary", "takeover_refused"), "refused")
    assert refused[0].startswith("h1 runs on xa (")
    answer = both.ask("secondary", "takeover")
    assert (answer["ok"], answer["code"]) == (False, "takeover_refused")
    assert not on_network(both.secondary_host)
    world.now += 3600
    both.mend_line()
    both.replicating()
    eventually(lambda: world.kept == ("xa", PROTECTED), "protected again")


def test_a_secondary_whose_primary_is_gone_goes_on_by_itself_after_the_lease(both, world):
    world.cut("xa")
    both.cut_line()
    assert "whether h1 may go on here is not known" in both.phase("primary", "asking")
    end = nic(both.primary_host)
    network = end.to_network.dup()
    says(end, b"held.")
    both.phase("secondary", "peer_lost")
    waits = eventually(lambda: events(both, "secondary", "takeover_waits"), "asked")
    assert waits == ["xa may still let output of h1 leave: its lease has not ended."]
    answer = both.ask("secondary", "takeover")
    assert (answer["ok"], answer["code"]) == (False, "takeover_refused")
    assert both.guest.running
    world.now += 9
    eventually(lambda: not both.guest.running, "the primary stands still before its lease has ended")
    assert both.s_monitor.state.phase == "peer_lost"
    world.now += 1
    assert both.phase("secondary", "active") == "The lease of xa has ended."
    assert on_network(both.secondary_host)
    assert world.kept == ("xb", ALONE)

    world.mend()
    assert "h1 is xb's since epoch 2" in both.phase("primary", "standby")
    assert both.ended("primary") == 0
    assert both.p_monitor.state.role == "secondary"
    assert not both.guest.running
    assert not on_network(both.primary_host)
    assert heard(network) == b"", "what was held never leaves"


def test_a_primary_that_finds_the_arbiter_again_in_time_goes_on(both, world):
    asks_in_vain(both, world)
    world.now += 9
    eventually(lambda: not both.guest.running, "it stands still")
    world.mend()
    both.phase("primary", "unprotected")
    assert both.guest.running
    assert world.kept == ("xa", ALONE)


def test_without_an_arbiter_that_answers_an_operator_may_decide(both, world):
    asks_in_vain(both, world)
    both.phase("secondary", "peer_lost")
    world.now += 3600
    eventually(lambda: events(both, "secondary", "takeover_waits"), "asked")
    assert both.s_monitor.state.phase == "peer_lost", "nobody can tell, so nobody goes on"
    assert both.ask("secondary", "takeover")["ok"] is True
    assert both.s_monitor.state.reason.startswith(
        "An operator decided that this copy of h1 takes over. The arbiter does not"
    )


def test_the_roles_are_swapped_and_the_heir_is_the_owner(both, world):
    assert both.ask("primary", "switchover")["ok"] is True
    both.phase("primary", "standby")
    both.phase("secondary", "unprotected")
    assert world.kept == ("xb", ALONE)
    assert on_network(both.secondary_host)
    assert not on_network(both.primary_host)


def test_a_switch_over_whose_record_nobody_confirmed_leaves_one_that_runs(both, world):
    world.ways["xa"].lose_answer = True
    both.ask_without_waiting("primary", "switchover")
    both.phase("primary", "standby")
    both.phase("secondary", "active")
    assert on_network(both.secondary_host)
    assert not both.guest.running
    assert not on_network(both.primary_host)


def test_a_vm_is_not_protected_without_an_arbiter_and_is_when_it_answers(pair, world):
    world.cut("xa")
    both = pair(arbiters=world.ways, output="hold").start()
    assert "The arbiter does not answer" in both.phase("primary", "asking")
    assert both.guest.running
    world.mend()
    both.replicating()
    assert world.kept == ("xa", PROTECTED)


def test_an_arbiter_that_is_gone_while_both_run_leaves_the_vm_mute_and_is_found_again(both, world):
    world.cut("xa")
    eventually(lambda: events(both, "primary", "lease"), "noticed")
    world.now += 8
    end = nic(both.primary_host)
    network = end.to_network.dup()
    says(end, b"late.")
    assert both.ask("primary", "checkpoint")["ok"] is True
    assert heard(network) == b"", "the secondary has it, and yet it does not leave"
    world.mend()
    eventually(both.rights["primary"].permits, "a lease again")
    says(end, b"again")
    assert both.ask("primary", "checkpoint")["ok"] is True
    assert heard(network) == b"again"


def test_who_comes_back_with_a_guest_that_is_anothers_by_now_stops_it(pair, world):
    there = EmulatedHost()
    first = pair(arbiters=world.ways, output="hold", primary_host=there).start().replicating()
    world.cut("xa")
    first.cut_line()
    first.phase("primary", "asking")
    world.now += 10
    first.phase("secondary", "active")
    first.close_replicators()
    world.mend()
    again = pair(arbiters=world.ways, output="hold", primary_host=there).start()
    assert "h1 is xb's since epoch" in again.phase("primary", "standby")
    assert not again.guest.running
    assert not on_network(there)


def test_a_replicator_that_is_stuck_renews_nothing_and_is_succeeded(both, world):
    stuck, freed = threading.Event(), threading.Event()

    def hang():
        stuck.set()
        freed.wait()

    both.p_inbox.watch.look = hang
    both.ask_without_waiting("primary", "checkpoint")
    assert stuck.wait(PATIENCE_S)
    both.p_inbox.watch._clock = lambda: time.monotonic() + 2 * STUCK_S
    eventually(lambda: f"stuck for {2 * STUCK_S:.0f} s" in "".join(events(both, "primary", "lease")), "said")
    world.now += 10
    assert not both.rights["primary"].permits()
    both.phase("secondary", "active")
    assert world.kept == ("xb", ALONE)
    freed.set()
    assert_aside(both)


def test_an_operator_who_stops_a_primary_that_asks_is_told_so_and_the_service_manager_leaves_it_mute(
    both, world
):
    asks_in_vain(both, world)
    answer = both.ask("primary", "stop")
    assert (answer["ok"], answer["code"]) == (False, "asking")
    assert "is not known. The arbiter does not answer" in answer["error"]
    end = nic(both.primary_host)
    network = end.to_network.dup()
    both.p_inbox.put_stop("The service manager stopped the replicator.")
    assert both.ended("primary") == 0
    says(end, b"never")
    assert heard(network) == b""
    assert not on_network(both.secondary_host)


def test_an_orderly_end_is_written_down(both, world):
    both.p_inbox.put_stop("An operator asked to stop.")
    both.phase("primary", "stopped")
    both.phase("secondary", "stopped")
    assert world.kept == ("xa", ALONE)


def assert_aside(both):
    """The first host's guest stands still, off the network, for good."""
    both.phase("primary", "standby")
    assert both.ended("primary") == 0
    assert not both.guest.running
    assert not on_network(both.primary_host)


def test_what_an_operator_decided_without_the_arbiter_is_written_down_when_it_answers(both, world):
    asks_in_vain(both, world)
    both.phase("secondary", "peer_lost")
    assert both.ask("secondary", "takeover")["ok"] is True
    world.ways["xb"].cut = False
    eventually(lambda: world.kept == ("xb", ALONE), "written down, lease or not")
    world.mend()
    assert_aside(both)
    assert on_network(both.secondary_host)


def test_an_operators_takeover_is_undone_when_the_owner_had_gone_on(both, world):
    taken_over_although_the_owner_goes_on(both, world)
    assert on_network(both.secondary_host)
    world.mend()
    assert "h1 runs on xa" in both.phase("secondary", "standby")
    assert not both.copy.running
    assert not on_network(both.secondary_host)
    assert both.guest.running


def test_who_was_succeeded_is_made_the_secondary_without_a_new_first_copy(pair, world):
    first = pair(arbiters=world.ways, output="hold").start().replicating()
    asks_in_vain(first, world, "xa")
    world.now += 10
    first.phase("secondary", "active")
    world.mend()
    assert_aside(first)
    first.s_inbox.put_stop("The service manager stopped the replicator.")
    first.ended("secondary")
    after = pair(
        arbiters=world.ways,
        output="hold",
        names=("xb", "xa"),
        primary_host=first.secondary_host,
        secondary_host=first.primary_host,
        p_saved=first.saved_by("secondary"),
        saved=first.saved_by("primary"),
    )
    after.start().replicating()
    assert after.forward.count(Kind.CHUNK) == 0, "no second first copy"
    assert world.kept == ("xb", PROTECTED)
    assert on_network(after.primary_host)
    assert not on_network(after.secondary_host)


def test_a_primary_that_learns_by_its_lease_that_it_was_succeeded_never_speaks_again(both, world):
    """It was away, frozen for instance, and both still hear each other's channels."""
    end = nic(both.primary_host)
    network = end.to_network.dup()
    seen = world.store.read(VM)
    world.store.change(seen, Record(VM, "xb", seen.record.epoch + 1, ALONE, "silence", 1), 0)
    assert_aside(both)
    assert heard(network) == b""
    assert both.primary_host.filters[3].ends == []


def test_a_full_disk_does_not_take_a_handover_back(both, world, full):
    full.set()
    assert both.ask("primary", "switchover")["ok"] is True
    assert_aside(both)
    assert on_network(both.secondary_host)
    assert world.kept == ("xb", ALONE)


def test_a_full_disk_ends_no_protection(both, full):
    full.set()
    for _ in range(2):
        assert both.ask("primary", "checkpoint")["ok"] is True
    both.cut_line()
    both.phase("primary", "unprotected")
    both.phase("secondary", "peer_lost")
    both.mend_line()
    both.replicating()
    assert both.exit_codes == {}
    full.clear()
    assert both.ask("primary", "checkpoint")["ok"] is True
    assert both.saved_by("primary")["epoch"] == both.p_monitor.state.epoch


def test_a_full_disk_takes_no_takeover_back(both, world, full):
    full.set()
    asks_in_vain(both, world, "xa")
    world.now += 10
    eventually(lambda: both.s_monitor.state.phase == "active", "taken over")
    assert on_network(both.secondary_host)
    world.mend()
    assert_aside(both)


def test_a_domain_that_the_toolstack_makes_meanwhile_is_kept_off_the_network(both, world):
    asks_in_vain(both, world, "xa")
    both.guest.ended = "reboot"
    both.primary_host.add(VM, running_guest(9))
    eventually(lambda: not on_network(both.primary_host), "taken off")
    world.mend()
    eventually(lambda: on_network(both.primary_host), "it is the VM, so it is put back")


def test_a_guest_that_does_not_stop_is_stopped_at_the_next_look(both, world, monkeypatch):
    guest, tries = both.primary.here.guest, []
    halt = guest.halt

    def stuck():
        tries.append(1)
        if len(tries) == 1:
            raise HypervisorError("Xen refused to pause domain 3: EIO.", operation="pause")
        halt()

    monkeypatch.setattr(Guest, "halt", lambda self: stuck() if self is guest else halt())
    asks_in_vain(both, world)
    world.now += 9
    eventually(lambda: not both.guest.running, "it stands still")
    world.mend()
    both.phase("primary", "unprotected")
    assert both.guest.running


def test_a_primary_that_fails_and_cannot_ask_does_not_keep_its_secondary_waiting(both, world):
    """Both still hear each other's channels, and no checkpoint comes any more."""
    world.cut("xa")
    both.guest.faults["get_context"] = 0
    both.ask_without_waiting("primary", "checkpoint")
    both.phase("primary", "asking")
    both.phase("secondary", "peer_lost")
    world.now += 10
    both.phase("secondary", "active")
    assert on_network(both.secondary_host)
    world.mend()
    assert_aside(both)


def test_a_guest_that_ended_is_not_brought_back_while_nobody_can_ask(both, world):
    world.cut("xa")
    both.guest.ended = "poweroff"
    both.ask_without_waiting("primary", "checkpoint")
    both.phase("primary", "asking")
    world.now += 10
    assert both.s_monitor.state.phase == "replicating"
    world.mend()
    both.phase("primary", "awaiting_guest")
    both.phase("secondary", "waiting")


def test_a_copy_that_has_ended_does_not_claim_the_vm(both, world):
    world.cut("xa")
    both.cut_line()
    both.phase("secondary", "peer_lost")
    both.copy.ended = "crash"
    world.now += 10
    waits = eventually(
        lambda: [one for one in events(both, "secondary", "takeover_waits") if "ended by itself" in one],
        "said",
    )
    assert waits == ["Domain 7, the copy, has ended by itself (crash)."]
    assert world.kept == ("xa", PROTECTED)
    world.mend()
    both.phase("primary", "unprotected")
    assert both.guest.running


def test_a_vm_that_is_alone_does_not_wait_for_an_arbiter_to_be_protected_again(both, world):
    both.cut_line()
    both.phase("primary", "unprotected")
    world.cut()
    both.mend_line()
    eventually(
        lambda: any("The arbiter does not answer" in one for one in events(both, "primary", "unprotected")),
        "tried",
    )
    assert events(both, "primary", "asking") == []
    assert both.rights["primary"].permits()
    assert both.guest.running
    world.mend()
    both.replicating()


def test_a_stop_that_was_refused_does_not_happen_later(both, world):
    asks_in_vain(both, world)
    assert both.ask("primary", "stop")["code"] == "asking"
    world.mend()
    both.mend_line()
    both.replicating()
    assert both.copy is not None


def saved_while(phase):
    return {
        "role": "primary",
        "phase": phase,
        "boot_id": boot_id(),
        "domid": 3,
        "generation": "g1",
        "epoch": 4,
    }


def test_who_starts_anew_where_another_may_have_the_vm_keeps_it_off_the_network(pair, world):
    world.store.change(
        world.store.read(VM), Record(VM, "xa", 1, PROTECTED, "xb has a copy", 1, "xb", "g1"), 0
    )
    world.cut("xa")
    both = pair(arbiters=world.ways, output="hold", p_saved=saved_while("replicating")).start()
    both.phase("primary", "asking")
    eventually(lambda: not on_network(both.primary_host), "off")
    assert both.saved_by("primary")["generation"] == "g1"
    assert both.ask("primary", "stop")["code"] == "asking"
    both.p_inbox.put_stop("The service manager stopped the replicator.")
    assert both.ended("primary") == 0
    assert both.saved_by("primary")["phase"] == "asking"
    world.mend()
    again = pair(
        arbiters=world.ways, output="hold", p_saved=both.saved_by("primary"), primary_host=both.primary_host
    )
    again.start().phase("primary", "replicating")
    assert on_network(both.primary_host)
