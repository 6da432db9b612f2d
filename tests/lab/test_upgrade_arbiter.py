"""An upgrade of a VM with an arbiter: nobody takes over from a replicator that is started anew, on real Xen.

Only in a full run. Ends with h1 unprotected.
"""

import pytest

from colo_helper.replication.decisions.session import PROTOCOL
from lab.settings import HOSTS
from tests.lab.arbiter import with_arbiter
from tests.lab.upgrading import another_release, upgraded

pytestmark = pytest.mark.full


@pytest.mark.parametrize("protocol", [None, PROTOCOL + 1], ids=["same protocol", "another protocol"])
def test_nobody_takes_over_during_an_upgrade(arbitrated, witness, play, settings, tmp_path, protocol):
    vm = arbitrated
    vm.wait_for("xa", "replicating")
    told = {host: len(vm.events(host)) for host in HOSTS}
    upgraded(
        play, settings, another_release(settings, tmp_path / "checkout", protocol), with_arbiter(witness)
    )
    said = {host: [event["event"] for event in vm.events(host)[told[host] :]] for host in HOSTS}
    for host in HOSTS:
        assert said[host].count("maintenance") == said[host].count("automatic") == 1, said[host]
    assert "active" not in said["xb"]
    assert [vm.written(host)["maintenance"] for host in HOSTS] == ["", ""]
    record = witness.read("h1").record
    assert (record.owner, record.mode, record.secondary) == ("xa", "protected", "xb")
