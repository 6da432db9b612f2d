"""Our save helper under real libxl on real Xen, against itself and against Xen's own, in both directions.

Only in a full run: molecule's colo_host has xl save and restore with it.
"""

import json
import subprocess
import time

import pytest

from lab import guests, ssh
from lab.settings import address, host_number
from tests.lab.guest_moves import ON_HOST, OURS, PROGRAM, STOCK, MovedGuest, let_hosts_log_in

pytestmark = pytest.mark.full
WORD = "colo-save-helper"
#: Stands between libxl and our helper on both hosts.
PAIR = "/root/colo-pair"


@pytest.fixture(scope="module")
def hosts(installed, settings):
    installed()
    let_hosts_log_in(settings)


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


#: Every pairing of both guests.
PAIRINGS = pytest.mark.parametrize(
    ("guest", "pairing"),
    [
        pytest.param(guest, pairing, id=f"{guest}-{'-'.join(pairing)}")
        for guest in ("h1", "pvh1")
        for pairing in ((OURS, OURS), (OURS, STOCK), (STOCK, OURS))
    ],
    indirect=["guest"],
)


def uses_ours(said, pairing):
    return (WORD in said) == (OURS in pairing)


@PAIRINGS
def test_saved_and_restored_the_guest_is_the_same(guest, pairing):
    before = guest.ask(f"saved-{'-'.join(pairing)}")
    said, differ = guest.save_and_restore(*pairing)
    assert uses_ours(said, pairing), said
    assert differ == [], [hex(gfn) for gfn in differ[:20]]
    after = guest.ask()
    assert (after.writes, after.last, after.chain) == (before.writes, before.last, before.chain)
    assert after.counter >= before.counter


@PAIRINGS
def test_migrated_while_it_runs_the_guest_goes_on(guest, pairing):
    before = guest.ask(f"migrated-{'-'.join(pairing)}")
    said = guest.migrate(*pairing)
    assert uses_ours(said, pairing), said
    after = guest.ask()
    assert (after.writes, after.last, after.chain) == (before.writes, before.last, before.chain)
    assert after.counter >= before.counter


@PAIRINGS
def test_by_remus_nothing_goes_back_behind_a_checkpoint(guest, pairing):
    written = []
    said = guest.remus(*pairing, checkpoints=5, while_protected=lambda: written.append(guest.ask("remus")))
    assert uses_ours(said, pairing), said
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


def test_colo_from_an_empty_domain_leaves_both_copies_equal_at_every_epoch(h1, settings):
    """Stream type COLO from the very first page: the restorer begins with an empty domain of libxl's.

    Upstream's restorer asks for the guest's size at that moment, is told that it has no frames, and from then on sends
    no dirty frame back. Ours must. See on_host/colo_pair.py.
    """
    primary, secondary = h1.host, h1.peer
    script = (ON_HOST / "colo_pair.py").read_text()
    for host, config in ((primary, {"peer": address("data", host_number(secondary))}), (secondary, {})):
        ssh.run(settings, host, f"cat > {PAIR} <<'END'\n{script}\nEND\nchmod 755 {PAIR}")
        ssh.run(
            settings, host, f"mkfifo /run/colo-pair.go; echo '{json.dumps(config)}' > /run/colo-pair.json"
        )
    line = f"env LIBXL_SAVE_HELPER={PAIR} xl"
    save = f"{line} save -p h1 /dev/stdout | cat; echo > /run/colo-pair.go"
    restore = f"cat | {line} restore -p /dev/stdin && echo > /run/colo-pair.go"
    with subprocess.Popen(ssh.command(settings, primary, save), stdout=subprocess.PIPE) as source:
        subprocess.run(
            ssh.command(settings, secondary, restore), stdin=source.stdout, check=True, timeout=400
        )
    deadline = time.monotonic() + 300
    while "ended" not in (
        found := ssh.run(settings, primary, "cat /run/colo-pair.result 2>/dev/null || true")
    ):
        logs = [ssh.run(settings, host, "cat /run/colo-pair.log") for host in (primary, secondary)]
        assert time.monotonic() < deadline, (found, logs)
        time.sleep(1)  # a program on another host
    *epochs, end = json.loads(found)
    print(json.dumps(epochs, indent=1))
    assert end["ended"], end
    assert len(epochs) == 5
    assert epochs[0]["secondary"]["frames_at_start"] == 1, "libxl's new domain reports a highest frame of 0"
    assert [epoch["unexplained"] for epoch in epochs] == [[]] * 5
    assert all(epoch["b_pages"] > 0 for epoch in epochs[1:]), "the secondary's own dirty frames came back"
    assert all(epoch["pages"] > 30_000 for epoch in epochs)
