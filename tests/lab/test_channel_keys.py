"""Keys are changed while the VM is protected: no checkpoint is lost, and the next connection takes the new key."""

import json
import time

from lab import ssh

HELPER = "/opt/colo-helper/current/bin/colo-helper"
WAIT_S = 90


def status(settings, host):
    return json.loads(ssh.run(settings, host, f"{HELPER} status h1 --json"))


def key(settings, host):
    return ssh.run(settings, host, "ssh-keygen -y -f /etc/colo/ssh/h1/id_ed25519").split()[1]


def process(settings, host):
    return ssh.run(settings, host, "systemctl show --property=MainPID --value colo-replicator@h1").strip()


def let_in(settings, host):
    lines = ssh.run(settings, host, "cat /etc/colo/ssh/authorized_keys").splitlines()
    return [line.split("ssh-ed25519 ")[1].split()[0] for line in lines if "attach h1" in line]


def wait_for_checkpoints(settings, epoch, count=3):
    """Wait until the primary has made ``count`` more than ``epoch``; returns what it says then."""
    deadline = time.monotonic() + WAIT_S
    while True:
        now = status(settings, "xa")
        assert now["running"]
        assert now["phase"] == "replicating", now["reason"]
        if now["epoch"] >= epoch + count:
            return now
        assert time.monotonic() < deadline, f"no checkpoint since epoch {now['epoch']}: {now['reason']}"
        time.sleep(1)


def test_new_keys_while_the_vm_is_protected(installed, settings, play):
    installed()
    assert play("protect", "-e", "colo_vm=h1").code == 0
    hosts = ("xa", "xb")
    old = {host: key(settings, host) for host in hosts}
    processes = {host: process(settings, host) for host in hosts}
    before = status(settings, "xa")

    rotated = play("rotate", "-e", "colo_vm=h1")
    assert rotated.code == 0
    assert rotated.changed["xa"] > 0
    assert rotated.changed["xb"] > 0
    new = {host: key(settings, host) for host in hosts}
    assert not set(new.values()) & set(old.values())
    assert let_in(settings, "xb") == [new["xa"]], "the old key is not let in any more"
    assert let_in(settings, "xa") == [new["xb"]]
    assert {host: process(settings, host) for host in hosts} == processes, "the replicators went on"
    after = wait_for_checkpoints(settings, status(settings, "xa")["epoch"])
    made = after["totals"]["checkpoints"] - before["totals"]["checkpoints"]
    assert made == after["epoch"] - before["epoch"] > 0, "an epoch without its checkpoint"

    # The connections that the old key opened end; the replicator makes new ones, and only the new key can.
    ssh.run(settings, "xb", "pkill -KILL -u colo; true")
    wait_for_checkpoints(settings, status(settings, "xa")["epoch"])
    assert {host: process(settings, host) for host in hosts} == processes
    assert status(settings, "xb")["phase"] == "replicating"

    again = play("site")
    assert again.code == 0
    assert again.changed == {"localhost": 0, "xa": 0, "xb": 0}
    assert play("unprotect", "-e", "colo_vm=h1").code == 0
