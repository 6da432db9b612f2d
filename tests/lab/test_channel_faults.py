"""Faults of the channels of a protected VM: how soon each is noticed, what is said, and that nobody is worse off.

Only in a full run: most of them end the protection, which is then begun anew.
"""

import json
import subprocess
import time

import pytest

from lab import network, ssh
from lab.guests import Client
from lab.settings import address, host_number
from tests.lab.guest_moves import ON_HOST

#: See lab.inventory.
PEER_TIMEOUT_S = 10
#: How much later than its time-out a replicator may say it: the test looks once a second, on hosts under emulation.
SLACK_S = 8
pytestmark = pytest.mark.full


@pytest.fixture
def protected(lab, installed, vm, play):
    """h1 protected, with a client's write in it; afterwards the guest must still have it."""
    if not vm.is_replicating():
        installed()
        vm.on("xb", f"systemctl is-active --quiet {vm.unit} || xl destroy h1 2>/dev/null; true")
        assert play("unprotect", "-e", "colo_vm=h1", "-e", "colo_confirm=h1").code == 0
        assert play("protect", "-e", "colo_vm=h1").code == 0
    client = Client(vm.settings, "h1", timeout_s=20)
    before = client.write("before-the-fault")
    vm.wait_for_checkpoints()
    yield vm
    after = client.read()
    client.close()
    assert (after.writes, after.last) == (before.writes, "before-the-fault")
    assert after.counter > before.counter


def test_200_mib_against_a_taker_that_rests(lab, installed, vm, play):
    """Nothing is lost or doubled, the sender's memory stays bounded, and a taker that takes nothing for a while lives."""
    installed()
    if vm.is_replicating():
        assert play("unprotect", "-e", "colo_vm=h1", "-e", "colo_confirm=h1").code == 0
    script = (ON_HOST / "pressure.py").read_text()
    for host in ("xa", "xb"):
        vm.on(host, f"cat > /run/pressure.py <<'END'\n{script}\nEND")
    with subprocess.Popen(
        ssh.command(vm.settings, "xb", "python3 -IS /run/pressure.py receive"),
        stdout=subprocess.PIPE,
        text=True,
    ) as taker:
        vm.on("xb", "until test -S /run/colo/h1/attach.sock; do sleep 0.2; done")
        sent = json.loads(
            vm.on("xa", f"python3 -IS /run/pressure.py send xb {address('data', host_number('xb'))} 200", 600)
        )
        taken = json.loads(taker.communicate(timeout=60)[0])
    print(sent, taken)
    assert (taken["sha256"], taken["frames"], taken["in_order"]) == (sent["sha256"], 200, True)
    assert (taken["lost"], taken["came"]) == ("", True)
    assert sent["longest_s"] > 10, "the sender was held back while the taker rested"
    assert sent["grown_kib"] < 64 << 10, "the window has 16 MiB, and each frame 1"


def noticed(vm, host, phase, since):
    """Wait for a phase; returns what was said, and prints how long it took."""
    reason = vm.wait_for(host, phase)
    print(f"{host} is {phase} {time.monotonic() - since:.1f} s after the fault: {reason}")
    return reason, time.monotonic() - since


def test_sshd_restarted_and_its_connections_killed(protected):
    processes = protected.processes()
    before = protected.status()
    protected.on("xb", "systemctl restart ssh")
    protected.wait_for_checkpoints()
    protected.on("xb", "pkill -KILL -u colo; true")
    after = protected.wait_for_checkpoints(5)
    assert protected.processes() == processes
    made = after["totals"]["checkpoints"] - before["totals"]["checkpoints"]
    assert made == after["epoch"] - before["epoch"]
    assert all(count >= 1 for count in after["channels"]["reopened"].values())


def test_a_link_of_10_mbit_is_slow_and_not_dead(protected):
    network.narrow(protected.settings, "data", 10_000_000)
    try:
        after = protected.wait_for_checkpoints(5)
    finally:
        network.widen(protected.settings, "data")
    print(after["last"], after["channels"])
    assert after["channels"]["life"] == "alive"


def test_the_second_network_is_cut_and_mended(protected, lab):
    lab.host("xb").set_cable("mgmt", plugged=False)
    try:
        started = time.monotonic()
        while protected.wait_for_checkpoints(1)["channels"]["life"] != "suspected":
            assert time.monotonic() - started < 60
        print(f"suspected {time.monotonic() - started:.1f} s after the cut")
    finally:
        lab.host("xb").set_cable("mgmt", plugged=True)
    while (now := protected.wait_for_checkpoints(1)["channels"])["life"] != "alive" or now["broken"]:
        assert time.monotonic() - started < 180, now


def test_the_first_network_is_cut_while_the_heartbeat_lives(protected, lab):
    lab.host("xb").set_cable("data", plugged=False)
    try:
        started = time.monotonic()
        said, took = noticed(protected, "xa", "unprotected", started)
        protected.wait_for("xb", "peer_lost")
    finally:
        lab.host("xb").set_cable("data", plugged=True)
    assert "could not be made again" in said
    assert took < PEER_TIMEOUT_S + SLACK_S


def test_a_short_cut_costs_nothing_but_its_time(protected, lab):
    processes = protected.processes()
    lab.host("xb").set_cable("data", plugged=False)
    time.sleep(PEER_TIMEOUT_S * 0.4)  # the length of the fault
    lab.host("xb").set_cable("data", plugged=True)
    protected.wait_for_checkpoints(5)
    assert protected.processes() == processes


def test_the_replicator_of_the_secondary_is_killed(protected):
    """Noticed as soon as a connection is asked for anew; then the pair finds together by itself."""
    compared = sum(event["event"] == "compared" for event in protected.events("xa"))
    started = time.monotonic()
    protected.on("xb", f"kill -KILL {protected.processes()['xb']}")
    _, took = noticed(protected, "xa", "unprotected", started)
    assert took < PEER_TIMEOUT_S + SLACK_S
    print(protected.wait_for_event("xa", "compared", compared + 1))
    protected.wait_for("xa", "replicating")
    print(f"protected again {time.monotonic() - started:.1f} s after the fault")


def test_the_peer_is_frozen(protected, lab):
    lab.host("xb").freeze()
    try:
        said, took = noticed(protected, "xa", "unprotected", time.monotonic())
    finally:
        lab.host("xb").thaw()
        thawed = time.monotonic()
    assert f"silent on every path for {PEER_TIMEOUT_S}" in said
    assert took < PEER_TIMEOUT_S + SLACK_S
    protected.wait_for("xa", "replicating")
    print(f"protected again {time.monotonic() - thawed:.1f} s after it was thawed")


def test_a_peer_without_power(protected, lab):
    lab.host("xb").power_off()
    said, took = noticed(protected, "xa", "unprotected", time.monotonic())
    assert f"silent on every path for {PEER_TIMEOUT_S}" in said
    assert took < PEER_TIMEOUT_S + SLACK_S
