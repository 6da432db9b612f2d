"""What an operator does around a protected VM, each of it twice, on real Xen: preflight, status, logs, and leaving no trace."""

import tarfile
from pathlib import Path

import pytest
import yaml

from lab import ssh
from lab.settings import HOSTS
from tests.lab.upgrading import another_release, upgraded

pytestmark = pytest.mark.full
VM = ("-e", "colo_vm=h1")
SCRAPE = """python3 -c 'import urllib.request as r; print(r.urlopen("http://127.0.0.1:9911/metrics").read().decode())'"""
#: Where a host keeps what site.yml brought.
OURS = (
    "/opt/colo-helper /etc/colo /var/lib/colo /run/colo /etc/tmpfiles.d/colo.conf /etc/ssh/sshd_config.d/colo.conf "
    "/etc/systemd/system/colo-replicator@.service /etc/systemd/system/colo-watchdog.service "
    "/etc/systemd/system/colo-exporter.service"
)


def play_twice(play, name, *arguments):
    """Play it with a look ahead, for real, and once more: what was foretold is done, and done once."""
    foretold = play(name, "--check", "--diff", *arguments)
    first = play(name, *arguments)
    second = play(name, *arguments)
    assert (foretold.code, first.code, second.code) == (0, 0, 0), name
    assert foretold.changed == first.changed, f"{name} did what it had foretold"
    assert sum(second.changed.values()) == 0, f"{name} found something to do a second time"
    return first


def test_from_nothing_to_a_protected_vm_and_back_to_nothing(lab, play, settings, tmp_path):
    lab.reset(with_guest=True)
    ready = play("preflight")
    assert ready.code == 0
    assert "hvm, 1 vCPU" in ready.text
    assert " ready" in ready.text
    assert "NOT READY" not in ready.text
    assert ssh.run(settings, "xa", f"ls -d {OURS} 2>/dev/null; true") == "", "it installs nothing"
    alone = play("status")
    assert alone.code != 0
    assert "h1 is not protected." in alone.text

    monitored = {"colo_monitoring_address": "127.0.0.1"}  # what it runs has to go again, too
    assert play("site", extra=monitored).code == 0
    assert play("protect", *VM).code == 0
    assert " protected" in play("preflight").text
    assert play("status").code == 0
    grouped = play("groups").text
    assert "xa: colo_running, colo_running_h1" in grouped
    assert "xb: colo_copies, colo_copies_h1" in grouped
    exported = play("export", "-e", f"colo_export_to={tmp_path / 'colo_vms.yml'}")
    assert "Everything is as colo_vms says." in exported.text
    assert yaml.safe_load((tmp_path / "colo_vms.yml").read_text())["colo_vms"]["h1"]["primary"] == "xa"

    upgraded(play, settings, another_release(settings, tmp_path / "checkout"))
    held = gathered(play, settings, tmp_path)
    assert {"state.json", "events.jsonl", "journal.txt", "config.json"} <= {Path(name).name for name in held}
    refused = play("purge", "-e", "colo_host=xb", "-e", "colo_confirm=xb")
    assert refused.code != 0
    assert (
        "h1 is still protected on xb (replicating): end that first with playbooks/unprotect.yml"
        in refused.text
    )

    assert play("unprotect", *VM).code == 0
    for host in ("xa", "xb"):
        play_twice(play, "purge", "-e", f"colo_host={host}", "-e", f"colo_confirm={host}")
        assert ssh.run(settings, host, f"ls -d {OURS} 2>/dev/null; getent passwd colo; true") == ""
    assert "h1" in ssh.run(settings, "xa", "xl list"), "the VM runs on"


def test_monitoring_and_a_watchdog_come_and_go_as_wished(installed, play, settings):
    installed()
    units = "colo-exporter.service colo-watchdog.service"
    wish = {"colo_monitoring_address": "127.0.0.1", "colo_host_watchdog_s": 60}
    assert play("site", "--check", extra=wish).code == 0
    for changes in (True, False):
        done = play("site", extra=wish)
        assert done.code == 0
        assert all(bool(done.changed[host]) is changes for host in HOSTS)
        for host in HOSTS:
            ssh.run(settings, host, f"systemctl is-active {units}")
            assert "colo_" in ssh.run(settings, host, SCRAPE)
    for changes in (True, False):
        done = play("site")
        assert done.code == 0
        assert all(bool(done.changed[host]) is changes for host in HOSTS)
        for host in HOSTS:
            left = ssh.run(
                settings, host, f"systemctl is-active {units}; cd /etc/systemd/system; ls {units} 2>&1; true"
            )
            assert left.split().count("inactive") == 2
            assert left.count("No such file") == 2


def gathered(play, settings, tmp_path):
    """Every file of the archives; none of them has a key of the hosts."""
    assert play("gather_logs", *VM, "-e", f"colo_logs_to={tmp_path}").code == 0
    secrets = [
        line
        for host in ("xa", "xb")
        for key in ("/etc/colo/ssh/h1/id_ed25519", "/etc/ssh/ssh_host_ed25519_key")
        for line in ssh.run(settings, host, f"cat {key}").splitlines()[1:-1]
    ]
    assert len(secrets) > 8
    held = {}
    for host in ("xa", "xb"):
        with tarfile.open(tmp_path / f"{host}.tar.gz") as archive:
            held |= {entry.name: archive.extractfile(entry).read() for entry in archive}
        assert ssh.run(settings, host, "ls /var/tmp/colo-logs.tar.gz 2>/dev/null; true") == ""
    assert not [name for name, contents in held.items() for line in secrets if line.encode() in contents]
    return held
