"""The lab itself: resets, faults, and that nothing is left behind."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyroute2 import netns

from lab import network, processes, ssh
from lab.errors import LabError
from lab.guests import Client
from lab.settings import HOSTS, address, host_number


@pytest.mark.full
def test_ten_resets_in_a_row_give_two_usable_hosts(lab, settings):
    for round_number in range(10):
        lab.reset()
        for host in HOSTS:
            said = ssh.run(
                settings, host, "cat /etc/hostname; cat /root/mark 2>/dev/null; touch /root/mark; xl list"
            )
            assert said.split()[0] == host
            assert "Domain-0" in said
            assert "mark" not in said, f"reset {round_number} kept what the one before wrote"


@pytest.mark.full
def test_each_path_can_be_cut_and_mended_alone(lab, settings):
    lab.reset()
    other = {path: address(path, host_number("xb")) for path in ("data", "mgmt")}

    def reaches(path):
        line = f"ping -c 1 -W 2 {other[path]} >/dev/null && echo yes || echo no"
        return ssh.run(settings, "xa", line).strip() == "yes"

    assert reaches("data")
    assert reaches("mgmt")
    lab.host("xa").set_cable("data", plugged=False)
    assert not reaches("data")
    assert reaches("mgmt")
    lab.host("xa").set_cable("data", plugged=True)
    lab.host("xa").set_cable("mgmt", plugged=False)
    assert reaches("data")
    assert not reaches("mgmt")


@pytest.mark.full
def test_a_narrow_path_is_slow_and_a_widened_one_is_not(lab, settings):
    lab.reset()
    network.narrow(settings, "data", 64_000)
    # 5 packets of 1,400 bytes at 64 kbit/s: the last waits for most of a second behind the others.
    line = f"ping -q -c 5 -i 0.002 -s 1400 {address('data', 2)} | tail -1"
    slow = ssh.run(settings, "xa", line)
    network.widen(settings, "data")
    fast = ssh.run(settings, "xa", line)

    def worst_ms(text):
        return float(text.split("=")[1].split("/")[2])

    assert worst_ms(slow) > 2 * worst_ms(fast)


@pytest.mark.full
def test_a_frozen_host_is_silent_and_goes_on_where_it_was(lab, settings):
    lab.reset(with_guest=True)
    client = Client(settings, "h1", timeout_s=10)
    before = client.write("before")
    lab.host("xa").freeze()
    assert {row["host"]: row["state"] for row in lab.status()} == {"xa": "frozen", "xb": "running"}
    with pytest.raises(OSError, match="timed out"):
        Client(settings, "h1", timeout_s=2).read()
    lab.host("xa").thaw()
    after = client.read()
    client.close()
    assert (after.writes, after.last) == (before.writes, "before")
    assert after.counter >= before.counter


@pytest.mark.full
def test_a_host_without_power_is_off_and_boots_from_its_disk(lab, settings):
    lab.reset()
    ssh.run(settings, "xb", "touch /root/kept && sync")
    lab.host("xb").power_off()
    assert {row["host"]: row["state"] for row in lab.status()} == {"xa": "running", "xb": "off"}
    with pytest.raises(LabError, match="xb is powered off: `make lab-reset` brings both hosts back"):
        lab.host("xb").freeze()
    lab.power_on("xb")
    ssh.run(settings, "xb", "test -e /root/kept")


def leftovers(settings):
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if "colo-lab" in line]
    spaces = [name for name in netns.listnetns() if name == settings.netns]
    return [
        *processes.find(settings.lab_id),
        *spaces,
        *mounts,
        *settings.run_dir.parent.glob(settings.lab_id),
    ]


@pytest.mark.full
def test_nothing_is_left_after_down(lab, settings):
    lab.reset()
    assert leftovers(settings)
    lab.down()
    assert leftovers(settings) == []


def test_nothing_is_left_after_a_killed_command_and_down(lab, settings):
    lab.down()
    command = [sys.executable, "-m", "lab", "up"]
    process = subprocess.Popen(command, cwd=settings.checkout, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not processes.find(settings.lab_id):
        assert process.poll() is None, "`lab up` ended before it started a host"
        assert time.monotonic() < deadline, "`lab up` started no host within a minute"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert processes.find(settings.lab_id), "the hosts outlive the command that was killed"
    lab.down()
    assert leftovers(settings) == []
    lab.up()


def test_a_taken_port_is_named(lab):
    lab.down()
    port = int(lab.status()[0]["ssh"].split(":")[1])
    taken = f"port {port} on 127.0.0.1, meant for ssh to xa, is taken"
    with socket.create_server(("127.0.0.1", port)), pytest.raises(LabError, match=taken):
        lab.up()
    lab.up()
