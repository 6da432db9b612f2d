"""Both sides for real, over sockets, on the emulated hypervisor."""

from __future__ import annotations

import json
import random
import select

import pytest

from colo_helper.channel.session import Session
from colo_helper.channel.wire import Kind
from colo_helper.control.protocol import Request
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.monitor.monitor import boot_id
from colo_helper.monitor.watch import STUCK_S
from colo_helper.replication.conversation import STEP_TIMEOUT_S, Conversation
from colo_helper.replication.host import HostError
from colo_helper.replication.inbox import Inbox
from colo_helper.traffic.framing import FrameReader, RawFrame, pack
from tests.fuzz import seeds
from tests.unit.colo_helper.emulated_host import RING, EmulatedHost, running_guest
from tests.unit.colo_helper.proxy.frames import tcp
from tests.unit.colo_helper.replication_pair import VM, eventually, pairs
from tests.unit.colo_helper.test_watch import Clock

#: The timeout of a pair whose line is to be cut: the test waits for it.
BRIEF_MS = 1000


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr(
        "colo_helper.replication.decisions.primary.FIRST_RETRY_S", 3600.0
    )  # here a pair that was parted stays so
    with pairs() as make:
        yield make


def guest_memory(domain):
    return {gfn: bytes(page) for gfn, page in domain.memory.items() if gfn != RING}


def write_on_both(both, dice, epoch=0):
    both.both_run()
    for domain, mark in ((both.guest, b"P"), (both.copy, b"S")):
        for gfn in dice.sample(range(64), 20):
            domain.guest_write(gfn, mark + b"%d.%d" % (epoch, dice.randrange(10**9)))


def assert_primary_untouched(both, *, ended=True):
    """Whatever happened: the guest runs, nothing of ours is left on it, and it is on the network."""
    guest, devices = both.guest, both.primary_host.devices[3]
    assert guest.running
    assert guest.own_pauses == 0
    assert not guest.log_dirty
    assert not devices.logging
    assert devices.running
    assert devices.closed is ended
    assert {tap.bridge for tap in both.primary_host.nics[3].taps()} == {"xenbr0"}


def assert_copy_runs_off_the_network(both):
    assert both.copy.running
    assert both.copy.own_pauses == 0
    assert not both.copy.log_dirty
    assert not both.secondary_host.devices[7].logging
    assert both.secondary_host.devices[7].running
    assert {tap.bridge for tap in both.secondary_host.nics[7].taps()} == {""}


def test_after_every_epoch_the_copy_is_equal_although_both_sides_wrote(pair):
    both = pair().start().replicating()
    dice = random.Random(1)
    for epoch in range(1, 6):
        write_on_both(both, dice, epoch)
        both.guest.context = b"context %d" % epoch
        both.primary_host.devices[3].state = b"devices %d" % epoch
        record = both.ask("primary", "checkpoint")
        assert record["ok"] is True
        assert record["epoch"] == epoch
        assert record["a_pages"] == 20
        assert record["b_pages"] == 20
        assert record["d_pages"] == record["ahead_pages"] > 20
        assert record["sent_pages"] == 0
        assert guest_memory(both.copy) == guest_memory(both.guest)
        assert both.copy.context == b"context %d" % epoch
        assert both.secondary_host.devices[7].state == b"devices %d" % epoch
    assert both.p_monitor.state.totals.b_nonempty == 5
    assert set(record["phases_ms"]) == {"suspend", "memory", "devices", "resume"}
    assert_copy_runs_off_the_network_while_protected(both)


def assert_copy_runs_off_the_network_while_protected(both):
    both.both_run()
    assert both.copy.log_dirty
    assert {tap.bridge for tap in both.secondary_host.nics[7].taps()} == {""}


def test_a_checkpoint_that_takes_long_on_a_slow_link_is_not_taken_for_stuck(pair, monkeypatch):
    monkeypatch.setattr("colo_helper.replication.primary_epochs.MAX_CHUNK_BYTES", 4096)
    both = pair().start().replicating()
    both.both_run()
    for gfn in range(20, 40):
        both.guest.guest_write(gfn, random.Random(gfn).randbytes(16))
    clock, stuck = Clock(), []
    inboxes = (both.p_inbox, both.s_inbox)
    for inbox in inboxes:
        inbox.watch._clock = clock
        inbox.watch.look()
    send, sent = Session.send, []

    def send_slowly(self, kind, *rest):
        result = send(self, kind, *rest)
        if kind is Kind.STREAM:
            sent.append(kind)
            # The helper there reads on before the next frame comes.
            eventually(lambda: both.s_inbox.watch._looked_s == clock.now, "read on")
            clock.now += STUCK_S - 1
            stuck.extend(inbox.watch.stuck() for inbox in inboxes)
        return result

    monkeypatch.setattr(Session, "send", send_slowly)
    assert both.ask("primary", "checkpoint")["ok"] is True
    assert len(sent) > 5
    assert set(stuck) == {""}
    assert guest_memory(both.copy) == guest_memory(both.guest)


def test_a_secondary_is_given_time_for_a_checkpoint_of_many_pages(pair, monkeypatch):
    both = pair().start().replicating()
    both.both_run()
    expect, limits = Conversation.expect, {}

    def note(self, *kinds, timeout_s=STEP_TIMEOUT_S, **options):
        limits.update(dict.fromkeys(kinds, timeout_s))
        return expect(self, *kinds, timeout_s=timeout_s, **options)

    monkeypatch.setattr(Conversation, "expect", note)
    monkeypatch.setattr("colo_helper.replication.primary_epochs._PAGES_APPLIED_PER_S", 2)
    for gfn in range(7):
        both.guest.guest_write(gfn, b"changed")
    pages = both.ask("primary", "checkpoint")["d_pages"]
    assert pages >= 7
    assert limits[Kind.APPLIED] == limits[Kind.RECEIVED] == STEP_TIMEOUT_S + pages / 2


def test_without_the_back_channel_the_copies_would_differ(pair):
    """The proof that B matters: a page only the secondary wrote is overwritten by the primary's."""
    both = pair().start().replicating()
    both.both_run()
    both.copy.guest_write(5, b"only the secondary wrote this")
    record = both.ask("primary", "checkpoint")
    assert (record["a_pages"], record["b_pages"], record["ahead_pages"]) == (0, 1, 1)
    assert both.copy.memory[5] == both.guest.memory[5]


def test_the_hosts_own_frames_are_neither_sent_nor_unexplained(pair):
    both = pair().start().replicating()
    both.both_run()
    both.guest.guest_write(RING, b"the primary's xenstored")
    answer = both.ask("primary", "verify")
    assert answer["ok"] is True
    assert answer["pages_compared"] == 65
    assert answer["unexplained"] == []
    assert answer["different"] == [
        {
            "gfn": RING,
            "owner": "xenstore ring",
            "reason": "Each host's xenstored keeps its own indexes in this page.",
        }
    ]
    assert both.copy.memory[RING][:3] == b"\1\1\1"
    saved = json.loads((both.directory / "primary" / "verify.json").read_text())
    assert saved["pages_compared"] == 65


def test_verify_names_a_frame_that_differs_without_a_reason(pair):
    both = pair().start().replicating()
    both.both_run()
    both.copy.memory[9][0] ^= 1  # behind the dirty log's back
    answer = both.ask("primary", "verify")
    assert answer["unexplained"] == [9]
    assert both.ask("primary", "checkpoint")["ok"] is True


def holding_state(pair, **hosts):
    """A pair whose guest has a CPU and devices as Xen and QEMU describe them."""
    both = pair(**hosts).start().replicating()
    both.both_run()
    both.guest.context = seeds.hvm_context(rax=7, tsc=100)
    both.primary_host.devices[3].state = seeds.device_state(seconds=1)
    return both


def test_verify_shows_that_cpu_and_devices_are_equal(pair):
    both = holding_state(pair)
    state = both.ask("primary", "verify")["state"]
    nothing = {"different": [], "unexplained": []}
    assert state["cpu"] == {"bytes": len(both.guest.context), "records": 5, **nothing}
    assert state["devices"] == {"bytes": len(seeds.device_state()), "records": 3, **nothing}
    saved = json.loads((both.directory / "primary" / "verify.json").read_text())
    assert saved["state"] == state
    verified = next(event for event in both.events("primary") if event["event"] == "verified")
    assert verified["sentence"].endswith(
        "bytes of device state 0 fields differ for a known reason, 0 without one."
    )


def test_verify_names_what_differs_in_cpu_and_devices(pair):
    both = holding_state(pair)
    both.copy.get_context = lambda: seeds.hvm_context(rax=8, tsc=200)  # behind the checkpoint's back
    both.secondary_host.devices[7].save_state = lambda: seeds.device_state(seconds=2, nic=bytes(39) + b"!")
    answer = both.ask("primary", "verify")
    assert answer["unexplained"] == []
    cpu, devices = answer["state"]["cpu"], answer["state"]["devices"]
    assert [(one["field"], one["offset"]) for one in cpu["different"]] == [("rax", 512), ("tsc", 1008)]
    assert cpu["unexplained"] == [
        {
            "record": "CPU",
            "instance": 0,
            "field": "rax",
            "offset": 512,
            "length": 8,
            "reason": "Nothing known explains it: the copies are not equal.",
        }
    ]
    assert [(one["record"], one["field"]) for one in devices["different"]] == [
        ("mc146818rtc", "cmos_seconds"),
        ("e1000", ""),
    ]
    assert [(one["record"], one["offset"], one["length"]) for one in devices["unexplained"]] == [
        ("e1000", 39, 1)
    ]
    assert both.ask("primary", "checkpoint")["ok"] is True


@pytest.mark.parametrize(("release", "explained"), [("4.20", True), ("4.17", False)])
def test_a_section_of_another_device_models_layout_is_not_compared(pair, release, explained):
    both = holding_state(pair, secondary_host=EmulatedHost(release=release))
    both.secondary_host.devices[7].save_state = lambda: seeds.device_state(seconds=1, nic=bytes(44))
    devices = both.ask("primary", "verify")["state"]["devices"]
    assert [one["record"] for one in devices["different"]] == ["e1000"]
    assert (devices["unexplained"] == []) is explained
    assert ("The device models are of different releases" in devices["different"][0]["reason"]) is explained


def test_what_cannot_be_split_is_compared_all_the_same(pair):
    both = pair().start().replicating()
    both.both_run()
    both.copy.get_context = lambda: b"context X"
    cpu, devices = both.ask("primary", "verify")["state"].values()
    (found,) = cpu["unexplained"]
    assert (found["record"], found["offset"], found["length"]) == ("HVM context", 8, 1)
    assert found["reason"].endswith("more than the context.")  # why it could not be split
    assert devices["unexplained"] == []


def test_the_guest_grows_between_two_epochs(pair):
    both = pair().start().replicating()
    both.both_run()
    both.guest.size_frames = both.copy.size_frames = 9000
    for domain in (both.guest, both.copy):
        domain.guest_write(8999, b"new memory")
    both.guest.guest_write(8999, b"written later")
    both.ask("primary", "checkpoint")
    assert both.copy.memory[8999] == both.guest.memory[8999]


def test_the_clock_makes_checkpoints_by_itself(pair, monkeypatch):
    monkeypatch.setattr("tests.unit.colo_helper.replication_pair.INTERVAL_MS", 20)
    both = pair().start().replicating()
    eventually(lambda: both.p_monitor.state.totals.checkpoints >= 3, "three checkpoints")


# ------------------------------------------------------------------------------------------ the peer dies


@pytest.mark.parametrize(
    ("direction", "kind", "passed", "secondary_says"),
    [
        ("forward", Kind.SUSPEND, False, "the copy runs on, off the network"),
        ("back", Kind.BACK, False, "the partial checkpoint was dropped"),
        ("back", Kind.BACK, True, "the partial checkpoint was dropped"),
        ("forward", Kind.STREAM, False, "the partial checkpoint was dropped"),
        ("forward", Kind.STREAM, True, "the partial checkpoint was dropped"),
        ("forward", Kind.COMMIT, False, "the partial checkpoint was dropped"),
        ("forward", Kind.COMMIT, True, "; the copy runs on, off the network"),
        ("back", Kind.RECEIVED, False, "; the copy runs on, off the network"),
        ("back", Kind.RECEIVED, True, "; the copy runs on, off the network"),
        ("back", Kind.APPLIED, False, "; the copy runs on, off the network"),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else str(value)[:12],
)
def test_the_line_breaks_in_a_checkpoint(pair, direction, kind, passed, secondary_says):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    dice = random.Random(2)
    write_on_both(both, dice)
    both.ask("primary", "checkpoint")
    write_on_both(both, dice, 2)
    both.guest.context = b"the new context"
    before = guest_memory(both.copy)
    both.cut_at(direction, kind, passed=passed)
    both.ask_without_waiting("primary", "checkpoint")

    reason = both.phase("primary", "unprotected")
    assert reason.startswith("The secondary on xb was lost: ")
    assert reason.endswith("; h1 runs on unprotected.")
    assert "primary" not in both.exit_codes, "it looks for its secondary again"
    assert_primary_untouched(both, ended=False)

    reason = both.phase("secondary", "peer_lost")
    assert secondary_says in reason
    assert reason.endswith("off the network, until it is decided who goes on.")
    assert_copy_runs_off_the_network(both)
    if (kind, passed) == (Kind.COMMIT, True) or kind in (Kind.RECEIVED, Kind.APPLIED):  # then it is for good
        assert guest_memory(both.copy) == guest_memory(both.guest)
        assert both.copy.context == b"the new context"
    else:
        assert guest_memory(both.copy) == before
        assert both.copy.context == b"context 0"


def test_a_silent_peer_is_noticed_by_both_without_any_connection_closing(pair):
    both = pair(timeout_ms=500).start().replicating()
    both.freeze_line()
    assert "silent on every path for" in both.phase("primary", "unprotected")
    assert "silent on every path for" in both.phase("secondary", "peer_lost")
    assert_primary_untouched(both, ended=False)
    assert_copy_runs_off_the_network(both)


def test_a_quiet_hour_is_not_silence(pair):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    eventually(lambda: both.forward.count(Kind.BEAT) > 8 and both.back.count(Kind.BEAT) > 8, "beats")
    assert both.p_monitor.state.phase == "replicating"
    assert both.ask("primary", "checkpoint")["ok"] is True


# ----------------------------------------------------------------------------------- a connection breaks, the peer lives


@pytest.mark.parametrize("broken", ["forward", "back", "heartbeat"])
@pytest.mark.parametrize(
    ("direction", "kind"),
    [
        ("forward", Kind.SUSPEND),
        ("back", Kind.BACK),
        ("forward", Kind.STREAM),
        ("forward", Kind.COMMIT),
        ("back", Kind.RECEIVED),
        ("back", Kind.APPLIED),
        ("forward", Kind.RUN),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else value,
)
def test_the_checkpoint_goes_on_over_a_new_connection(pair, broken, direction, kind):
    """Whichever connection breaks at whichever frame, and whether that one had passed: nothing is lost, nothing twice."""
    both = pair().start().replicating()
    figures = both.primary.conversation.figures
    dice = random.Random(3)
    for times, passed in enumerate((False, True), 1):
        write_on_both(both, dice)
        both.guest.context = b"context %d" % passed
        both.line.on_cut = lambda: both.break_connection(broken)
        both.cut_at(direction, kind, passed=passed or broken != direction)
        record = both.ask("primary", "verify" if kind is Kind.RUN else "checkpoint")
        assert record["ok"] is True
        assert guest_memory(both.copy) == guest_memory(both.guest)
        assert both.copy.context == both.guest.context
        eventually(lambda want=times: figures()["reopened"][broken] == want, "the channel is there again")
    assert figures()["broken"] == {}
    assert both.ask("primary", "verify")["unexplained"] == []


def test_the_first_copy_goes_on_over_a_new_connection(pair):
    def cut(one):
        one.line.on_cut = lambda: one.break_connection("forward")
        one.line.cut = (Kind.CHUNK, 3)

    both = pair(before_link=cut).start().replicating()
    both.both_run()
    assert guest_memory(both.copy) == guest_memory(both.guest)


def test_a_channel_that_cannot_be_made_again_in_time_ends_the_session(pair):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    both.dialer.without.add("forward")
    both.break_connection("forward")
    reason = both.phase("primary", "unprotected")
    assert "The forward channel could not be made again for 1." in reason
    assert "Connection refused" in reason or "The peer gave the session up" in reason
    both.phase("secondary", "peer_lost")
    assert_primary_untouched(both, ended=False)
    assert_copy_runs_off_the_network(both)


def test_a_replicator_that_was_started_anew_does_not_take_the_session_on(pair):
    both = pair().start().replicating()
    both.listener._session = None  # what a new process knows
    both.break_connection("back")
    assert "does not know the session" in both.phase("primary", "unprotected")
    assert_primary_untouched(both, ended=False)


# ------------------------------------------------------------------------------------------ one side fails


@pytest.mark.parametrize("operation", ["pause", "clean_final", "get_context", "map"])
def test_the_primarys_hypervisor_fails_in_a_checkpoint(pair, operation):
    both = pair().start().replicating()
    both.both_run()
    both.guest.guest_write(1, b"x")
    both.guest.faults[operation] = 0
    both.ask_without_waiting("primary", "checkpoint")
    assert both.phase("primary", "unprotected") == (
        f"Xen refused to {operation} domain 3: EIO (scripted); h1 runs on unprotected, and it is tried again."
    )
    assert_primary_untouched(both, ended=False)
    reason = both.phase("secondary", "peer_lost")
    assert reason.startswith(f"The primary on xa gave up: Xen refused to {operation} domain 3")
    assert_copy_runs_off_the_network(both)


@pytest.mark.parametrize("operation", ["pause", "clean", "map_writable", "set_context"])
def test_the_secondarys_hypervisor_fails_in_a_checkpoint(pair, operation):
    both = pair().start().replicating()
    both.both_run()
    both.guest.guest_write(1, b"x")
    both.copy.faults[operation] = 0
    both.ask_without_waiting("primary", "checkpoint")
    assert both.phase("secondary", "waiting") == (
        f"Xen refused to {operation} domain 7: EIO (scripted); the copy of h1 cannot be used and was destroyed. "
        "Waiting for the primary to make another."
    )
    assert both.secondary_host.destroyed == [7]
    assert both.phase("primary", "unprotected").startswith("The secondary on xb failed: Xen refused to")
    assert_primary_untouched(both, ended=False)


@pytest.mark.parametrize("operation", ["stop", "save_state"])
def test_the_primarys_device_model_fails(pair, operation):
    both = pair().start().replicating()
    both.both_run()
    both.primary_host.devices[3].faults.add(operation)
    both.ask_without_waiting("primary", "checkpoint")
    assert "(scripted)" in both.phase("primary", "unprotected")
    assert_primary_untouched(both, ended=False)


def test_the_state_cannot_be_loaded_into_the_secondary(pair):
    both = pair().start().replicating()
    both.both_run()
    both.secondary_host.devices[7].faults.add("load_state")
    both.ask_without_waiting("primary", "checkpoint")
    assert "was destroyed" in both.phase("secondary", "waiting")
    both.phase("primary", "unprotected")
    assert both.copy is None


# ------------------------------------------------------------------------------------------ the first copy


def test_a_line_that_breaks_in_the_first_copy_leaves_nothing_behind(pair):
    def cut(one):
        one.line.cut = (Kind.CHUNK, 3)

    both = pair(timeout_ms=BRIEF_MS, before_link=cut).start()
    reason = both.phase("primary", "failed")
    assert reason.endswith("; h1 was not protected yet and runs on.")
    assert both.ended("primary") == 1
    assert_primary_untouched(both)
    eventually(
        lambda: "unfinished copy of h1 was destroyed" in both.s_monitor.state.reason, "the secondary waits"
    )
    assert both.s_monitor.state.phase == "waiting"
    assert both.copy is None


@pytest.mark.parametrize("operation", ["log_dirty_on", "map", "pause", "get_context"])
def test_a_first_copy_that_fails_leaves_the_guest_running(pair, operation):
    both = pair()
    both.guest.faults[operation] = 0
    both.start()
    reason = f"Xen refused to {operation} domain 3: EIO (scripted); h1 was not protected yet and runs on."
    assert both.phase("primary", "failed") == reason
    assert_primary_untouched(both)
    eventually(
        lambda: "gave up" in both.s_monitor.state.reason or "destroyed" in both.s_monitor.state.reason, "told"
    )
    assert both.copy is None


def test_the_guest_runs_on_while_its_copy_is_made(pair):
    """It stands still once, for the last round; what it writes while the peer builds a domain comes with epoch 0."""
    there = EmulatedHost()
    both = pair(secondary_host=there)
    build = there.restore

    def restore(vm):
        made = build(vm)
        finish = made.finish

        def slow_finish():
            eventually(
                lambda: both.guest.journal.count("unpause") == 1, "the guest runs while the copy is built"
            )
            assert both.guest.running
            for gfn in range(50):
                both.guest.guest_write(gfn, b"written while the copy was built")
            return finish()

        made.finish = slow_finish
        return made

    there.restore = restore
    both.start().replicating()
    assert guest_memory(both.copy) == guest_memory(both.guest)
    assert both.guest.journal.count("pause") == 2
    assert both.primary_host.devices[3].announced == 1
    assert both.ask("primary", "verify")["unexplained"] == []


def test_a_restore_that_fails_is_told_to_the_primary(pair):
    both = pair(secondary_host=EmulatedHost(refuse_restore=True)).start()
    assert "'xl restore -p' ended with status 3" in both.phase("primary", "failed")
    assert_primary_untouched(both)


def test_the_secondary_keeps_a_domain_that_was_there_before(pair):
    there = EmulatedHost()
    there.add(VM, EmulatedDomain(5))
    both = pair(secondary_host=there).start()
    reason = both.phase("primary", "failed")
    assert reason.startswith("The secondary's host already has a domain named h1 (number 5)")
    assert there.destroyed == []
    assert_primary_untouched(both)


RECEIVING = {"role": "secondary", "phase": "receiving", "boot_id": boot_id()}


def test_what_xl_made_of_a_copy_whose_replicator_was_killed_is_removed(pair):
    there = EmulatedHost()
    there.add(VM, EmulatedDomain(5, pause_count=1))
    both = pair(secondary_host=there, saved=RECEIVING).start().replicating()
    assert there.destroyed == [5]
    told = [event["sentence"] for event in both.events("secondary") if event["event"] == "discarded"]
    assert told == ["The unfinished copy of h1 (domain 5) was destroyed."]


@pytest.mark.parametrize(
    ("saved", "pauses"),
    [(RECEIVING, 0), ({**RECEIVING, "phase": "waiting"}, 1), ({**RECEIVING, "boot_id": "an earlier one"}, 1)],
)
def test_a_domain_that_runs_or_was_nobodys_copy_stays(pair, saved, pauses):
    there = EmulatedHost()
    there.add(VM, EmulatedDomain(5, pause_count=pauses))
    both = pair(secondary_host=there, saved=saved).start()
    assert "already has a domain named h1" in both.phase("primary", "failed")
    assert there.destroyed == []


@pytest.mark.parametrize(("here", "there", "works"), [("4.17", "4.20", True), ("4.20", "4.17", False)])
def test_pairs_of_xen_releases(pair, here, there, works):
    both = pair(primary_host=EmulatedHost(release=here), secondary_host=EmulatedHost(release=there)).start()
    if works:
        both.replicating()
    else:
        assert both.phase("primary", "failed").startswith(
            "A primary on Xen 4.20 cannot have a secondary on Xen 4.17"
        )
        assert both.guest.journal == ["close"]


def test_a_guest_with_pv_drivers_is_refused(pair):
    guest = running_guest()
    guest.pv_drivers = True
    here = EmulatedHost()
    here.add(VM, guest)
    both = pair(primary_host=here).start()
    assert "uses PV drivers" in both.phase("primary", "failed")


# ------------------------------------------------------------------------------------------ takeover and stop


def test_takeover_after_the_primary_died(pair):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    both.ask("primary", "checkpoint")
    both.both_run()
    both.cut_line()
    both.phase("secondary", "peer_lost")
    answer = both.ask("secondary", "takeover")
    assert answer["ok"] is True
    assert answer["phase"] == "active"
    assert {tap.bridge for tap in both.secondary_host.nics[7].taps()} == {"xenbr0"}
    assert both.secondary_host.devices[7].announced == 1
    assert both.copy.running
    both.s_inbox.put_stop("The service manager stopped the replicator.")
    assert both.ended("secondary") == 0
    assert both.copy.running
    assert both.s_monitor.state.phase == "active"


def test_a_takeover_that_fails_can_be_asked_again(pair):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    both.cut_line()
    both.phase("secondary", "peer_lost")
    nics = both.secondary_host.nics[7]
    nics.faults.add("connect")
    answer = both.ask("secondary", "takeover")
    assert (answer["ok"], answer["code"]) == (False, "takeover_failed")
    assert {tap.bridge for tap in nics.taps()} == {""}, "what is told to have failed has not half happened"
    assert both.saved_by("secondary")["phase"] == "peer_lost"
    both.secondary_host.devices[7].faults.add("announce")  # clients find it all the same
    assert both.ask("secondary", "takeover")["ok"] is True
    assert {tap.bridge for tap in nics.taps()} == {"xenbr0"}


def test_a_stop_that_its_dead_primary_cannot_confirm_leaves_the_copy(pair):
    """The service manager ends the program, not what may be all that is left of the VM."""
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    both.both_run()
    both.freeze_line()
    both.s_inbox.put_stop("The service manager stopped the replicator.")
    assert both.ended("secondary") == 0
    assert both.s_monitor.state.phase == "peer_lost"
    assert_copy_runs_off_the_network(both)


def test_an_operator_who_stops_the_side_of_a_dead_primary_has_to_look_again(pair):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    both.both_run()
    both.freeze_line()
    answer = both.ask("secondary", "stop")
    assert (answer["ok"], answer["code"]) == (False, "peer_lost")
    assert answer["error"].endswith("until it is decided who goes on. Look again, then ask again.")
    both.phase("secondary", "peer_lost")
    assert_copy_runs_off_the_network(both)
    assert both.ask("secondary", "takeover")["ok"] is True


def test_a_stop_that_was_asked_until_then_is_refused_although_nobody_has_read_it():
    inbox, request = Inbox(), Request("stop")
    inbox.put_request(request)
    inbox.refuse_stops("peer_lost", "It is so.")
    assert request.wait()["code"] == "peer_lost"
    assert inbox.stop_reason == ""


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_either_side_ends_the_protection_in_order(pair, role):
    both = pair().start().replicating()
    both.both_run()
    inbox = both.p_inbox if role == "primary" else both.s_inbox
    inbox.put_stop("An operator asked to stop.")
    assert both.phase("primary", "stopped") == "An operator asked to stop; h1 runs on unprotected."
    assert both.phase("secondary", "stopped") == "An operator asked to stop; the copy of h1 was destroyed."
    assert (both.ended("primary"), both.ended("secondary")) == (0, 0)
    assert_primary_untouched(both)
    assert both.secondary_host.destroyed == [7]


CONFIRMED = "It was confirmed with the VM's name."


def cannot_destroy(domid):
    raise HostError(f"'xl destroy {domid}' failed with status 1: no.")


STILL_THERE = (
    "The copy of h1 was to be destroyed, and may still be here: look with 'xl list'. "
    "'xl destroy 7' failed with status 1: no."
)


def test_a_copy_that_cannot_be_destroyed_is_not_said_to_be_gone(pair):
    both = pair().start().replicating()
    both.secondary_host.destroy = cannot_destroy
    both.p_inbox.put_stop("An operator asked to stop.")
    assert both.phase("primary", "stopped") == "An operator asked to stop; h1 runs on unprotected."
    assert both.phase("secondary", "failed") == STILL_THERE
    assert (both.ended("primary"), both.ended("secondary")) == (0, 1)
    assert "peer_not_told" in [event["event"] for event in both.events("primary")]


def test_nor_is_one_that_lost_its_primary(pair):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    both.cut_line()
    both.phase("secondary", "peer_lost")
    both.secondary_host.destroy = cannot_destroy
    both.ask_without_waiting("secondary", "stop", CONFIRMED)
    assert both.ended("secondary") == 1
    assert both.phase("secondary", "failed") == STILL_THERE


def test_what_was_held_leaves_at_an_orderly_end_only_when_the_copy_is_gone(pair):
    both = pair(output="hold").start().replicating()
    nic = both.primary_host.filters[both.primary_host.find(VM)].ends[0]
    destroy = both.secondary_host.destroy
    at_the_end = []

    def destroying(domid):
        nic.from_guest.sendall(pack(RawFrame(tcp(1, payload=b"held"), 0)))
        at_the_end.append(select.select([nic.to_network], [], [], 0.3)[0])
        destroy(domid)

    both.secondary_host.destroy = destroying
    both.p_inbox.put_stop("An operator asked to stop.")
    both.phase("secondary", "stopped")
    nic.to_network.settimeout(10)
    assert FrameReader().feed(nic.to_network.recv(1 << 16))[-1].data.endswith(b"held")
    assert at_the_end == [[]]


def test_an_operator_destroys_a_copy_that_lost_its_primary(pair):
    both = pair(timeout_ms=BRIEF_MS).start().replicating()
    both.cut_line()
    both.phase("secondary", "peer_lost")
    answer = both.ask("secondary", "stop")  # one that was on its way while there still was a primary
    assert (answer["ok"], answer["code"]) == (False, "alone")
    assert both.copy is not None
    both.ask_without_waiting("secondary", "stop", CONFIRMED)
    assert both.ended("secondary") == 0
    assert both.phase("secondary", "stopped") == "An operator asked to stop; the copy of h1 was destroyed."
    assert both.copy is None


def test_a_restarted_replicator_goes_on_with_the_copy_that_lost_its_primary(pair):
    there = EmulatedHost()
    there.add(VM, EmulatedDomain(5))
    there.nics[5].isolate()
    saved = {
        "role": "secondary",
        "phase": "peer_lost",
        "domid": 5,
        "boot_id": boot_id(),
        "reason": "It was lost.",
    }
    both = pair(secondary_host=there, saved=saved, only_secondary=True).start()
    assert both.phase("secondary", "peer_lost") == "Going on with domain 5: It was lost."
    assert both.ask("secondary", "takeover")["ok"] is True
