"""What becomes of the protection when the guest itself changes, on real Xen: rebooted, crashed, paused, saved, moved.

Only in a full run: each case costs a boot of the guest, or a first copy.
"""

import time

import pytest

from lab.guests import Client, wait_answer
from lab.settings import address, host_number
from tests.lab.guest_moves import let_hosts_log_in
from tests.lab.protected_vm import HELPER

pytestmark = pytest.mark.full
_BOOT_S = 300
_PAUSES = 10
#: As the hypervisor sees a guest end (xen/include/public/sched.h), whatever made it.
_END = """python3 -c "
import ctypes
xc = ctypes.CDLL('libxenctrl.so.' + open('/sys/hypervisor/version/major').read().strip() + '.'
                 + open('/sys/hypervisor/version/minor').read().strip())
xc.xc_interface_open.restype = ctypes.c_void_p
handle = ctypes.c_void_p(xc.xc_interface_open(None, None, 0))
assert xc.xc_domain_shutdown(handle, {domid}, {reason}) == 0
"
"""
REBOOT, CRASH = 1, 3


def end(vm, host, reason):
    vm.on(host, _END.format(domid=vm.on(host, "xl domid h1").strip(), reason=reason))


def assert_equal(vm):
    found = vm.verify("xa")
    assert found["unexplained"] == []
    assert [part["unexplained"] for part in found["state"].values()] == [[], []]


def count(vm, event):
    return sum(one["event"] == event for one in vm.events("xa"))


def test_a_nic_that_is_unplugged(protected):
    vm = protected
    vm.on("xa", "xl network-detach h1 0; true", 120)
    vm.wait_for_checkpoints(3)
    assert_equal(vm)


def test_a_guest_that_reboots_is_protected_again(protected, settings):
    """Its NIC is there again with the boot.

    Before `xl save -c` and a failed `xl migrate`, after which no xl watches the guest any more to start it again.
    """
    vm = protected
    copied = count(vm, "copied")
    end(vm, "xa", REBOOT)
    vm.wait_for_event("xa", "awaiting_guest", 1)
    wait_answer(settings, "h1", _BOOT_S)
    vm.wait_for_event("xa", "copied", copied + 1)
    vm.wait_for("xa", "replicating")
    vm.wait_for_checkpoints(2)
    assert vm.domains("xb") == ["h1"]
    assert_equal(vm)


def pause(vm):
    """Pause the guest as an operator does, and wait for checkpoints of it.

    Now and then that catches it in the middle of an I/O request, which is told, and there are none until it runs again.
    """
    for _ in range(_PAUSES):
        told, epoch = count(vm, "paused"), vm.status()["epoch"]
        vm.on("xa", "xl pause h1")
        while vm.status()["epoch"] < epoch + 3 and count(vm, "paused") == told:
            time.sleep(1)  # a program on another host
        if count(vm, "paused") == told:
            return
        vm.on("xa", "xl unpause h1")
    pytest.fail(f"caught in a request {_PAUSES} times")


def test_a_guest_that_is_paused_stays_paused_and_goes_on(protected, settings):
    vm = protected
    pause(vm)
    assert vm.on("xa", "xl list h1 | tail -1").split()[4][2] == "p"
    vm.on("xa", "xl unpause h1")
    client = Client(settings, "h1", timeout_s=20)
    first = client.read().counter
    vm.wait_for_checkpoints(2)
    assert client.read().counter > first
    client.close()
    assert_equal(vm)


def test_a_new_memory_target_changes_nothing_for_a_guest_without_a_balloon(protected):
    vm = protected
    vm.on("xa", "xl mem-set h1 100")
    vm.wait_for_checkpoints(3)
    vm.on("xa", "xl mem-set h1 128")
    assert_equal(vm)


def test_a_guest_that_somebody_saves_is_compared_anew(protected, settings):
    """`xl save -c` reads the dirty log and turns it off: checkpoints would miss pages, and nobody would tell."""
    vm = protected
    compared = count(vm, "compared")
    vm.on("xa", "xl save -c h1 /var/tmp/h1.sav && rm /var/tmp/h1.sav", 300)
    vm.wait_for_event("xa", "compared", compared + 1)
    vm.wait_for("xa", "replicating")
    vm.wait_for_checkpoints(2)
    assert_equal(vm)
    client = Client(settings, "h1", timeout_s=20)
    client.read()
    client.close()


def test_a_guest_that_somebody_migrates_to_its_secondary_never_runs_twice(protected, settings):
    vm = protected
    let_hosts_log_in(settings)
    client = Client(settings, "h1", timeout_s=60)
    before = client.write("before-the-migration")
    there = address("mgmt", host_number("xb"))
    said = vm.on("xa", f"xl migrate -s /root/to-stock h1 {there} 2>&1; true", 300)
    print(said)
    vm.wait_for("xa", "replicating")
    after = client.read()
    client.close()
    assert (after.writes, after.last) == (before.writes, "before-the-migration")
    assert vm.domains("xa") == ["h1"]
    assert vm.domains("xb") == ["h1"]
    assert vm.on("xb", "ls /sys/class/net/xenbr0/brif").split() == ["eth1"], "the copy is off the network"
    assert_equal(vm)


def test_a_copy_that_ends_alone_is_replaced(protected):
    vm = protected
    old = vm.on("xb", "xl domid h1")
    copied = count(vm, "copied")
    end(vm, "xb", CRASH)
    vm.wait_for_event("xa", "copied", copied + 1)
    vm.wait_for("xa", "replicating")
    assert vm.on("xb", "xl domid h1") != old
    assert vm.domains("xb") == ["h1"]
    assert_equal(vm)


def test_the_copy_of_a_guest_that_crashed_is_kept_and_can_take_over(protected, settings):
    vm = protected
    client = Client(settings, "h1", timeout_s=20)
    before = client.write("before-the-crash")
    vm.wait_for_checkpoints(2)
    end(vm, "xa", CRASH)
    vm.wait_for("xa", "awaiting_guest")
    vm.wait_for("xb", "peer_lost")
    vm.on("xa", f"{HELPER} ctl h1 stop", 60)
    vm.on("xb", f"{HELPER} ctl h1 takeover", 60)
    after = client.read()
    client.close()
    assert after.writes >= before.writes
    assert after.counter > before.counter
