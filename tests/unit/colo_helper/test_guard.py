"""What xendomains may start when a host boots: by the arbiter's record or the last state; the rest is held back."""

from __future__ import annotations

import json
import subprocess

import pytest

from colo_helper.arbiter.emulated import EmulatedArbiter, EmulatedStore
from colo_helper.arbiter.interface import ArbiterError
from colo_helper.arbiter.record import ALONE, PROTECTED, Record, Seen
from colo_helper.guard import boot, toolstack
from colo_helper.guard.decisions import Look, verdict
from tests.unit.colo_helper.test_decisions import PRIMARY

COPIED = {"generation": "abc", "phase": "replicating", "epoch": 7}


def record(owner="xa", mode=ALONE, secondary=""):
    return Record("h1", owner, 4, mode, "xb lost xa", 1, secondary, "abc" if secondary else "")


@pytest.mark.parametrize(
    ("kept", "known", "may", "final", "why"),
    [
        (record(), COPIED, True, True, "nobody else has a copy"),
        (record("xb"), COPIED, False, True, "it is xb's since epoch 4 (xb lost xa)."),
        (record(mode=PROTECTED, secondary="xb"), COPIED, False, False, "xb has a copy of it that may go on"),
        (None, {}, True, True, "never been a copy"),
        (None, COPIED, False, True, "the arbiter has lost what it knew, and the VM may run on xb."),
    ],
)
def test_the_arbiter_says_who_has_it(kept, known, may, final, why):
    found = verdict(Look("h1", "primary", "xb", "xa", kept, known=known))
    assert (found.may_start, found.final) == (may, final)
    assert why in found.sentence


def test_an_arbiter_that_does_not_answer_is_asked_again_and_means_no():
    found = verdict(Look("h1", "primary", "xb", "xa", record(), "No etcd answers.", {}))
    assert (found.may_start, found.final) == (False, False)
    assert found.sentence == "nobody can tell who has it: No etcd answers."


@pytest.mark.parametrize(
    ("role", "known", "may", "why"),
    [
        ("primary", {}, True, "never been a copy"),
        ("primary", COPIED, False, "xb had a copy of it, and only an operator can tell"),
        ("primary", {**COPIED, "phase": "unprotected"}, False, "only an operator"),
        ("primary", {**COPIED, "phase": "awaiting_guest"}, True, "its guest had ended"),
        ("secondary", {**COPIED, "phase": "active"}, True, "had taken over"),
        ("secondary", {**COPIED, "phase": "standby"}, False, "it is xb's, and what is here was a copy."),
        ("secondary", {}, False, "was a copy"),
    ],
)
def test_by_hand_the_last_state_says_whether_a_copy_may_have_gone_on(role, known, may, why):
    found = verdict(Look("h1", role, "xb", known=known))
    assert (found.may_start, found.final) == (may, True)
    assert why in found.sentence


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host that boots, with saved memory of h1 and h2, and configurations of h1 and h3; h1 is protected."""
    for name in ("vms", "save", "auto", "run", "state/h1"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("h1", "h2"):
        (tmp_path / "save" / name).write_bytes(b"Xen saved domain " + name.encode())
    for name in ("h1", "h3"):
        (tmp_path / "auto" / f"{name}.cfg").write_text(f'name = "{name}"\n')
    (tmp_path / "settings").write_text(
        "# Debian's\n"
        'XENDOMAINS_MIGRATE=""\n'
        f'XENDOMAINS_SAVE="{tmp_path}/save"  # a comment\n'
        f"XENDOMAINS_RESTORE=true\nXENDOMAINS_AUTO={tmp_path}/auto\n"
    )
    namer = tmp_path / "xen-init-name"
    namer.write_text('#!/bin/sh\nsed -n \'s/^name = "\\(.*\\)"$/\\1/p\' "$1"\n')
    namer.chmod(0o755)
    monkeypatch.setattr(toolstack, "_NAME", str(namer))
    monkeypatch.setattr(toolstack, "INSTEAD", tmp_path / "run" / "xendomains")
    monkeypatch.setattr(toolstack, "ALLOWED", tmp_path / "run" / "xen-auto")
    monkeypatch.setattr(boot, "CONFIG", str(tmp_path / "vms" / "{vm}.json"))
    monkeypatch.setattr(boot, "STATE_DIR", str(tmp_path / "state" / "{vm}"))
    monkeypatch.setattr(boot, "_ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(toolstack, "SETTINGS", tmp_path / "settings")
    config = {**PRIMARY, "arbiter": {"endpoints": ["http://127.0.0.1:2379"], "host": "xa"}}
    (tmp_path / "vms" / "h1.json").write_text(json.dumps(config))
    (tmp_path / "state" / "h1" / "state.json").write_text(json.dumps({"format": 1, **COPIED}))
    return tmp_path


def guarded(store=None):
    arbiter = EmulatedArbiter(store) if store else NoArbiter()
    return boot.guard(["h1"], lambda _asked: arbiter)


class NoArbiter:
    def read(self, vm):
        raise ArbiterError(f"Nobody answers for {vm}.")


def kept(*changes):
    store = EmulatedStore()
    arbiter, seen = EmulatedArbiter(store), Seen()
    for change in changes:
        seen = arbiter.change(seen, change, 10)
    return store


def events(host):
    path = host / "state" / "h1" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def seen_by_xendomains(host):
    """The directory that a shell which reads the settings looks for configurations in, and what it finds there."""
    line = f'. "{host}/run/xendomains" && echo $XENDOMAINS_SAVE $XENDOMAINS_AUTO'
    save, auto = subprocess.check_output(["bash", "-c", line], text=True).split()
    found = subprocess.check_output(
        ["bash", "-c", f"shopt -s nullglob; for f in {auto}/*; do cat $f; done"], text=True
    )
    return save, found


def test_what_another_host_has_is_kept_aside_and_nothing_else(host):
    assert guarded(kept(record("xb"))) == 0
    held = list((host / "save" / toolstack.HELD).iterdir())
    assert [path.read_bytes() for path in held] == [b"Xen saved domain h1"]
    assert [path.name for path in (host / "save").iterdir() if path.is_file()] == ["h2"]
    assert seen_by_xendomains(host) == (f"{host}/save", 'name = "h3"\n')
    assert sorted(path.name for path in (host / "auto").iterdir()) == ["h1.cfg", "h3.cfg"]
    (event,) = events(host)
    assert (event["event"], event["epoch"]) == ("held", 7)
    assert event["sentence"] == (
        f"h1 is not started here: it is xb's since epoch 4 (xb lost xa). Its memory as this host saved it is {held[0]} (xl "
        f"restore). It was not created from {host}/auto/h1.cfg (xl create)."
    )


def test_what_is_this_hosts_alone_is_left_to_xendomains(host, capsys):
    (host / "run" / "xendomains").write_text("of an earlier start")
    assert guarded(kept(record())) == 0
    assert not (host / "run" / "xendomains").exists()
    assert (host / "save" / "h1").exists()
    assert events(host) == []
    assert "h1 may be started here: nobody else has a copy" in capsys.readouterr().err


def test_nobody_can_tell_means_no(host, monkeypatch):
    monkeypatch.setattr(boot, "_ASK_S", 0.0)
    assert guarded() == 0
    assert "nobody can tell who has it: Nobody answers for h1." in events(host)[0]["sentence"]
    assert not (host / "save" / "h1").exists()


def test_a_secondary_that_is_about_to_take_over_is_waited_for(host):
    store = kept(record(mode=PROTECTED, secondary="xb"))
    asked = []

    class Watched(EmulatedArbiter):
        def read(self, vm):
            asked.append(vm)
            seen = super().read(vm)
            if len(asked) == 2:
                self.change(Seen(seen.record, seen.version, seen.lease), record("xb"), 10)
            return seen

    assert boot.guard(["h1"], lambda _asked: Watched(store)) == 0
    assert len(asked) == 3
    assert "it is xb's since epoch 4" in events(host)[0]["sentence"]


def test_a_configuration_that_cannot_be_read_and_a_full_directory(host, capsys):
    (host / "vms" / "h1.json").write_text("{")
    (host / "save" / toolstack.HELD).write_text("not a directory")
    assert guarded() == 1
    said = capsys.readouterr().err
    assert "h1: " in said
    assert "cannot be put aside (File exists)" in said
    assert "is not JSON" in said
    assert seen_by_xendomains(host)[1] == 'name = "h3"\n', "what can be held is"


def test_nothing_to_start_asks_nobody(host):
    (host / "save" / "h1").unlink()
    (host / "auto" / "h1.cfg").unlink()
    assert boot.guard(["h1"], lambda _asked: pytest.fail("asked")) == 0
