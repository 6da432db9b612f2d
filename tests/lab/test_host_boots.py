"""A host whose toolstack starts its VMs when it boots: the one that was taken over elsewhere is not started, the others are.

Only in a full run: a host takes minutes to boot under software emulation.
"""

import pytest

from tests.lab.asker import Asker

pytestmark = pytest.mark.full
_BOOT_TIMEOUT_S = 600
AUTO = "/etc/xen/auto/h1.cfg"
#: Waits until xendomains has done what it does at a boot.
SETTLED = (
    "systemctl is-active --wait --quiet xendomains.service || systemctl status --no-pager xendomains.service"
)


@pytest.fixture
def starting(protected):
    """Both hosts are to start h1 when they boot."""
    for host in ("xa", "xb"):
        protected.on(host, f"mkdir -p /etc/xen/auto && ln -sf /etc/xen/lab/h1.cfg {AUTO}")
    return protected


def boots(lab, vm, host):
    """Pull the plug of a host and put it in again; it has come up with what it starts by itself."""
    lab.host(host).power_off()
    yield
    lab.power_on(host)
    vm.wait_reachable(host)
    vm.on(host, SETTLED, _BOOT_TIMEOUT_S)
    yield


def test_what_was_taken_over_elsewhere_is_not_started_again(starting, lab, settings):
    vm = starting
    asker = Asker(settings).begin()
    boot = boots(lab, vm, "xa")
    next(boot)
    vm.take_over("xb")
    next(boot)
    counters = asker.close()  # one connection through all of it, and only one VM answered
    assert counters == sorted(counters)
    assert vm.domains("xa") == []
    held = vm.wait_for_event("xa", "held", 1)
    assert held.startswith("h1 is not started here: xb had a copy of it, and only an operator can tell")
    assert f"It was not created from {AUTO} (xl create)." in held

    # The copy that took over is the VM: after its host has lost its power it is started there, and only there.
    boot = boots(lab, vm, "xb")
    next(boot)
    next(boot)
    assert vm.domains("xb") == ["h1"]
    assert vm.domains("xa") == []
    assert not [event for event in vm.events("xb") if event["event"] == "held"]
