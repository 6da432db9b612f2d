"""The planned swap of the roles: nothing is lost, and at no step do both copies run on the network."""

from __future__ import annotations

import random
import threading
import time

import pytest

from colo_helper.channel.wire import Kind
from colo_helper.monitor.monitor import boot_id
from colo_helper.replication.decisions.refusals import role_refusal
from tests.unit.colo_helper.replication_pair import PATIENCE_S, VM, eventually, pairs
from tests.unit.colo_helper.test_replication import guest_memory, write_on_both


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr("colo_helper.replication.decisions.primary.FIRST_RETRY_S", 0.05)
    with pairs() as make:
        yield make


def on_the_network(host):
    """Whether the VM runs there where clients reach it."""
    domain = host.domains.get(VM)
    if domain is None or not domain.running:
        return False
    return any(tap.bridge for tap in host.nics[domain.domid].taps())


def swapped(first, pair):
    """The replicators of the next pair, with the roles that the switch-over gave."""
    return pair(
        primary_host=first.secondary_host,
        secondary_host=first.primary_host,
        p_saved=first.saved_by("secondary"),
        saved=first.saved_by("primary"),
    )


def test_the_roles_are_swapped_and_the_copy_left_behind_is_used_again(pair):
    both = pair().start().replicating()
    dice = random.Random(5)
    for turn in range(4):
        write_on_both(both, dice, turn)
        both.guest.context = b"context of turn %d" % turn
        answer = both.ask("primary", "switchover")
        assert answer["ok"] is True
        assert (both.ended("primary"), both.ended("secondary")) == (0, 0)
        assert guest_memory(both.copy) == guest_memory(both.guest)
        assert both.copy.context == both.guest.context
        assert on_the_network(both.secondary_host)
        assert not on_the_network(both.primary_host)
        assert not both.guest.running
        there = both.secondary_host.devices[both.copy.domid]
        assert there.announced >= 1
        before = both.saved_by("primary"), both.saved_by("secondary")
        assert [(one["role"], one["phase"]) for one in before] == [
            ("secondary", "standby"),
            ("primary", "unprotected"),
        ]
        after = swapped(both, pair)
        after.start().replicating()
        assert after.forward.count(Kind.CHUNK) == 0, "no second first copy"
        assert any(event["event"] == "compared" for event in after.events("primary"))
        assert after.both_run()
        assert on_the_network(after.primary_host)
        assert not on_the_network(after.secondary_host)
        assert guest_memory(after.copy) == guest_memory(after.guest)
        assert after.p_monitor.state.epoch == before[0]["epoch"]
        both = after


@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize(
    ("direction", "kind"),
    [
        ("forward", Kind.SUSPEND),
        ("forward", Kind.COMMIT),
        ("back", Kind.RECEIVED),
        ("back", Kind.APPLIED),
        ("forward", Kind.HANDOVER),
        ("back", Kind.TAKEN),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else value,
)
def test_parted_at_any_step_of_a_switch_over(pair, direction, kind, passed):
    both = pair(timeout_ms=500).start().replicating()
    both.both_run()
    both.dialer.without = {
        "forward",
        "back",
        "heartbeat",
    }  # no new connection: what each of them knows by itself
    both.cut_at(direction, kind, passed=passed)
    both.ask_without_waiting("primary", "switchover")
    # What is sent while the connection breaks may have arrived: the primary must not take it back.
    told = kind in (Kind.HANDOVER, Kind.TAKEN) or (kind is Kind.APPLIED and passed)
    took = kind is Kind.TAKEN or (kind is Kind.HANDOVER and passed)
    heard = kind is Kind.TAKEN and passed
    both.phase("primary", ("standby" if heard else "handed_over") if told else "unprotected")
    eventually(
        lambda: both.s_monitor.state.phase == ("unprotected" if took else "peer_lost"),
        "what the secondary does",
    )
    if told:
        both.ended("primary")
    if took:
        both.ended("secondary")
    assert on_the_network(both.primary_host) is not told
    assert on_the_network(both.secondary_host) is took
    assert both.p_monitor.state.role == ("secondary" if told else "primary")
    assert both.s_monitor.state.role == ("primary" if took else "secondary")


def test_a_device_model_that_ends_before_the_answer_comes_changes_nothing(pair):
    """The guest here stands still for ever, and its session of systemd may be ended already."""
    both = pair().start().replicating()
    gone = threading.Event()
    nics = both.secondary_host.nics[both.secondary_host.find(VM)]
    join = nics.connect

    def join_when_it_has_gone(taps):
        assert gone.wait(PATIENCE_S)
        join(taps)

    def ends():
        both.primary_host.filters[both.primary_host.find(VM)].ends[0].close()
        time.sleep(0.1)  # it is told to who waits for the answer
        gone.set()

    nics.connect = join_when_it_has_gone
    both.cut_at("forward", Kind.HANDOVER, passed=True)
    both.line.on_cut = ends
    both.ask_without_waiting("primary", "switchover")
    assert gone.wait(PATIENCE_S)
    both.phase("primary", "standby")
    assert both.s_monitor.state.role == "primary"


def test_whoever_stands_by_can_still_take_over_when_an_operator_says_so(pair):
    """The new primary's host died before the roles were settled."""
    both = pair().start().replicating()
    both.ask("primary", "switchover")
    both.ended("primary")
    alone = pair(
        secondary_host=both.primary_host, saved=both.saved_by("primary"), only_secondary=True
    ).start()
    assert "stands by" in alone.phase("secondary", "standby")
    assert not on_the_network(both.primary_host)
    assert alone.ask("secondary", "takeover")["ok"] is True
    assert on_the_network(both.primary_host)


@pytest.mark.parametrize(
    ("role", "was", "phase", "refused"),
    [
        ("primary", "secondary", "standby", True),
        ("primary", "secondary", "handed_over", True),
        ("primary", "secondary", "peer_lost", True),
        ("primary", "secondary", "active", False),
        ("primary", "secondary", "stopped", False),
        ("secondary", "primary", "unprotected", True),
        ("secondary", "primary", "stopped", False),
        ("secondary", "secondary", "standby", False),
    ],
)
def test_a_replicator_with_the_old_configuration_does_not_start(role, was, phase, refused):
    saved = {"role": was, "phase": phase, "domid": 3, "boot_id": boot_id(), "reason": "It was so."}
    assert bool(role_refusal(VM, role, saved, boot_id(), 3)) is refused
    assert role_refusal(VM, role, saved, "another boot", 3) == ""
    assert role_refusal(VM, role, saved, boot_id(), 4) == ""
    assert role_refusal(VM, role, saved, boot_id(), None) == ""
    assert role_refusal(VM, role, None, boot_id(), 3) == ""


STOPPED = "The service manager stopped the replicator (SIGTERM)."


def test_a_host_that_is_shut_down_hands_its_vm_over(pair):
    both = pair().start().replicating()
    write_on_both(both, random.Random(7), 1)
    memory = guest_memory(both.guest)
    both.primary_host.shuts_down = True
    both.p_inbox.put_stop(STOPPED)
    assert (both.ended("primary"), both.ended("secondary")) == (0, 0)
    assert on_the_network(both.secondary_host)
    assert guest_memory(both.copy) == memory
    assert VM not in both.primary_host.domains, (
        "nothing that the host would save, and restore at its next boot"
    )
    ends = both.saved_by("primary"), both.saved_by("secondary")
    assert [(one["role"], one["phase"]) for one in ends] == [
        ("secondary", "standby"),
        ("primary", "unprotected"),
    ]
    assert ends[0]["reason"] == (
        "h1 runs on xb since epoch 1, because this host is being shut down; the copy on xb is h1 now, and its domain here "
        "is gone."
    )


def test_a_replicator_alone_that_is_stopped_hands_nothing_over(pair):
    both = pair().start().replicating()
    both.p_inbox.put_stop(STOPPED)
    assert (both.ended("primary"), both.ended("secondary")) == (0, 0)
    assert both.p_monitor.state.phase == "stopped"
    assert on_the_network(both.primary_host)
    assert both.copy is None


def test_a_vm_whose_peer_is_gone_is_stopped_with_its_host(pair):
    both = pair(timeout_ms=500).start().replicating()
    both.cut_line()
    both.phase("primary", "unprotected")
    both.primary_host.shuts_down = True
    both.p_inbox.put_stop(STOPPED)
    assert both.ended("primary") == 0
    assert both.p_monitor.state.phase == "stopped"
    assert both.guest.running


def test_a_host_that_is_shut_down_keeps_its_vm_that_does_not_run_on_the_other_yet(pair):
    both = pair().start().replicating()
    both.both_run()
    copy = both.secondary_host.devices[7]
    both.primary_host.shuts_down = True
    handed_over = both.secondary_host.nics[7].connect

    def connect(taps):
        copy.faults.add("cont")  # what lets it run, once
        handed_over(taps)

    both.secondary_host.nics[7].connect = connect
    both.p_inbox.put_stop(STOPPED)
    assert both.ended("primary") == 0
    assert both.p_monitor.state.reason == (
        "h1 is xb's since epoch 1, where it does not run yet; the copy of h1 here stands by, off the network."
    )
    assert VM in both.primary_host.domains
    eventually(lambda: both.copy.running, "it is tried again")


def test_a_primary_looks_for_its_secondary_whose_host_is_shut_down(pair):
    both = pair().start().replicating()
    both.secondary_host.shuts_down = True
    both.s_inbox.put_stop(STOPPED)
    assert both.ended("secondary") == 0
    said = both.phase("primary", "unprotected")
    assert (
        said == "The secondary on xb failed: The secondary's host is being shut down; h1 runs on unprotected."
    )
    assert both.copy is None
    assert both.s_monitor.state.phase == "stopped"
    assert "primary" not in both.exit_codes
    assert on_the_network(both.primary_host)
