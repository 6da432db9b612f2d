"""Two VMs on one pair, in opposite directions at once, one of them with several vCPUs and another card: on real Xen.

Only in a full run: the second guest boots under software emulation. COLO_VERIFIES says how many comparisons of each (10).
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab import guests
from lab.guests import Client
from tests.lab.load import Writer
from tests.lab.protected_vm import ProtectedVm

VERIFIES = int(os.environ.get("COLO_VERIFIES", "10"))
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
    writers = [Writer(settings, 0.05, name) for name in _VMS]
    for writer in writers:
        writer.start()
    try:
        with ThreadPoolExecutor() as pool:
            found = [one for many in pool.map(many_comparisons, (first, second)) for one in many]
    finally:
        for writer in writers:
            writer.close()
    assert len(found) == 2 * VERIFIES
    assert [one["unexplained"] for one in found] == [[]] * len(found)
    parts = [part["unexplained"] for one in found for part in one["state"].values()]
    assert parts == [[]] * 2 * len(found)
    for name, writer in zip(_VMS, writers, strict=True):
        client = Client(settings, name, timeout_s=30)
        assert client.read().writes >= writer.last.writes > 0
        client.close()
    assert play("unprotect", "-e", "colo_vm=h2", *given).code == 0
    assert second.domains("xa") == ["h1"]
    second.on(second.home, "xl destroy h2")
    assert first.is_replicating()


def many_comparisons(vm):
    return [vm.verify(vm.home) for _ in range(VERIFIES)]
