"""Configuration and decisions: every rule with the sentence it gives."""

from __future__ import annotations

import json

import pytest

from colo_helper.monitor.state import SECONDARY_PHASES
from colo_helper.replication.config import ArbiterConfig, ConfigError, load_config, parse_config
from colo_helper.replication.decisions.primary import (
    GuestFacts,
    Idle,
    PrimaryStep,
    beginning,
    cause_behind,
    guest_refusal,
    idle_step,
    primary_end,
    primary_start,
    still_booting,
)
from colo_helper.replication.decisions.refusals import attach_refusal, verb_refusal
from colo_helper.replication.decisions.secondary import (
    SecondaryEnd,
    SecondaryStart,
    Step,
    secondary_end,
    secondary_start,
)
from colo_helper.replication.decisions.session import Cause, pair_refusal

PRIMARY = {
    "format": 1,
    "vm": "h1",
    "role": "primary",
    "peer": {"name": "xb", "address": "192.168.77.2", "port": 22},
    "interval_ms": 1000,
    "peer_timeout_ms": 5000,
    "bridge": "xenbr0",
}
ARBITER = {
    "endpoints": ["https://xc:2379", "https://[fd00::3]"],
    "host": "xa",
    "lease_s": 5,
    "ca": "/etc/colo/arbiter/ca.pem",
    "certificate": "/etc/colo/arbiter/xa.pem",
    "key": "/etc/colo/arbiter/xa.key",
}
SECONDARY = {key: PRIMARY[key] for key in ("format", "vm", "peer_timeout_ms", "bridge")} | {
    "role": "secondary",
    "peer": {"name": "xa"},
}


def test_the_documented_configurations(tmp_path):
    path = tmp_path / "h1.json"
    path.write_text(json.dumps(PRIMARY))
    config = load_config(path, "h1")
    assert (config.peer_name, config.peer_address, config.peer_port, config.interval_ms) == (
        "xb",
        "192.168.77.2",
        22,
        1000,
    )
    assert parse_config(SECONDARY, "h1").peer_name == "xa"
    for side in (PRIMARY, SECONDARY):
        assert parse_config(side, "h1").arbiter is None
        asked = parse_config({**side, "arbiter": ARBITER}, "h1").arbiter
        assert asked == ArbiterConfig(**{**ARBITER, "endpoints": tuple(ARBITER["endpoints"])})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "field 'format' is 2, this program reads 1."),
        ({"vm": "a/b"}, "field 'vm' is 'a/b', which is not the name of a VM."),
        ({"vm": "a..b"}, "field 'vm' is 'a..b', which is not the name of a VM."),
        ({"vm": "h2"}, "field 'vm' is 'h2', the file is 'h1''s."),
        ({"role": "third"}, "field 'role' is 'third', neither 'primary' nor 'secondary'."),
        ({"peer": "xb"}, "field 'peer' is not an object."),
        ({"peer": {"name": "xb"}}, "field 'peer.address' is None, not a text."),
        (
            {"peer": {"name": "xb", "address": "x", "port": 0}},
            "field 'peer.port' is 0, not a whole number from 1 to 65535.",
        ),
        ({"interval_ms": True}, "field 'interval_ms' is True, not a whole number from 10 to 3600000."),
        (
            {"peer_timeout_ms": "5000"},
            "field 'peer_timeout_ms' is '5000', not a whole number from 500 to 600000.",
        ),
        (
            {"bridge": "xenbr0; reboot"},
            "field 'bridge' is 'xenbr0; reboot', which is not the name of an interface.",
        ),
        ({"arbiter": "xc"}, "field 'arbiter' is not an object."),
        ({"arbiter": {"endpoints": []}}, "field 'arbiter.endpoints' is [], not a list of URLs."),
        (
            {"arbiter": {"endpoints": ["xc:2379"]}},
            "field 'arbiter.endpoints' has 'xc:2379', which is not like https://witness:2379.",
        ),
        ({"arbiter": {**ARBITER, "host": ""}}, "field 'arbiter.host' is '', not a text."),
        (
            {"arbiter": {**ARBITER, "lease_s": 2}},
            "field 'arbiter.lease_s' is 2, not a whole number from 3 to 600.",
        ),
        ({"arbiter": {**ARBITER, "key": ""}}, "field 'arbiter.key' is '', not the path of a PEM file."),
        (
            {"arbiter": ARBITER, "output": "free"},
            "field 'output' is 'free', and with an arbiter it cannot be: what leaves at once cannot be stopped when the lease "
            "ends; 'compare' and 'hold' can.",
        ),
    ],
)
def test_configurations_that_are_refused_by_field(change, sentence):
    with pytest.raises(ConfigError) as caught:
        parse_config(PRIMARY | change, "h1")
    assert str(caught.value) == sentence


def test_a_configuration_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"h1\.json cannot be read: No such file or directory\."):
        load_config(tmp_path / "h1.json", "h1")
    (tmp_path / "h1.json").write_text("{")
    with pytest.raises(ConfigError, match=r"h1\.json is not JSON"):
        load_config(tmp_path / "h1.json", "h1")


@pytest.mark.parametrize(
    ("primary", "secondary", "works"),
    [
        ("4.17", "4.17", True),
        ("4.20", "4.20", True),
        ("4.17", "4.20", True),
        ("4.20", "4.17", False),
        ("4.17", "4.18", False),
    ],
)
def test_pairs(primary, secondary, works):
    refusal = pair_refusal(primary, secondary)
    assert (refusal == "") is works
    assert works or refusal.endswith("Upgrade the host with the older one, then run playbooks/protect.yml.")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (GuestFacts("h1", True, False, False, (), frozenset({"xenbr0"}), "xenbr0"), ""),
        (GuestFacts("h1", True, False, False, (), frozenset(), "xenbr0"), ""),
        (
            GuestFacts("h1", True, False, False, (), frozenset({"xenbr0", "xenbr2", "xenbr1"}), "xenbr0"),
            "h1 has a network card on xenbr1, xenbr2, and its copy would have it on xenbr0: set its bridge in colo_vms, or put "
            "all of its cards on one.",
        ),
        (
            GuestFacts("h1", False, False, False, (), frozenset(), "xenbr0"),
            "h1 is not an HVM guest; only those can be replaced while they run.",
        ),
        (GuestFacts("h1", True, True, False, (), frozenset(), "xenbr0"), "h1 is shut down or suspended."),
        (
            GuestFacts("h1", True, False, True, (), frozenset(), "xenbr0"),
            "h1 uses PV drivers, which cannot be stopped without its help; start it with 'xen_nopv'.",
        ),
        (
            GuestFacts("h1", True, False, False, ("ide0",), frozenset(), "xenbr0"),
            "h1 can write to the disks ide0, which are not copied yet.",
        ),
    ],
)
def test_guests(facts, sentence):
    assert guest_refusal(facts) == sentence


@pytest.mark.parametrize(
    ("idle", "action", "sentence"),
    [
        (Idle(1.0, 2.0, "", ""), "wait", "The interval has not passed yet."),
        (Idle(2.0, 2.0, "", ""), "checkpoint", "The interval has passed."),
        (Idle(1.0, 2.0, "", "verify"), "checkpoint", "A checkpoint was asked for (verify)."),
        (Idle(2.0, 2.0, "Enough.", "verify"), "stop", "Enough."),
    ],
)
def test_idle(idle, action, sentence):
    step = idle_step(idle)
    assert (step.action, step.sentence) == (action, sentence)
    assert step.wait_s == (1.0 if action == "wait" else 0.0)


@pytest.mark.parametrize(
    ("step", "cause", "phase", "tell", "code", "sentence"),
    [
        (PrimaryStep.NO_GUEST, Cause.LOCAL_ERROR, "failed", "", 1, "It is so."),
        (PrimaryStep.NO_GUEST, Cause.STOP, "stopped", "", 0, "It is so."),
        (PrimaryStep.UNPROTECTED, Cause.STOP, "stopped", "end", 0, "It is so; h1 runs on unprotected."),
        (PrimaryStep.UNPROTECTED, Cause.PEER_LOST, "failed", "", 1, "It is so; h1 was not protected yet and runs on."),
        (PrimaryStep.UNPROTECTED, Cause.LOCAL_ERROR, "failed", "abort", 1, "It is so; h1 was not protected yet and runs on."),
        (PrimaryStep.PROTECTED, Cause.STOP, "stopped", "end", 0, "It is so; h1 runs on unprotected."),
        (
            PrimaryStep.PROTECTED, Cause.LOCAL_ERROR, "unprotected", "abort", None,
            "It is so; h1 runs on unprotected, and it is tried again.",
        ),
        (
            PrimaryStep.PROTECTED, Cause.PEER_FAILED, "unprotected", "", None,
            "The secondary on xb failed: It is so; h1 runs on unprotected.",
        ),
        (
            PrimaryStep.PROTECTED, Cause.GUEST_ENDED, "awaiting_guest", "renew", None,
            "It is so; its copy on xb is given up. h1 is protected again when it runs.",
        ),
        (
            PrimaryStep.UNPROTECTED, Cause.GUEST_ENDED, "awaiting_guest", "renew", None,
            "It is so; its copy on xb is given up. h1 is protected again when it runs.",
        ),
        (
            PrimaryStep.PROTECTED, Cause.GUEST_DIED, "awaiting_guest", "keep", None,
            "It is so; its copy on xb is kept, off the network. h1 is protected again when it runs.",
        ),
        (
            PrimaryStep.NO_GUEST, Cause.GUEST_ENDED, "awaiting_guest", "", None,
            "It is so. It is protected again when it runs.",
        ),
        (
            PrimaryStep.PROTECTED, Cause.NO_DEVICES, "unprotected", "keep", None,
            "It is so; h1 stays as it is. 'xl destroy h1' ends it here; then playbooks/failover.yml lets its copy on xb, if "
            "there is one, go on.",
        ),
        (
            PrimaryStep.UNPROTECTED, Cause.NO_DEVICES, "failed", "keep", 1,
            "It is so; h1 was not protected yet.",
        ),
        (
            PrimaryStep.PROTECTED, Cause.PEER_LOST, "unprotected", "", None,
            "The secondary on xb was lost: It is so; h1 runs on unprotected.",
        ),
        (
            PrimaryStep.PROTECTED, Cause.PEER_REFUSED, "unprotected", "", 1,
            "The secondary on xb gave up: It is so; h1 runs on unprotected.",
        ),
    ],
)  # fmt: skip
def test_how_the_primary_ends(step, cause, phase, tell, code, sentence):
    end = primary_end("h1", "xb", step, cause, "It is so.")
    assert (end.phase, end.tell, end.exit_code, end.sentence) == (phase, tell, code, sentence)


@pytest.mark.parametrize(
    ("cause", "ended", "shared", "by_service", "behind"),
    [
        (Cause.LOCAL_ERROR, None, True, False, Cause.LOCAL_ERROR),
        (Cause.LOCAL_ERROR, Cause.NO_DEVICES, True, False, Cause.NO_DEVICES),
        (Cause.LOCAL_ERROR, Cause.GUEST_DIED, True, False, Cause.GUEST_DIED),
        (Cause.PEER_LOST, Cause.NO_DEVICES, True, False, Cause.NO_DEVICES),
        (Cause.PEER_FAILED, Cause.NO_DEVICES, True, False, Cause.PEER_FAILED),
        (Cause.PEER_REFUSED, Cause.NO_DEVICES, True, False, Cause.PEER_REFUSED),
        (Cause.PEER_FAILED, Cause.GUEST_ENDED, True, False, Cause.GUEST_ENDED),
        (Cause.STOP, Cause.GUEST_ENDED, True, False, Cause.STOP),
        (Cause.STOP, Cause.GUEST_DIED, True, False, Cause.GUEST_DIED),
        (Cause.STOP, Cause.NO_DEVICES, False, False, Cause.NO_DEVICES),
        (Cause.STOP, Cause.NO_DEVICES, True, True, Cause.NO_DEVICES),
        (Cause.STOP, Cause.NO_DEVICES, False, True, Cause.STOP),
        (Cause.SUCCEEDED, Cause.NO_DEVICES, False, False, Cause.GIVEN_UP),
        (Cause.SUCCEEDED, Cause.GUEST_DIED, False, False, Cause.SUCCEEDED),
        (Cause.LEFT, Cause.NO_DEVICES, True, True, Cause.LEFT),
        (Cause.SWITCHED, Cause.NO_DEVICES, True, False, Cause.SWITCHED),
    ],
)
def test_what_is_behind_the_end_of_a_session(cause, ended, shared, by_service, behind):
    assert cause_behind(cause, ended, shared=shared, stopped_by_service=by_service) is behind


def test_the_service_managers_stop_keeps_the_copy_of_a_guest_without_a_device_model():
    end = primary_end("h1", "xb", PrimaryStep.PROTECTED, Cause.STOP, "Bye.", headless=True)
    assert (end.phase, end.tell, end.exit_code) == ("stopped", "keep", 0)
    assert (
        end.sentence
        == "Bye; the device model of h1 has ended, so h1 stays as it is, and its copy on xb is kept."
    )


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.SWITCHED])
def test_the_copy_runs_only_where_that_is_right(step, cause):
    """The table of the rules, all of it: when the copy is kept, and what the operator reads."""
    end = secondary_end("h1", "xa", step, cause, "It is so.")
    usable = step in (Step.RUNNING, Step.PARTIAL, Step.APPLIED)
    if cause is Cause.END:
        assert end == SecondaryEnd("stopped", "destroy", 0, "It is so; the copy of h1 was destroyed.")
    elif cause is Cause.RENEW:
        assert end == SecondaryEnd("waiting", "destroy", None, "It is so; the copy of h1 was destroyed.")
    elif step is Step.STANDING:
        assert end == SecondaryEnd("", "hold", None, "It is so; the copy of h1 stands by as before.")
    elif step in (Step.COPYING, Step.READY):
        assert end == SecondaryEnd(
            "waiting", "destroy", None, "It is so; the unfinished copy of h1 was destroyed."
        )
    elif step is Step.TORN:
        assert (end.phase, end.copy, end.exit_code) == ("torn", "hold", None)
    elif cause is Cause.LOCAL_ERROR or not usable:
        sentence = "It is so; the copy of h1 cannot be used and was destroyed. Waiting for the primary to make another."
        assert end == SecondaryEnd("waiting", "destroy", None, sentence)
    else:
        assert (end.phase, end.copy, end.exit_code) == ("peer_lost", "run", None)
        said = {
            Cause.ABORT: "The primary on xa gave up: It is so; its guest runs there; ",
            Cause.GUEST_DIED: "The primary on xa says: It is so; ",
        }.get(cause, "The primary on xa was lost: It is so; ")
        assert end.sentence.startswith(said)
        until = (
            "unless an operator lets it take over"
            if cause is Cause.GUEST_DIED
            else "until it is decided who goes on"
        )
        assert end.sentence.endswith(f", off the network, {until}.")


def test_a_copy_that_was_handed_over_is_the_vm():
    """Whoever asks this side to stop in that moment: it is never destroyed."""
    end = secondary_end("h1", "xa", Step.RUNNING, Cause.SWITCHED, "It is so.")
    assert (end.phase, end.copy, end.exit_code) == ("unprotected", "run", 0)


def test_a_stop_does_not_say_that_a_guest_runs_which_has_ended():
    end = primary_end("h1", "xb", PrimaryStep.PROTECTED, Cause.STOP, "Enough.", lives=False)
    assert (end.phase, end.tell, end.exit_code, end.guest) == ("stopped", "end", 0, "gone")
    assert end.sentence == "Enough; h1 has ended, and its copy goes."


def test_how_a_switch_over_ends_on_the_old_primary():
    end = primary_end("h1", "xb", PrimaryStep.HANDED_OVER, Cause.SWITCHED, "It is so.")
    assert (end.phase, end.tell, end.exit_code, end.guest) == ("standby", "", 0, "hold")
    for cause in (Cause.PEER_LOST, Cause.STOP, Cause.LOCAL_ERROR, Cause.PEER_REFUSED):
        end = primary_end("h1", "xb", PrimaryStep.HANDED_OVER, cause, "It is so.")
        assert (end.phase, end.tell, end.exit_code, end.guest) == ("handed_over", "", 1, "hold")


SAVED = {"role": "secondary", "phase": "peer_lost", "domid": 5, "boot_id": "b", "reason": "It was lost."}


@pytest.mark.parametrize(
    ("domid", "saved", "start"),
    [
        (None, None, SecondaryStart("wait", "waiting", "Waiting for the primary.")),
        (None, SAVED, SecondaryStart("wait", "waiting", "Waiting for the primary.")),
        (5, SAVED, SecondaryStart("hold", "peer_lost", "Going on with domain 5: It was lost.")),
        (
            5,
            SAVED | {"phase": "active"},
            SecondaryStart("hold", "active", "Going on with domain 5: It was lost."),
        ),
    ],
)
def test_how_a_secondary_starts(domid, saved, start):
    assert secondary_start("h1", domid, saved, "b", False) == start


@pytest.mark.parametrize("phase", ["replicating", "resyncing", "torn"])
@pytest.mark.parametrize("torn", [False, True])
def test_how_a_secondary_starts_after_a_crash(phase, torn):
    start = secondary_start("h1", 5, SAVED | {"phase": phase}, "b", torn)
    assert (start.action, start.phase) == ("hold", "torn" if torn or phase == "torn" else "peer_lost")
    assert start.sentence.startswith("The replicator ")


@pytest.mark.parametrize(
    ("change", "crashed", "generation", "epoch"),
    [
        ({}, True, "g", 7),
        ({"phase": "unprotected"}, True, "g", 7),
        ({"phase": "copying"}, True, "", 0),
        ({"phase": "stopped"}, False, "", 0),
        ({"boot_id": "another"}, False, "", 0),
        ({"domid": 4}, False, "", 0),
        ({"role": "secondary"}, False, "", 0),
        ({"role": "secondary", "phase": "standby"}, False, "", 0),
        ({"role": "secondary", "phase": "active"}, True, "g", 7),
        ({"role": "secondary", "phase": "active", "domid": 4}, False, "", 0),
        ({"role": "secondary", "phase": "active", "boot_id": "another"}, False, "", 0),
    ],
)
def test_what_a_primary_takes_over_from_an_earlier_run(change, crashed, generation, epoch):
    saved = {
        "role": "primary",
        "phase": "replicating",
        "domid": 5,
        "boot_id": "b",
        "generation": "g",
        "epoch": 7,
    }
    start = primary_start(saved | change, 5, "b")
    assert (start.crashed, start.generation, start.epoch) == (crashed, generation, epoch)
    assert primary_start(None, 5, "b").crashed is False


@pytest.mark.parametrize(
    ("ours", "theirs", "action"),
    [("", "", "copy"), ("g", "", "copy"), ("g", "g", "resync"), ("g", "h", "refuse"), ("", "h", "refuse")],
)
def test_how_a_session_begins(ours, theirs, action):
    assert beginning("h1", "xb", ours, theirs).action == action


@pytest.mark.parametrize(
    "saved",
    [
        None,
        SAVED | {"boot_id": "another"},
        SAVED | {"domid": 4},
        SAVED | {"phase": "receiving"},
        SAVED | {"role": "primary"},
    ],
)
def test_a_domain_that_is_not_the_copy_left_behind_is_not_touched(saved):
    assert secondary_start("h1", 5, saved, "b", False) == SecondaryStart(
        "wait",
        "waiting",
        "The secondary's host already has a domain named h1 (number 5); it must go before a copy can come.",
    )


@pytest.mark.parametrize(
    ("role", "phase", "verb", "code"),
    [
        ("primary", "replicating", "checkpoint", None),
        ("primary", "copying", "checkpoint", "not_replicating"),
        ("secondary", "replicating", "verify", "wrong_side"),
        ("primary", "replicating", "takeover", "wrong_side"),
        ("secondary", "receiving", "takeover", "primary_alive"),
        ("secondary", "replicating", "takeover", "primary_alive"),
        ("secondary", "resyncing", "takeover", "primary_alive"),
        ("secondary", "waiting", "takeover", "no_copy"),
        ("secondary", "torn", "takeover", "no_copy"),
        ("secondary", "standby", "takeover", None),
        ("secondary", "handed_over", "takeover", None),
        ("primary", "replicating", "switchover", None),
        ("primary", "unprotected", "switchover", "not_replicating"),
        ("secondary", "replicating", "switchover", "wrong_side"),
        ("secondary", "active", "takeover", "already_active"),
        ("secondary", "peer_lost", "takeover", None),
        ("secondary", "peer_lost", "stop", "alone"),
        ("secondary", "standby", "stop", "alone"),
        ("secondary", "torn", "stop", None),
        ("secondary", "replicating", "stop", None),
        ("secondary", "active", "stop", "active"),
        ("primary", "copying", "stop", None),
        ("secondary", "waiting", "status", None),
    ],
)
def test_verbs(role, phase, verb, code):
    refusal = verb_refusal("h1", role, phase, verb, arbiter=True)
    assert (refusal.code if refusal else None) == code
    if code == "alone":
        assert verb_refusal("h1", role, phase, verb, arbiter=True, forced=True) is None
    assert refusal is None or refusal.sentence.endswith((".", ")."))


def test_takeover_while_the_primary_is_alive_says_so():
    refusal = verb_refusal("h1", "secondary", "replicating", "takeover", arbiter=False)
    assert (
        refusal.sentence
        == "The primary of h1 is alive: its channels are up. Hand it over with playbooks/switchover.yml."
    )


@pytest.mark.parametrize("arbiter", [True, False])
@pytest.mark.parametrize("phase", SECONDARY_PHASES)
def test_who_may_attach(phase, arbiter):
    to_be_told = ("active",) if not arbiter else ()
    assert (attach_refusal("h1", phase, arbiter=arbiter) == "") is (
        phase in ("waiting", "peer_lost", "torn", "standby", "handed_over", *to_be_told)
    )


@pytest.mark.parametrize(
    ("io_share", "waited_s", "waits"), [(0.9, 10, True), (0.4, 10, False), (0.9, 301, False)]
)
def test_a_guest_is_left_alone_while_its_firmware_reads_through_a_port(io_share, waited_s, waits):
    sentence = still_booting("h1", io_share, waited_s)
    assert sentence == (
        "h1 is being booted: it waits for its devices 90% of the time. It is copied when its firmware is done."
        if waits
        else ""
    )


def test_a_guest_that_somebody_paused_in_an_io_request_gets_its_checkpoint_later():
    step = idle_step(Idle(10.0, 5.0, "", "verify", "The copies differ.", caught=True))
    assert (step.action, step.wait_s) == ("wait", 0.5)
    assert "when it runs again" in step.sentence
    assert idle_step(Idle(10.0, 5.0, "Stop.", "", caught=True)).action == "stop"


def test_packets_that_differ_get_their_checkpoint_at_once():
    step = idle_step(Idle(1.0, 5.0, "", "", "The copies differ."))
    assert (step.action, step.sentence) == ("checkpoint", "The copies differ.")
