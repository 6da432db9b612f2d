"""Two VMs on one pair, in opposite directions at once, one of them with several vCPUs and another card: on real Xen.

Only in a full run: the second guest boots under software emulation. COLO_VERIFIES says how many comparisons of each (9),
a third of them at each of the load's paces.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab import guests
from lab.guests import Client
from tests.lab.load import PACES_S, Writer, compare_many
from tests.lab.protected_vm import ProtectedVm

VERIFIES = int(os.environ.get("COLO_VERIFIES", "9"))
_BOOT_S = 600
pytestmark = pytest.mark.full
_VMS = {
    "h1": {"primary": "xa", "secondary": "xb", "peer_timeout_ms": 20000},
    "h2": {"primary": "xb", "secondary": "xa", "peer_timeout_ms": 20000},
}


@pytest.fixture(scope="module")
def both(installed, settings, play):
    installed()
    given = ("-e", json.dumps({"colo_vms": _VMS}))
    assert play("site", *given).code == 0
    assert play("protect", "-e", "colo_vm=h1", *given).code == 0
    return [ProtectedVm(settings, name, one["primary"]) for name, one in _VMS.items()], given


@pytest.mark.parametrize("vcpus", [2, 4])
def test_each_copy_is_equal_and_both_guests_live(both, settings, play, vcpus):
    (first, second), given = both
    second.on(second.home, f"xl create -q /etc/xen/lab/h2.cfg vcpus={vcpus}", 120)
    guests.wait_answer(settings, "h2", _BOOT_S)
    assert play("protect", "-e", "colo_vm=h2", *given).code == 0
    assert second.on("xa", "xl vcpu-list h2 | tail -n +2").count("h2") == vcpus
    for pace_s in PACES_S:
        compare_both(settings, (first, second), pace_s)
    assert play("unprotect", "-e", "colo_vm=h2", *given).code == 0
    assert second.domains("xa") == ["h1"]
    second.on(second.home, "xl destroy h2")
    assert first.is_replicating()


def compare_both(settings, vms, pace_s):
    """Compare both VMs' copies while they are written to at a pace; both guests live, are written to, and lost no write."""
    written = [writes_of(settings, vm) for vm in vms]
    writers = [Writer(settings, pace_s, vm.name) for vm in vms]
    for writer in writers:
        writer.start()
    count = max(VERIFIES // len(PACES_S), 1)
    began, ran = time.monotonic(), [copy_ran_s(vm) for vm in vms]
    try:
        with ThreadPoolExecutor() as pool:
            wrong = list(pool.map(lambda vm: compare_many(vm, vm.home, count), vms))
    finally:
        for writer in writers:
            writer.close()
    assert wrong == [[], []]
    assert all(copy_ran_s(vm) > before for vm, before in zip(vms, ran, strict=True)), "a copy stands still"
    seconds = time.monotonic() - began
    made = [writes_of(settings, vm) - before for vm, before in zip(vms, written, strict=True)]
    assert all(made), "no load"
    for before, count_now, writer in zip(written, made, writers, strict=True):
        # A writer that was not answered in time while both stood still knows of fewer than there were.
        assert writer.last is None or before + count_now >= writer.last.writes
    told = ", ".join(f"{vm.name} {number}" for vm, number in zip(vms, made, strict=True))
    print(
        f"{count} comparisons of each at a pace of {pace_s} s in {seconds:.0f} s; writes {told}", flush=True
    )


def writes_of(settings, vm):
    """How many writes the guest has got."""
    client = Client(settings, vm.name, timeout_s=60)
    try:
        return client.read().writes
    finally:
        client.close()


def copy_ran_s(vm):
    """CPU seconds of the VM's copy so far, which a copy that hangs does not use."""
    return float(vm.on("xb" if vm.home == "xa" else "xa", f"xl list {vm.name} | tail -1").split()[-1])
