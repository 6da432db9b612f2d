"""A pair that was parted comes together again, and only what differs goes over: on the emulated hypervisor."""

from __future__ import annotations

import pytest

from colo_helper.channel.wire import Kind
from colo_helper.monitor.monitor import boot_id
from tests.unit.colo_helper.arbitrated import on_network
from tests.unit.colo_helper.emulated_host import EmulatedHost, running_guest
from tests.unit.colo_helper.replication_pair import VM, eventually, pairs_that_retry
from tests.unit.colo_helper.test_replication import (
    assert_copy_runs_off_the_network,
    assert_primary_untouched,
    guest_memory,
)

BRIEF_MS = 500


@pytest.fixture
def pair(monkeypatch):
    with pairs_that_retry(monkeypatch, BRIEF_MS) as make:
        yield make


def parted(pair, **options):
    """A pair that was protected, and then lost each other; both sides have written since."""
    both = pair(**options).start().replicating()
    assert both.ask("primary", "checkpoint")["epoch"] == 1
    both.cut_line()
    both.phase("primary", "unprotected")
    both.phase("secondary", "peer_lost")
    for gfn in (3, 4, 5):
        both.guest.guest_write(gfn, b"written while unprotected")
    for gfn in (5, 6):
        both.copy.guest_write(gfn, b"written by a copy alone")
    both.guest.context = b"the context now"
    return both


def assert_equal_again(both):
    assert both.both_run()
    assert guest_memory(both.copy) == guest_memory(both.guest)
    assert both.copy.context == both.guest.context
    assert both.copy.log_dirty
    assert both.guest.log_dirty
    assert {tap.bridge for tap in both.secondary_host.nics[7].taps()} == {""}
    assert both.ask("primary", "verify")["unexplained"] == []


def test_only_what_differs_goes_to_the_copy_of_a_secondary_that_was_lost(pair):
    both = parted(pair)
    chunks, pauses = both.forward.count(Kind.CHUNK), both.guest.journal.count("pause")
    both.mend_line()
    both.replicating()
    assert_equal_again(both)
    assert both.forward.count(Kind.CHUNK) == chunks, "no second first copy"
    assert both.guest.journal.count("pause") == pauses + 2, (
        "it stood still for the first checkpoint and for the verified one"
    )
    sentences = [event["sentence"] for event in both.events("primary") if event["event"] == "compared"]
    assert sentences[0].startswith("4 of 64 pages differ") or sentences[0].startswith("5 of 65 pages differ")
    assert both.p_monitor.state.epoch == 2, "epochs go on where they were"
    assert both.p_monitor.state.generation == both.s_monitor.state.generation != ""


def test_again_and_again(pair):
    both = parted(pair)
    for _ in range(3):
        both.mend_line()
        both.replicating()
        assert_equal_again(both)
        both.cut_line()
        both.phase("primary", "unprotected")
        both.phase("secondary", "peer_lost")
        both.guest.guest_write(9, b"more")
    assert_primary_untouched(both, ended=False)
    assert_copy_runs_off_the_network(both)


@pytest.mark.parametrize(
    ("direction", "kind"),
    [
        ("forward", Kind.RESYNC),
        ("back", Kind.COPIED),
        ("forward", Kind.HASH),
        ("back", Kind.HASHES),
        ("forward", Kind.ARM),
        ("back", Kind.ARMED),
        ("forward", Kind.STREAM),
        ("forward", Kind.COMMIT),
        ("back", Kind.RECEIVED),
        ("back", Kind.APPLIED),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else value,
)
@pytest.mark.parametrize("passed", [False, True])
def test_parted_once_more_at_any_step(pair, direction, kind, passed):
    """The copy is its own state or the primary's, never a mixture, and it runs on from that; then the two find together."""
    both = parted(pair)
    own, context = guest_memory(both.copy), both.copy.context
    both.cut_at(direction, kind, passed=passed)
    both.mend_line()
    eventually(lambda: both.line.cut is None, "the cut")
    both.phase("primary", "unprotected")
    both.phase("secondary", "peer_lost")
    assert_primary_untouched(both, ended=False)
    assert_copy_runs_off_the_network(both)
    found = guest_memory(both.copy), both.copy.context
    assert found in ((own, context), (guest_memory(both.guest), both.guest.context))
    if kind in (Kind.RECEIVED, Kind.APPLIED) or (kind is Kind.COMMIT and passed):
        assert found[1] == both.guest.context
    both.mend_line()
    both.replicating()
    assert_equal_again(both)


def test_a_secondary_whose_replicator_was_killed_is_taken_up(pair, tmp_path):
    """The new replicator finds the copy as the old one left it: it stands still in the middle of a checkpoint."""
    first = parted(pair, secondary_host=EmulatedHost(run_dir=tmp_path))
    host, saved = first.secondary_host, first.saved_by("secondary") | {"phase": "replicating"}
    copy = first.copy
    copy.pause_count, copy.log_dirty = 1, True  # as a killed replicator leaves it
    (tmp_path / "held").touch()
    p_saved = first.saved_by("primary")
    first.close_replicators()
    both = pair(primary_host=first.primary_host, secondary_host=host, saved=saved, p_saved=p_saved).start()
    both.replicating()
    assert "was started anew" in both.events("secondary")[0]["sentence"]
    assert_equal_again(both)


def test_a_copy_that_was_being_changed_is_made_whole_and_never_taken_over(pair, tmp_path):
    first = parted(pair, secondary_host=EmulatedHost(run_dir=tmp_path))
    saved, p_saved = first.saved_by("secondary") | {"phase": "replicating"}, first.saved_by("primary")
    first.copy.pause_count = 1
    first.copy.memory[7][:] = b"\5" * 4096  # half of a checkpoint
    for mark in ("held", "torn"):
        (tmp_path / mark).touch()
    first.close_replicators()
    alone = pair(secondary_host=first.secondary_host, saved=saved, only_secondary=True).start()
    assert "neither of two states" in alone.phase("secondary", "torn")
    assert not alone.copy.running
    alone.close_replicators()
    both = pair(
        primary_host=first.primary_host,
        secondary_host=first.secondary_host,
        saved=alone.saved_by("secondary"),
        p_saved=p_saved,
    ).start()
    both.replicating()
    assert_equal_again(both)
    assert not (tmp_path / "torn").exists()


def test_a_primary_whose_replicator_was_killed_lets_the_guest_run_and_goes_on(pair, tmp_path):
    first = parted(pair, primary_host=EmulatedHost(run_dir=tmp_path))
    guest, devices = first.guest, first.primary_host.devices[3]
    guest.pause_count, guest.log_dirty, devices.running = 1, True, False
    (tmp_path / "held").touch()
    p_saved, saved = first.saved_by("primary") | {"phase": "replicating"}, first.saved_by("secondary")
    first.close_replicators()
    both = pair(
        primary_host=first.primary_host, secondary_host=first.secondary_host, saved=saved, p_saved=p_saved
    )
    both.dialer.without = {"forward"}
    both.start()
    both.phase("primary", "unprotected")
    assert_primary_untouched(both, ended=False)
    both.dialer.without = set()
    both.replicating()
    assert_equal_again(both)


def test_a_copy_of_something_else_is_refused_and_stays(pair):
    first = parted(pair)
    saved, p_saved = first.saved_by("secondary"), first.saved_by("primary") | {"generation": "another"}
    first.close_replicators()
    both = pair(
        primary_host=first.primary_host, secondary_host=first.secondary_host, saved=saved, p_saved=p_saved
    ).start()
    assert "is of another first copy than this primary's" in both.phase("primary", "unprotected")
    assert both.ended("primary") == 1
    assert both.s_monitor.state.phase == "peer_lost"
    assert_copy_runs_off_the_network(both)
    assert both.ask("secondary", "takeover")["ok"] is True


def test_a_primary_whose_copy_was_taken_over_is_not_the_vm_any_more(pair):
    both = parted(pair)
    assert both.ask("secondary", "takeover")["ok"] is True
    both.mend_line()
    said = both.phase("primary", "standby")
    assert said.startswith("h1 was taken over and is active there: ")
    assert both.ended("primary") == 0
    assert both.p_monitor.state.role == "secondary"
    assert not both.guest.running
    assert not on_network(both.primary_host)
    assert on_network(both.secondary_host)
    assert both.copy.running


def test_a_guest_that_was_started_anew_beside_the_copy_that_took_over_is_not_the_vm(pair):
    first = parted(pair)
    assert first.ask("secondary", "takeover")["ok"] is True
    rebooted = EmulatedHost()
    rebooted.add(VM, running_guest(3))
    both = pair(
        primary_host=rebooted,
        secondary_host=first.secondary_host,
        saved=first.saved_by("secondary"),
        p_saved=first.saved_by("primary") | {"boot_id": "of another boot"},
    )
    first.close_replicators()
    both.start()
    both.phase("primary", "standby")
    assert not on_network(rebooted)
    assert on_network(both.secondary_host)


def test_a_copy_goes_with_its_host(pair):
    both = parted(pair)
    both.secondary_host.shuts_down = True
    both.s_inbox.put_stop("The service manager stopped the replicator (SIGTERM).")
    assert both.ended("secondary") == 0
    assert both.s_monitor.state.phase == "stopped"
    assert both.copy is None


@pytest.mark.parametrize("change", ["another first copy", "a copy that has ended"])
def test_a_primary_goes_on_when_what_took_over_is_not_its_copy_or_runs_no_more(pair, change):
    first = parted(pair)
    assert first.ask("secondary", "takeover")["ok"] is True
    p_saved = first.saved_by("primary")
    if change == "another first copy":
        p_saved |= {"generation": "another"}
    else:
        first.copy.ended = "poweroff"
    both = pair(
        primary_host=first.primary_host,
        secondary_host=first.secondary_host,
        saved=first.saved_by("secondary"),
        p_saved=p_saved,
    )
    first.close_replicators()
    both.start()
    eventually(lambda: "was taken over and is active there" in both.p_monitor.state.reason, "the reason")
    assert both.p_monitor.state.phase == "unprotected"
    assert both.guest.running
    assert on_network(both.primary_host)
    assert boot_id() == both.saved_by("primary")["boot_id"]
