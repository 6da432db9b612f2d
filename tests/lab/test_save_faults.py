"""Faults of a save on real Xen: afterwards log-dirty is off and the guest runs on, alone.

A sample: every fault at every phase is injected on the emulated domain (tests/unit/colo_helper/test_helper_faults*.py).
Only in a full run.
"""

import json
import re
import shlex
import time

import pytest

from lab.errors import LabError
from tests.lab.guest_moves import ON_HOST, OURS, MovedGuest, environment, let_hosts_log_in

pytestmark = pytest.mark.full
XL = f"{environment(OURS)} xl -v"
#: Where a migration is held: in the middle of the guest's memory, in the first live round.
HELD_AT_BYTES = 8 << 20
HELD, GATE = "/run/lab-held", "/run/lab-gate"
#: What `xl migrate -s` runs: passes so much on, says so, and goes on when something is written to the gate.
HOLD = f"""#!/bin/sh
{{ head -c {HELD_AT_BYTES}; touch {HELD}; read _ < {GATE}; exec cat; }} | /root/to-ours "$@"
"""
FAULTS = {
    "saver told to stop": ("xa", "pkill -TERM -f -- '--[s]ave-domain'"),
    "restorer told to stop": ("xb", "pkill -TERM -f -- '--[r]estore-domain'"),
    "peer gone": (
        "xb",
        # A toolstack that is killed leaves the domain that it was making.
        "pkill -KILL -f '[m]igrate-receive' && pkill -KILL -f -- '--[r]estore-domain'; xl destroy h1--incoming",
    ),
}


@pytest.fixture(scope="module")
def h1(installed, settings):
    installed()
    let_hosts_log_in(settings)
    return MovedGuest(settings, "h1", "xa")


@pytest.fixture(autouse=True)
def unharmed(h1):
    """The guest before and after: it counts on, has forgotten nothing, is not slowed down, and there is one of it."""
    before = h1.ask("before-a-fault")
    yield
    h1.on(h1.host, "systemctl stop lab-migrate 2>/dev/null; true")  # one that hangs is a failure already
    assert "log_dirty" not in paging(h1)
    after = h1.ask()
    assert (after.writes, after.last, after.chain) == (before.writes, before.last, before.chain)
    counts_on(h1, max(before.counter, after.counter))
    assert domains(h1, h1.host) == ["h1"]
    assert domains(h1, h1.peer) == []


def counts_on(guest, counter):
    deadline = time.monotonic() + 30
    while guest.ask().counter <= counter:
        assert time.monotonic() < deadline, f"the guest does not count on from {counter}"


def domains(guest, host):
    return [line.split()[0] for line in guest.on(host, "xl list").splitlines()[2:]]


def paging(guest):
    """How Xen itself describes the paging of the guest (debug key q)."""
    said = guest.on(guest.host, "xl dmesg -c >/dev/null; xl debug-keys q; xl dmesg")
    number = guest.domid(guest.host)
    found = re.search(
        rf"General information for domain {number}:.*?paging assistance: ([^\n]*)", said, re.DOTALL
    )
    assert found, said[:2000]
    return found[1].split()


def what_failed(guest, line, host=None):
    """Run a shell line that has to fail; returns what it said."""
    host = host or guest.host
    log = "/var/tmp/fault.log"
    with pytest.raises(LabError):
        guest.on(host, f"{{ {line}; }} > {log} 2>&1")
    return guest.on(host, f"cat {log}")


@pytest.mark.parametrize("fault", FAULTS)
def test_in_the_middle_of_a_live_migration(h1, fault):
    on, line = FAULTS[fault]
    h1.on(
        h1.host,
        f"cat > /root/to-held <<'END'\n{HOLD}END\nchmod 755 /root/to-held; rm -f {HELD} {GATE}; mkfifo {GATE}",
    )
    log = "/var/tmp/migrate.log"
    migrate = f"{XL} migrate -s /root/to-held h1 {h1.peer_address} > {log} 2>&1; echo ended >> {log}"
    h1.on(h1.host, f"systemd-run -q --collect --unit=lab-migrate sh -c '{migrate}'")
    h1.on(h1.host, f"timeout 120 sh -c 'until test -e {HELD}; do sleep 0.2; done'", 150)
    assert "log_dirty" in paging(h1), "so that its absence at the end means something"
    h1.on(on, line)
    h1.on(h1.host, f"echo > {GATE}")
    h1.on(h1.host, "timeout 120 sh -c 'until grep -q ^ended /var/tmp/migrate.log; do sleep 0.2; done'", 150)
    said = h1.on(h1.host, "cat /var/tmp/migrate.log")
    print(said)
    assert "igration failed" in said


def test_a_full_disk(h1):
    mount = "mount -t tmpfs -o size=16m lab-full /mnt"
    said = what_failed(h1, f"{mount} && {XL} save h1 /mnt/h1.save; rc=$?; umount /mnt; exit $rc")
    assert "No space left on device" in said


@pytest.mark.parametrize("callback", ["suspend", "switch_qemu_logdirty"])
def test_a_parent_that_says_no(h1, callback):
    script = (ON_HOST / "callback_no.py").read_text()
    line = f"python3 -IS - {h1.domid(h1.host)} {callback} <<'END'\n{script}\nEND"
    found = json.loads(h1.on(h1.host, line))
    print(found)
    assert found["retval"] == -1
    assert found["error"] == ""
    assert found["asked"][0] == "logdirty True"
    assert found["asked"][-1] == "logdirty False"
    assert ("suspend" in found["asked"]) == (callback == "suspend")


def test_half_an_image(h1):
    """Restored on the other host: there is an error, and no half a domain."""
    send = f"ssh -i /root/.ssh/id_lab -o BatchMode=yes root@{h1.peer_address} 'cat > /var/tmp/h1.sav'"
    line = f"{XL} save -c h1 /dev/stdout 2>/dev/null | {send}"
    h1.on(h1.host, f"bash -o pipefail -c {shlex.quote(line)}")
    h1.on(h1.peer, "truncate -s 60M /var/tmp/h1.sav")
    said = what_failed(h1, f"{XL} restore -p /var/tmp/h1.sav; rc=$?; rm /var/tmp/h1.sav; exit $rc", h1.peer)
    assert "colo-save-helper" in said
