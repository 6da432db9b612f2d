"""Fixtures of the tests on the real lab; they run one after the other, on the one lab of this checkout."""

import os
from functools import partial

import pytest

from lab import ssh
from lab.errors import LabError
from lab.inventory import vms
from lab.lab import Lab
from lab.playbooks import play as play_on_lab
from lab.settings import HOSTS, here
from tests.lab.arbiter import WitnessHost, with_arbiter
from tests.lab.protected_vm import GUEST, ProtectedVm


def pytest_addoption(parser):
    parser.addoption(
        "--debian", default="12", help="the Debian release of the lab's hosts, or of each: 13, or 12,13"
    )
    parser.addoption(
        "--hosts", type=int, choices=(2, 3), help="how many hosts the lab has; those it has without it"
    )


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def settings():
    return here()


@pytest.fixture(scope="session")
def lab(settings, request):
    made = Lab(settings, print)
    option = request.config.getoption
    made.up([int(release) for release in option("--debian").split(",")], hosts=option("--hosts"))
    return made


@pytest.fixture(scope="session")
def play(settings):
    return partial(play_on_lab, settings)


@pytest.fixture(scope="session")
def installed(lab, settings, play):
    """Make both hosts ready by playbooks/site.yml, with h1 running on the first; only once while nobody resets them."""
    mark = f"/run/colo-tests-{os.getpid()}"

    def ready():
        try:
            for host in HOSTS:
                ssh.run(settings, host, f"test -e {mark}")
        except LabError:  # reset since, or never made ready
            lab.reset(with_guest=True)
            assert play("site", extra={"colo_vms": vms("h1", GUEST)}).code == 0
            for host in HOSTS:
                ssh.run(settings, host, f"touch {mark}")

    return ready


@pytest.fixture(scope="module")
def witness(installed, settings):
    """An etcd beside both hosts, which are ready."""
    installed()
    with WitnessHost(settings).running() as running:
        yield running


@pytest.fixture(scope="module")
def arbitrated(witness, settings, play):
    """The VM h1, protected with an arbiter from the first host to the second; it is unprotected at the end."""
    made = ProtectedVm(settings)
    assert play("protect", extra=with_arbiter(witness)).code == 0
    yield made
    made.on(made.home, "systemctl stop colo-replicator@h1", 120)


@pytest.fixture(scope="session")
def vm(settings):
    """The VM h1 as a protected one."""
    return ProtectedVm(settings)


@pytest.fixture(scope="module")
def protected(installed, vm, play):
    """The VM h1, protected from xa to xb by playbook unless it is already."""
    installed()
    if not vm.is_replicating():
        assert play("protect", "-e", "colo_vm=h1").code == 0
    return vm
