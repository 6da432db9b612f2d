"""`xl migrate` and `xl remus` over `colo-channel ssh`, without a login of root: allowed, refused, and every trace removed.

Only in a full run. Ends as it began: h1 on xa, and no host receives VMs.
"""

import pytest

from lab import ssh
from lab.settings import HOSTS, address, host_number
from tests.lab.guest_moves import STOCK, MovedGuest

PROGRAM = "/opt/colo-helper/current/bin/colo-channel"
UNITS = "/etc/systemd/system/colo-receive.socket /etc/systemd/system/colo-receive@.service"
TRACES = f"ls -d {UNITS} /run/colo/receive.sock 2>/dev/null; grep -e '--receive\"' /etc/colo/ssh/authorized_keys; true"
REFUSED = "This account takes 'attach VM forward', 'back', 'heartbeat' or 'probe' only."
CHANNEL = "channel"
#: `xl` is told the peer's address in the network of the lab, which is not the one that is pinned.
TO_CHANNEL = f"""cat > /root/to-{CHANNEL} <<'END'
#!/bin/sh
shift
exec {PROGRAM} ssh --vm h1 {{peer}} "$@"
END
chmod 755 /root/to-{CHANNEL}"""
pytestmark = pytest.mark.full


def forget(settings):
    """Let whoever needs ready hosts next make them anew."""
    for host in HOSTS:
        ssh.run(settings, host, "rm -f /run/colo-tests-*")


@pytest.fixture(scope="module")
def h1(installed, settings, play, vm):
    installed()
    if vm.is_replicating():
        assert play("unprotect", "-e", "colo_vm=h1", "-e", "colo_confirm=h1").code == 0
    if "h1" not in vm.domains("xa") or "h1" in vm.domains("xb"):
        forget(settings)
        installed()
    guest = MovedGuest(settings, "h1", "xa")
    for host, peer in zip(HOSTS, reversed(HOSTS), strict=True):
        guest.on(host, TO_CHANNEL.format(peer=peer))
    yield guest
    assert play("site").code == 0
    if guest.host != "xa":  # a red test left it there
        forget(settings)


@pytest.fixture
def receiving(h1, play):
    """h1 while both hosts may receive VMs."""
    assert play("site", "-e", "colo_channel_receive=true").code == 0
    return h1


def migrate(guest, where):
    """As an operator types it; returns the exit status and what was said."""
    line = f"xl migrate -s '{PROGRAM} ssh --vm h1' h1 {where} 2>&1; echo status $?"
    said, _, status = guest.on(guest.host, line).rpartition("status ")
    return int(status), said


def by_address(guest):
    return address("data", host_number(guest.peer))


def test_it_is_refused_by_default(h1, settings):
    before = h1.ask()
    status, said = migrate(h1, by_address(h1))
    assert status != 0
    assert REFUSED in said
    assert h1.ask().counter > before.counter, "the guest goes on where it was"
    assert ssh.run(settings, "xb", TRACES) == ""
    assert "refused 'xl migrate-receive" in h1.on("xb", "journalctl -t colo-attach --no-pager")


def test_it_moves_there_and_back(receiving):
    before = receiving.ask("by-the-channel")
    for way in (by_address, lambda guest: guest.peer):
        status, said = migrate(receiving, way(receiving))
        assert status == 0, said
        assert "migration target: Ready to receive domain." in said, "the peer's words pass through"
        assert "Migration successful." in said
        assert "h1 " not in receiving.on(receiving.host, "xl list")
        receiving.arrived()
        after = receiving.ask()
        assert (after.writes, after.last, after.chain) == (before.writes, before.last, before.chain)
        assert after.counter > before.counter
        journal = receiving.on(receiving.host, "journalctl -u 'colo-receive@*' --no-pager")
        assert "h1: xl ended with status 0" in journal
        before = after


def test_by_remus_it_takes_over_there_and_is_migrated_back(receiving):
    written = []
    receiving.remus(STOCK, CHANNEL, 5, lambda: written.append(receiving.ask("remus-by-the-channel")))
    after = receiving.ask()
    assert (after.writes, after.last) == (written[0].writes, "remus-by-the-channel")
    assert after.counter >= written[0].counter
    status, said = migrate(receiving, by_address(receiving))
    assert status == 0, said
    receiving.arrived()
    assert receiving.ask().counter >= after.counter


@pytest.mark.parametrize(
    "command",
    [
        "xl list",
        "xl create /etc/xen/h1.cfg",
        "xl migrate-receive --coloft-script /tmp/x",
        "xl -N migrate-receive",
        "id",
    ],
)
def test_nothing_else_is_to_be_had(receiving, command):
    said = receiving.on("xa", f"{PROGRAM} ssh --vm h1 xb {command} < /dev/null 2>&1; echo status $?")
    assert said.endswith("status 1\n")
    assert "this account takes" in said.lower()


def test_nothing_of_it_is_left_when_it_is_off_again(receiving, settings, play):
    assert REFUSED not in migrate(receiving, "xc")[1]  # it is no host that is pinned
    assert ssh.run(settings, "xb", TRACES) != ""
    again = play("site", "-e", "colo_channel_receive=true")
    assert [again.changed[host] for host in HOSTS] == [0, 0]
    assert play("site").code == 0
    for host in HOSTS:
        assert ssh.run(settings, host, TRACES) == ""
        assert "receive" not in ssh.run(
            settings, host, "systemctl list-units --all --no-legend 'colo-receive*socket'"
        )
    status, said = migrate(receiving, by_address(receiving))
    assert status != 0
    assert REFUSED in said
