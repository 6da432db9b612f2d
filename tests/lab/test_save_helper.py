"""Our save helper under real libxl on real Xen, against itself and against Xen's own, in both directions.

`make lab-tests` runs a sample of the pairings; `make lab-full` runs all of them.
"""

import pytest

from lab import guests, ssh
from tests.lab.guest_moves import OURS, PROGRAM, STOCK, MovedGuest, let_hosts_log_in

FULL = pytest.mark.full
BOTH_OURS, TO_STOCK, FROM_STOCK = (OURS, OURS), (OURS, STOCK), (STOCK, OURS)
WORD = "colo-save-helper"


@pytest.fixture(scope="module")
def hosts(lab, settings, play):
    lab.reset(with_guest=True)
    assert play("site").code == 0
    let_hosts_log_in(settings)
    return lab


@pytest.fixture(scope="module")
def h1(hosts, settings):
    return MovedGuest(settings, "h1", "xa")


@pytest.fixture(scope="module")
def pvh1(hosts, settings):
    guests.create(settings, "pvh1", "xb")
    guests.wait_answer(settings, "pvh1", 240)
    return MovedGuest(settings, "pvh1", "xb")


@pytest.fixture
def guest(request):
    return request.getfixturevalue(request.param)


def pairings(sample):
    """Every pairing of both guests; those outside the sample only in a full run."""
    return [
        pytest.param(
            guest,
            pairing,
            marks=[] if (guest, pairing) in sample else [FULL],
            id=f"{guest}-{'-'.join(pairing)}",
        )
        for guest in ("h1", "pvh1")
        for pairing in (BOTH_OURS, TO_STOCK, FROM_STOCK)
    ]


def uses_ours(said, pairing):
    return (WORD in said) == (OURS in pairing)


@pytest.mark.parametrize(("guest", "pairing"), pairings({("h1", BOTH_OURS)}), indirect=["guest"])
def test_saved_and_restored_the_guest_is_the_same(guest, pairing):
    before = guest.ask(f"saved-{'-'.join(pairing)}")
    said, differ = guest.save_and_restore(*pairing)
    assert uses_ours(said, pairing), said
    assert differ == [], [hex(gfn) for gfn in differ[:20]]
    after = guest.ask()
    assert (after.writes, after.last, after.chain) == (before.writes, before.last, before.chain)
    assert after.counter >= before.counter


@pytest.mark.parametrize(
    ("guest", "pairing"), pairings({("h1", FROM_STOCK), ("pvh1", BOTH_OURS)}), indirect=["guest"]
)
def test_migrated_while_it_runs_the_guest_goes_on(guest, pairing):
    before = guest.ask(f"migrated-{'-'.join(pairing)}")
    said = guest.migrate(*pairing)
    assert uses_ours(said, pairing), said
    after = guest.ask()
    assert (after.writes, after.last, after.chain) == (before.writes, before.last, before.chain)
    assert after.counter >= before.counter


@pytest.mark.parametrize(("guest", "pairing"), pairings({("h1", TO_STOCK)}), indirect=["guest"])
def test_by_remus_nothing_goes_back_behind_a_checkpoint(guest, pairing):
    written = []
    said = guest.remus(*pairing, checkpoints=5, while_protected=lambda: written.append(guest.ask("remus")))
    assert (WORD in said) == (pairing[0] == OURS), said
    after = guest.ask()
    assert (after.writes, after.last, after.chain) == (written[0].writes, "remus", written[0].chain)
    assert after.counter >= written[0].counter


def test_a_pv_guest_is_handed_over_to_xens_own_helper(hosts, settings):
    guests.create(settings, "pv1", "xb")
    guests.wait_answer(settings, "pv1", 240)
    ours = f"env LIBXL_SAVE_HELPER={PROGRAM} xl -v"
    said = ssh.run(
        settings, "xb", f"{ours} save pv1 /var/tmp/pv1.sav 2>&1 && {ours} restore /var/tmp/pv1.sav 2>&1", 300
    )
    assert said.count("is a PV guest, which Xen's own helper takes") == 2
    assert guests.wait_answer(settings, "pv1", 60).writes == 0
    ssh.run(settings, "xb", "xl destroy pv1; rm /var/tmp/pv1.sav")
