"""What becomes of the protection when the guest itself changes: on the emulated hypervisor.

It reboots, crashes, is shut down, paused, saved or migrated by somebody else, or its copy ends alone.
"""

from __future__ import annotations

import threading

import pytest

from colo_helper.channel.wire import Kind
from colo_helper.control.protocol import Request
from colo_helper.devices.interface import DeviceError
from colo_helper.hypervisor.dirty_log import DirtyLog, LogLostError
from colo_helper.monitor.monitor import boot_id
from colo_helper.replication.decisions.primary import retry_wait
from colo_helper.replication.decisions.session import Cause
from tests.unit.colo_helper.emulated_host import RING, EmulatedHost, running_guest
from tests.unit.colo_helper.replication_pair import VM, eventually, pairs
from tests.unit.colo_helper.test_rejoin import assert_equal_again


@pytest.fixture
def pair(monkeypatch):
    for name in ("FIRST_RETRY_S", "AWAIT_S"):
        monkeypatch.setattr(f"colo_helper.replication.decisions.primary.{name}", 0.05)
    monkeypatch.setattr("colo_helper.replication.decisions.primary.LAST_RETRY_S", 0.2)
    with pairs(timeout_ms=500) as make:
        yield make


def protected(pair, **options):
    both = pair(**options).start().replicating()
    assert both.ask("primary", "checkpoint")["epoch"] == 1
    both.both_run()
    return both


def reboot(both, domid=11):
    """The toolstack destroys the domain and builds another one of that name, which is paused until it is whole."""
    both.primary_host.domains.clear()
    fresh = running_guest(domid)
    fresh.pause_count = 1
    fresh.guest_write(9, b"booted anew")
    both.primary_host.add(VM, fresh)
    return fresh


def events(both, role, name):
    """Sentences of an event, of which there must be one sooner or later."""
    return eventually(
        lambda: [event["sentence"] for event in both.events(role) if event["event"] == name], f"event {name}"
    )


# ------------------------------------------------------------------------------------------- somebody reads the log


def test_the_mark_is_not_part_of_what_the_guest_wrote():
    domain = running_guest()
    log = DirtyLog(domain)
    log.start()
    domain.guest_write(5, b"x")
    assert list(log.clean(final=False).gfns()) == [5]
    assert list(log.clean(final=True).gfns()) == []


@pytest.mark.parametrize("guarded", [False, True])
def test_a_log_that_somebody_else_has_read_is_lost(guarded):
    domain = running_guest()
    log = DirtyLog(domain, guarded=guarded)
    log.start()
    domain.guest_write(5, b"x")
    domain.clean_dirty(final=False)  # xl migrate's helper
    if not guarded:
        assert list(log.clean(final=False).gfns()) == []
    else:
        with pytest.raises(
            LogLostError, match=r"Somebody else has read the dirty log of domain 3 \(an xl save"
        ):
            log.clean(final=False)


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_what_somebody_else_took_from_the_log_is_found_by_comparing(pair, side):
    both = protected(pair)
    domain = both.guest if side == "primary" else both.copy
    domain.guest_write(5, b"only here")
    domain.clean_dirty(final=False)
    both.ask_without_waiting("primary", "checkpoint")
    assert "Somebody else has read the dirty log of domain" in events(both, "primary", "unprotected")[0]
    both.replicating()
    made_anew = side == "secondary"  # a copy that failed
    assert both.forward.count(Kind.RESYNC) == (0 if made_anew else 1)
    assert both.forward.count(Kind.COPY) == (2 if made_anew else 1)
    assert_equal_again(both)


# ------------------------------------------------------------------------------------------------ the guest ends


@pytest.mark.parametrize("reason", ["reboot", "poweroff"])
def test_a_guest_that_ends_gives_up_its_copy_and_is_protected_again_when_it_runs(pair, reason):
    both = protected(pair)
    old = both.s_monitor.state.generation
    both.guest.ended = reason
    both.ask_without_waiting("primary", "checkpoint")
    both.phase("primary", "awaiting_guest")
    assert events(both, "primary", "awaiting_guest")[0] == (
        f"h1 has ended by itself ({reason}); its copy on xb is given up. h1 is protected again when it runs."
    )
    both.phase("secondary", "waiting")
    assert both.secondary_host.destroyed == [7]
    assert both.guest.own_pauses == 0
    assert both.saved_by("primary")["ended_generation"] == old, "known to whoever comes after a crash"
    both.secondary_host.next_domid = 8
    half_built = threading.Event()

    def prepare(_domain, _devices):
        if not half_built.is_set():
            half_built.set()
            raise DeviceError("The device model cannot be reached (scripted).")

    both.primary_host.prepare = prepare
    fresh = reboot(both)
    eventually(
        lambda: "(number 11) does not run" in both.p_monitor.state.reason, "it is seen, and waited for"
    )
    assert both.copy is None
    fresh.pause_count = 0
    both.replicating()
    assert both.s_monitor.state.generation not in ("", old)
    assert both.both_run()
    assert both.copy.memory[9].startswith(b"booted anew")
    assert both.ask("primary", "verify")["unexplained"] == []


def test_a_domain_that_is_gone_at_once_is_one_that_ended(pair):
    both = protected(pair)
    gone = both.guest
    gone.gone = True
    both.primary_host.domains.clear()
    both.ask_without_waiting("primary", "checkpoint")
    both.phase("primary", "awaiting_guest")
    assert events(both, "primary", "awaiting_guest")[0].startswith(
        "h1 is gone from this host: it has rebooted, or it was shut"
    )
    both.phase("secondary", "peer_lost")
    assert both.copy.running


@pytest.mark.parametrize("reason", ["crash", "watchdog"])
def test_the_copy_of_a_guest_that_crashed_is_kept_until_another_guest_runs(pair, reason):
    """The host may be to blame: an operator can still let the copy take over."""
    both = protected(pair)
    both.guest.ended = reason
    both.ask_without_waiting("primary", "checkpoint")
    assert events(both, "primary", "awaiting_guest")[0] == (
        f"h1 has ended by itself ({reason}); its copy on xb is kept, off the network. h1 is protected again when it runs."
    )
    both.phase("secondary", "peer_lost")
    assert both.copy.domid == 7
    both.secondary_host.next_domid = 8
    reboot(both).pause_count = 0
    both.replicating()
    assert events(both, "secondary", "discarded") == ["The guest that the copy of h1 comes from has ended."]
    assert both.copy.domid == 8
    assert both.ask("primary", "verify")["unexplained"] == []


def test_a_takeover_that_was_asked_while_the_primary_came_back_does_not_happen_later(pair):
    both = protected(pair)
    both.cut_line()
    both.phase("secondary", "peer_lost")
    both.phase("primary", "unprotected")
    both.mend_line()
    both.phase("secondary", "resyncing")
    late = Request("takeover")
    both.s_inbox.put_request(late)
    both.replicating()
    both.cut_line()
    answer = late._answer.get(timeout=10)
    assert (answer["ok"], answer["code"]) == (False, "primary_alive")
    both.phase("secondary", "peer_lost")
    assert {tap.bridge for tap in both.secondary_host.nics[7].taps()} == {""}


def test_a_guest_that_cannot_be_protected_any_more_is_not(pair):
    both = protected(pair)
    both.guest.ended = "reboot"
    both.ask_without_waiting("primary", "checkpoint")
    both.phase("secondary", "waiting")
    fresh = reboot(both)
    fresh.pv_drivers = True
    fresh.pause_count = 0
    assert both.phase("primary", "failed").startswith("h1 uses PV drivers")
    assert both.ended("primary") == 1
    assert both.copy is None
    assert both.primary_host.devices[11].closed


def test_the_log_of_a_guest_that_another_program_saves_is_left_alone(pair):
    both = protected(pair)
    both.guest.others = True
    both.guest.clean_dirty(final=False)
    both.ask_without_waiting("primary", "checkpoint")
    both.phase("primary", "unprotected")
    assert both.guest.log_dirty
    assert both.primary_host.devices[3].logging
    both.guest.others = False
    both.replicating()
    assert_equal_again(both)


def test_a_secondary_that_was_away_when_the_guest_ended_gives_its_copy_up_when_it_is_back(pair):
    both = protected(pair)
    both.cut_line()
    both.phase("secondary", "peer_lost")
    both.phase("primary", "unprotected")
    both.guest.ended = "reboot"
    reboot(both).pause_count = 0
    both.mend_line()
    both.replicating()
    assert events(both, "secondary", "discarded") == ["The guest that the copy of h1 comes from has ended."]
    assert both.secondary_host.destroyed == [7]
    assert both.ask("primary", "verify")["unexplained"] == []


def test_an_operator_ends_the_wait_for_a_guest(pair):
    both = protected(pair)
    both.guest.ended = "poweroff"
    both.ask_without_waiting("primary", "checkpoint")
    both.phase("primary", "awaiting_guest")
    both.p_inbox.put_stop("Enough.")
    assert both.ended("primary") == 0


@pytest.mark.parametrize(
    ("saved", "waits"),
    [
        ({"phase": "awaiting_guest", "ended_generation": "abc"}, True),
        ({"phase": "unprotected", "generation": "", "ended_generation": "abc"}, False),
        ({"phase": "replicating", "generation": "abc"}, False),
        ({"phase": "replicating", "generation": "abc", "boot_id": "of another boot"}, True),
        ({"phase": "stopped", "generation": "abc"}, False),
    ],
)
def test_a_replicator_that_comes_after_a_crash_knows_that_the_guest_had_ended(pair, saved, waits):
    host = EmulatedHost()
    host.domains["another"] = running_guest(4)
    both = pair(
        primary_host=host, p_saved={"role": "primary", "boot_id": boot_id(), "domid": 3, **saved}
    ).start()
    if waits:
        assert both.phase("primary", "awaiting_guest") == (
            "There is no domain named h1 on this host. It is protected again when it runs."
        )
        assert both.p_monitor.state.ended_generation == saved.get("ended_generation", "")
    else:
        assert both.phase("primary", "failed") == "There is no domain named h1 on this host."
        assert both.p_monitor.state.ended_generation == saved.get("ended_generation", "")


# -------------------------------------------------------------------------------------------------- and the rest


def test_a_copy_that_ends_alone_is_replaced(pair):
    both = protected(pair)
    both.copy.ended = "crash"
    both.secondary_host.next_domid = 8
    both.ask_without_waiting("primary", "checkpoint")
    eventually(lambda: both.copy and both.copy.domid == 8, "another copy")
    both.replicating()
    assert any(
        "The copy, domain 7, has ended by itself (crash)" in e["sentence"] for e in both.events("primary")
    )
    assert both.both_run()
    assert both.ask("primary", "verify")["unexplained"] == []


def test_a_copy_that_has_ended_alone_does_not_take_over(pair):
    both = protected(pair)
    both.cut_line()
    both.phase("secondary", "peer_lost")
    both.copy.ended = "poweroff"
    answer = both.ask("secondary", "takeover")
    assert (answer["ok"], answer["code"]) == (False, "takeover_failed")
    assert answer["error"] == "Domain 7, the copy, has ended by itself (poweroff)."
    assert {tap.bridge for tap in both.secondary_host.nics[7].taps()} == {""}


def test_a_guest_that_somebody_pauses_stays_paused_and_is_protected(pair):
    both = protected(pair)
    both.guest.pause_count += 1  # xl pause
    both.guest.guest_write(5, b"before it was paused")
    for _ in range(3):
        assert both.ask("primary", "checkpoint")["ok"]
    assert both.guest.pause_count == 1
    both.guest.pause_count -= 1  # xl unpause
    assert both.both_run()
    assert both.copy.memory[5] == both.guest.memory[5]


def test_a_pair_that_fails_again_and_again_is_not_copied_all_the_time(pair):
    both = protected(pair)
    assert RING in both.guest.memory
    waits, wait = [], 0.0
    for _ in range(5):
        wait = retry_wait(wait, Cause.PEER_FAILED, checkpoints=1)
        waits.append(wait)
    assert waits == [0.05, 0.1, 0.2, 0.2, 0.2]
    assert retry_wait(30.0, Cause.PEER_LOST, checkpoints=2) == 0.05
