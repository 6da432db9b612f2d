"""VMs go where the inventory says, by one playbook: on real Xen. Only in a full run.

With `--hosts 3` a copy is moved to the third host and back. On two, the second one gets another name: as when it was replaced.
"""

import json
import time

import pytest

from lab.inventory import vms
from lab.settings import HOSTS, NAMES
from tests.lab.asker import Asker

pytestmark = pytest.mark.full
FIRST, SECOND = HOSTS
THIRD = NAMES[2]


def as_vms(primary, secondary):
    """colo_vms with h1 on these hosts."""
    return {"colo_vms": {"h1": {**vms("h1")["h1"], "primary": primary, "secondary": secondary}}}


@pytest.fixture
def renamed(lab, settings, play):
    """The second host has another name in the inventory, while the test lasts; then its old one, as if replaced once more."""
    if THIRD in lab.names:
        pytest.skip("the third host's name is taken")
    path = settings.state_dir / "inventory.yml"
    before = path.read_text()
    inventory = json.loads(before)
    hosts = inventory["all"]["children"]["colo_hosts"]["hosts"]
    hosts[THIRD] = hosts.pop(SECOND)
    path.write_text(json.dumps(inventory, indent=2) + "\n")
    try:
        yield
    finally:
        path.write_text(before)
        assert play("rebalance").code == 0


def test_a_vm_that_is_where_it_belongs_is_not_touched(protected, play):
    done = play("rebalance")
    assert done.code == 0
    assert "Every VM is where colo_vms says." in done.text
    assert not any(done.changed.values()), done.changed


def test_roles_are_switched_under_a_client_that_never_stops_asking(protected, play, settings):
    wanted = as_vms(SECOND, FIRST)
    dry = play("rebalance", "--check", extra=wanted)
    assert dry.code == 0
    assert f"h1 goes on on {SECOND}, and its copy on {FIRST}." in dry.text
    assert protected.is_replicating()
    asker = Asker(settings).begin()
    began = time.monotonic()
    done = play("rebalance", extra=wanted)
    silence = asker.longest_silence(began)
    counters = asker.close()  # one connection through all of it
    assert done.code == 0
    assert counters == sorted(counters)
    protected.home = SECOND
    assert protected.is_replicating()
    again = play("rebalance", extra=wanted)
    assert again.code == 0
    assert not any(again.changed.values()), again.changed
    back = play("rebalance")
    assert back.code == 0
    protected.home = FIRST
    assert protected.is_replicating()
    print(f"{done.took_s:.0f} s; {len(counters)} answers, the longest wait for one was {silence:.1f} s")


def test_a_copy_goes_to_the_host_that_took_the_place_of_another(protected, renamed, play, settings):
    vm, wanted = protected, as_vms(FIRST, THIRD)
    asker = Asker(settings).begin()
    done = play("rebalance", extra=wanted)
    counters = asker.close()
    assert done.code == 0
    assert f"h1 gets its copy on {THIRD}: {SECOND}, which had it, is not in the inventory." in done.text
    assert counters == sorted(counters)
    assert vm.is_replicating()
    assert json.loads(vm.on(FIRST, "cat /etc/colo/vms/h1.json"))["peer"]["name"] == THIRD
    assert vm.verify(FIRST)["unexplained"] == []
    again = play("rebalance", extra=wanted)
    assert again.code == 0
    assert not any(again.changed.values()), again.changed
    print(f"{done.took_s:.0f} s; {len(counters)} answers")


@pytest.fixture
def third(lab):
    """A host beside the pair."""
    if THIRD not in lab.names:
        pytest.skip("needs a third host: pytest --hosts 3")
    return THIRD


def test_a_copy_goes_to_the_third_host_and_the_vm_after_it(protected, third, play, settings):
    vm, moved = protected, as_vms(FIRST, third)
    asker = Asker(settings).begin()
    done = play("rebalance", extra=moved)
    assert done.code == 0
    assert (
        f"The copy of h1 goes from {SECOND} to {third}; meanwhile h1 runs on {FIRST} without one."
        in done.text
    )
    assert vm.domains(third) == ["h1"]
    assert vm.domains(SECOND) == []
    assert "h1" not in vm.on(SECOND, "ls /etc/colo/vms /etc/colo/ssh")
    assert vm.verify(FIRST)["unexplained"] == []
    again = play("rebalance", extra=moved)
    assert again.code == 0
    assert not any(again.changed.values()), again.changed

    away = as_vms(SECOND, third)  # the host has neither the VM nor its copy
    done = play("rebalance", extra=away)
    assert done.code == 0
    assert vm.domains(SECOND) == ["h1"]
    assert vm.domains(third) == ["h1"]
    assert vm.domains(FIRST) == []
    assert vm.verify(SECOND)["unexplained"] == []
    back = play("rebalance")
    assert back.code == 0
    assert vm.is_replicating()
    counters = asker.close()  # one connection through all of it
    assert counters == sorted(counters)
    print(f"{len(counters)} answers")
