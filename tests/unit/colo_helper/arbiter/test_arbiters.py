"""Every arbiter does the same: the one in memory, and a real etcd on loopback."""

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import time

import pytest

from colo_helper.arbiter.emulated import EmulatedArbiter, EmulatedStore
from colo_helper.arbiter.etcd import EtcdArbiter, Identity
from colo_helper.arbiter.interface import ArbiterError, RefusedError
from colo_helper.arbiter.record import ALONE, PROTECTED, Record, Seen

LEASE_S = 2
PAIR = Record("h1", "xa", 1, PROTECTED, "xb has a copy", 1000, "xb", "g1")
AFTER = Record("h1", "xb", 2, ALONE, "silence", 1001)
FOREVER_S = 30


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def etcd_url(tmp_path_factory):
    assert shutil.which("etcd"), "etcd-server is not installed: run make setup"
    with contextlib.ExitStack() as ends:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        directory = tmp_path_factory.mktemp("etcd")
        log = ends.enter_context((directory / "log").open("wb"))
        process = subprocess.Popen(
            [
                *("etcd", f"--data-dir={directory / 'data'}", f"--listen-client-urls={client}"),
                *(f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"),
                *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"),
            ],
            stdout=log,
            stderr=log,
        )
        ends.callback(process.wait)
        ends.callback(process.kill)
        wait_until(lambda: answers(client), "etcd answers")
        yield client


def answers(url):
    try:
        return EtcdArbiter([url], Identity(), 1.0).read("any") == Seen()
    except ArbiterError:
        return False


def wait_until(condition, what):
    deadline = time.monotonic() + FOREVER_S
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)  # etcd tells nobody when it listens, nor when a lease ends


@pytest.fixture(params=["emulated", "etcd"])
def arbiters(request):
    """Two hosts' ways to one arbiter, and the VM's name there."""
    if request.param == "emulated":
        store = EmulatedStore()
        made = EmulatedArbiter(store), EmulatedArbiter(store)
    else:
        url = request.getfixturevalue("etcd_url")
        made = tuple(EtcdArbiter([url], Identity(), 5.0) for _ in range(2))
    vm = request.node.name
    return *made, dataclasses.replace(PAIR, vm=vm), dataclasses.replace(AFTER, vm=vm)


def test_nothing_is_known_of_a_vm_at_first(arbiters):
    ours, _, pair, _ = arbiters
    assert ours.read(pair.vm) == Seen()


def test_what_one_puts_down_the_other_sees_and_may_change(arbiters):
    ours, theirs, pair, after = arbiters
    put = ours.change(Seen(), pair, LEASE_S)
    assert put.record == pair
    assert (put.lease.holder, put.lease.epoch) == ("xa", 1)
    assert theirs.read(pair.vm) == put
    assert ours.renew(put.lease)
    handed = ours.change(put, after, LEASE_S)
    assert (handed.record, handed.lease) == (after, None)
    assert theirs.read(pair.vm) == handed
    assert not ours.renew(put.lease)


def test_of_two_that_saw_the_same_one_is_refused_and_told_what_there_is(arbiters):
    ours, theirs, pair, after = arbiters
    put = ours.change(Seen(), pair, LEASE_S)
    ours.change(put, dataclasses.replace(after, owner="xa"), LEASE_S)
    with pytest.raises(RefusedError) as refused:
        theirs.change(put, after, LEASE_S)
    assert refused.value.seen == ours.read(pair.vm)
    assert refused.value.seen.record.owner == "xa"


def test_nobody_gets_what_another_holds_a_lease_of(arbiters):
    ours, theirs, pair, after = arbiters
    put = ours.change(Seen(), pair, LEASE_S)
    with pytest.raises(RefusedError):
        theirs.change(dataclasses.replace(put, lease=None), after, LEASE_S)
    assert theirs.read(pair.vm) == put


def test_a_lease_that_is_not_renewed_ends_not_before_its_time_and_lets_others_on(arbiters):
    ours, theirs, pair, after = arbiters
    asked = time.monotonic()
    put = ours.change(Seen(), pair, LEASE_S)
    wait_until(lambda: theirs.read(pair.vm).lease is None, "the lease ends")
    assert time.monotonic() - asked >= LEASE_S
    assert not ours.renew(put.lease)
    with pytest.raises(RefusedError):
        ours.change(put, dataclasses.replace(pair, epoch=2), LEASE_S)
    assert theirs.change(theirs.read(pair.vm), after, LEASE_S).record == after


def test_no_answer_is_not_no(etcd_url):
    nowhere = f"http://127.0.0.1:{free_port()}"
    lost = EtcdArbiter([nowhere], Identity(), 1.0)
    for ask in (lambda: lost.read("h1"), lambda: lost.change(Seen(), PAIR, LEASE_S)):
        with pytest.raises(ArbiterError, match=f"The arbiter does not answer: {nowhere}: "):
            ask()
    assert EtcdArbiter([nowhere, etcd_url], Identity(), 1.0).read("any") == Seen()


def test_a_certificate_that_is_not_there_is_no_answer_either():
    lost = EtcdArbiter(
        ["https://127.0.0.1:1"], Identity("/nowhere/ca.pem", "/nowhere/c.pem", "/nowhere/k.pem"), 1.0
    )
    with pytest.raises(ArbiterError, match="/nowhere/"):
        lost.read("h1")


def test_what_somebody_else_has_put_there_is_an_error(etcd_url):
    arbiter = EtcdArbiter([etcd_url], Identity(), 5.0)
    arbiter._clients[0].put("/colo/odd/record", "not ours")
    with pytest.raises(ArbiterError, match="What the arbiter keeps cannot be read: What is kept is not JSON"):
        arbiter.read("odd")
