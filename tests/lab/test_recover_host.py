"""A host that lost everything, its host key as well, takes its part again by one playbook: on real Xen.

The primary's host loses its power, its copy goes on by an operator's word, and what boots in its place has nothing of ours.
Only in a full run.
"""

import json
import time

import pytest

from lab.guests import Client
from lab.seed import known_hosts
from lab.settings import HOSTS
from tests.lab.asker import Asker

pytestmark = pytest.mark.full
LOST, HEIR = HOSTS
#: What a host that was installed anew does not have.
_WIPE = """
set -e
systemctl disable --now colo-replicator@h1.service
rm -rf /opt/colo-helper /etc/colo /var/lib/colo /run/colo /etc/systemd/system/colo-* /etc/tmpfiles.d/colo.conf \\
    /etc/systemd/system/xendomains.service.d /etc/ssh/sshd_config.d/colo.conf
userdel colo
dpkg-divert --list '*libxl-save-helper*' | grep . && exit 1
systemctl daemon-reload
rm /etc/ssh/ssh_host_ed25519_key*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub
systemctl restart ssh
"""


@pytest.fixture
def wiped(protected, settings, lab):
    """The VM, on the host that had its copy; the other one has just been installed. Its new key ends with the test."""
    vm, known = protected, known_hosts(settings)
    before = known.read_text()
    client = Client(settings, vm.name, timeout_s=60)
    token = f"before-{time.monotonic_ns()}"
    client.write(token)
    vm.wait_for_checkpoints(2)
    lab.host(LOST).power_off()
    vm.take_over(HEIR)
    assert client.read().last == token
    client.close()
    lab.power_on(LOST)
    vm.wait_reachable(LOST)
    key = vm.on(LOST, _WIPE).strip()
    lines = before.splitlines()
    lost = HOSTS.index(LOST)
    lines[lost] = f"{lines[lost].split(' ')[0]} {key}"
    known.write_text("\n".join(lines) + "\n")
    try:
        yield vm
    finally:
        known.write_text(before)  # its next boot has its old key again
        lab.reset(with_guest=True)


def test_it_takes_its_part_again_under_a_client_that_never_stops_asking(wiped, play, settings):
    vm = wiped
    asker = Asker(settings).begin()
    began = time.monotonic()
    done = play("recover_host", extra={"colo_host": LOST})
    silence = asker.longest_silence(began)
    counters = asker.close()  # one connection through all of it
    assert done.code == 0
    assert f"h1 runs on {HEIR}, and {LOST} gets its copy." in done.text
    assert counters == sorted(counters)
    vm.home = HEIR
    assert vm.is_replicating()
    assert vm.verify(HEIR)["unexplained"] == []
    assert json.loads(vm.on(LOST, "cat /etc/colo/vms/h1.json"))["role"] == "secondary"
    again = play("recover_host", extra={"colo_host": LOST})
    assert again.code == 0
    assert not any(again.changed.values()), again.changed
    print(f"{done.took_s:.0f} s; {len(counters)} answers, the longest wait for one was {silence:.1f} s")
