"""What the playbooks say when they cannot go on, and that they do nothing then."""

import pytest

from lab import ssh

CONFIRM = ("-e", "colo_vm=h1", "-e", "colo_confirm=h1")
#: Everything that site.yml makes on a host.
TRACES = (
    "/opt/colo-helper /etc/colo /var/lib/colo /etc/ssh/sshd_config.d/colo.conf "
    "/etc/systemd/system/colo-replicator@.service"
)


@pytest.fixture(scope="module")
def fresh(lab):
    lab.reset(with_guest=True)
    return lab


@pytest.mark.full
def test_a_dry_run_on_fresh_hosts_predicts_and_changes_nothing(fresh, settings, play):
    dry = play("site", "--check", "--diff")
    assert dry.code == 0
    assert dry.changed["xa"] > 0
    assert dry.changed["xb"] > 0
    assert "+++ after" in dry.text
    for host in ("xa", "xb"):
        left = ssh.run(settings, host, f"ls -d {TRACES} 2>/dev/null; getent passwd colo; true")
        assert left == "", "the dry run left something behind"


def test_an_unknown_vm_is_named_with_those_there_are(fresh, play):
    for name in ("protect", "verify", "unprotect", "rotate"):
        played = play(name, "-e", "colo_vm=h9")
        assert played.code != 0
        assert "colo_vms has no VM h9; it has: h1." in played.text


def test_no_vm_is_a_sentence_too(fresh, play):
    assert "Say which VM: -e colo_vm=NAME. The inventory's colo_vms has: h1." in play("protect").text


def test_a_failover_wants_the_name_twice(fresh, play):
    played = play("failover", "-e", "colo_vm=h1")
    assert played.code != 0
    assert (
        "confirm it with the VM's name, playbooks/failover.yml -e colo_vm=h1 -e colo_confirm=h1."
        in played.text
    )


@pytest.mark.full
def test_without_the_helper_the_playbooks_say_what_to_run(fresh, settings, play):
    for name in ("protect", "verify", "rotate"):
        played = play(name, "-e", "colo_vm=h1")
        assert played.code != 0
        assert "colo_helper is not installed on x" in played.text, name
        assert "run playbooks/site.yml first." in played.text, name
    assert ssh.run(settings, "xa", "ls -d /etc/colo 2>/dev/null; true") == "", "no key was made"


@pytest.mark.full
def test_with_the_secondarys_host_down(fresh, play):
    fresh.host("xb").power_off()
    down = "xb does not answer on ssh"
    assert down in play("site").text
    assert down in play("rotate").text
    for name, arguments in (("protect", ()), ("unprotect", ()), ("failover", ("-e", "colo_confirm=h1"))):
        played = play(name, "-e", "colo_vm=h1", *arguments)
        assert played.code != 0
        assert "xb, the secondary of h1, does not answer on ssh" in played.text, name
    status = play("status")
    assert "xb unreachable" in status.text
    assert "xb does not answer." in status.text


@pytest.mark.full
def test_with_the_primarys_host_down(fresh, play):
    fresh.reset(with_guest=True)
    fresh.host("xa").power_off()
    for name in ("protect", "verify", "unprotect"):
        played = play(name, "-e", "colo_vm=h1")
        assert played.code != 0
        assert "xa, the primary of h1, does not answer on ssh" in played.text, name
    played = play("failover", *CONFIRM)
    assert played.code != 0
    assert "colo_helper is not installed on xb: run playbooks/site.yml first." in played.text
