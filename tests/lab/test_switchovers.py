"""Many switch-overs in a row under a client that never stops asking: nothing goes back, nothing is lost, nobody hangs up.

Only in a full run. The roles are given to the hosts here as playbooks/switchover.yml does, without its minute for each.
COLO_SWITCHOVERS says how many (20), COLO_GUEST which guest (h1 has virtio-net, h2 e1000).
"""

import json
import os
import time

import pytest

from colo_helper.quantiles import nearest_rank
from lab.guests import Client
from lab.inventory import vms
from lab.settings import HOSTS
from tests.lab.asker import Asker
from tests.lab.protected_vm import GUEST, HELPER, ProtectedVm

COUNT = int(os.environ.get("COLO_SWITCHOVERS", "20"))
pytestmark = pytest.mark.full


@pytest.fixture
def protected_guest(installed, settings, play):
    """The guest, protected from the first host to the second by playbook."""
    installed()
    vm = ProtectedVm(settings, GUEST)
    vm.have_guest(HOSTS[0])
    assert play("protect", extra={"colo_vm": GUEST, "colo_vms": vms(GUEST)}).code == 0
    return vm


def test_nothing_goes_back_and_nobody_hangs_up(protected_guest, settings):
    vm = protected_guest
    writer, asker = Client(settings, GUEST, timeout_s=60), Asker(settings, GUEST)
    asker.start()
    silences = []
    source, target = HOSTS
    for turn in range(COUNT + COUNT % 2):
        written = writer.write(f"turn-{turn}")
        started = time.monotonic()
        answer = json.loads(vm.on(source, f"{HELPER} ctl {GUEST} switchover", 120))
        assert answer["ok"] is True
        read = writer.read()
        assert (read.writes, read.last) == (written.writes, f"turn-{turn}")
        silences.append(round(asker.longest_silence(started) * 1000))
        vm.wait_for(source, "standby")
        vm.on(source, f"while systemctl is-active --quiet {vm.unit}; do sleep 0.2; done")
        vm.on(target, f"while systemctl is-active --quiet {vm.unit}; do sleep 0.2; done")
        vm.give_roles(target, source)
        vm.wait_for(target, "replicating")
        print(
            f"turn {turn}: {target} protects again {time.monotonic() - started:.1f} s later; {silences[-1]} ms without answer"
        )
        source, target = target, source
    counters = asker.close()  # one connection through all of it
    writer.close()
    assert counters == sorted(counters), "no step back"
    ordered = sorted(silences)
    print(
        f"{len(silences)} switch-overs, {len(counters)} answers; without answer p50 {nearest_rank(ordered, 0.5)} ms,"
    )
    print(f"p95 {nearest_rank(ordered, 0.95)} ms, longest {ordered[-1]} ms")
    assert vm.verify(source)["unexplained"] == []
