"""A VM that goes from Xen 4.17 to 4.20 under protection: with a lab of `--debian 12,13` only.

The copy of an older release's guest is equal on the newer one, and takes over; the other direction is refused with a sentence.
COLO_VERIFIES says how many comparisons (9), a third of them at each of the load's paces.
"""

import os

import pytest

from lab.guests import Client
from lab.settings import HOSTS
from tests.lab.load import PACES_S, Writer, compare_many

pytestmark = pytest.mark.full
VERIFIES = int(os.environ.get("COLO_VERIFIES", "9"))
OLD, NEW = HOSTS
UNPROTECTED = "h1 runs on xb, unprotected. h1: its primary xb runs Xen 4.20 and its secondary xa Xen 4.17."


@pytest.fixture(scope="module", autouse=True)
def _two_releases(request):
    if request.config.getoption("--debian") != "12,13":
        pytest.skip("the lab's hosts have one release")  # and a lab of two is another lab, made from nothing


def test_the_copy_of_an_older_releases_guest_is_equal(protected, settings, play):
    assert "4.17 > 4.20" in play("preflight").text
    for pace_s in PACES_S:
        writer = Writer(settings, pace_s)
        writer.start()
        try:
            assert compare_many(protected, OLD, max(VERIFIES // len(PACES_S), 1)) == []
        finally:
            writer.close()
        assert writer.last, "no load"


def test_it_goes_to_the_newer_release_and_is_unprotected_there(protected, settings, play):
    client = Client(settings, "h1", timeout_s=60)
    try:
        before = client.write("before")
        moved = play("switchover", "-e", "colo_vm=h1")
        assert moved.code != 0
        assert UNPROTECTED in moved.text
        after = client.write("after")
        assert (after.writes, after.counter > before.counter) == (before.writes + 1, True)
        assert [protected.written(host)["phase"] for host in (OLD, NEW)] == ["standby", "unprotected"]
        assert "p" in protected.on(OLD, "xl list h1 | tail -1").split()[4], "what was the VM stands still"
        assert play("status").code != 0, "it says that the VM is not protected"
    finally:
        client.close()
