"""The way to the arbiter by certificates, with real etcds as the role colo_witness sets them up.

Whatever is wrong with a certificate is no answer ("cannot tell"), never a no.
"""

import contextlib
import dataclasses
import re
import ssl
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest

from colo_helper.arbiter import tls
from colo_helper.arbiter.etcd import EtcdArbiter, Identity
from colo_helper.arbiter.interface import ArbiterError, RefusedError
from colo_helper.arbiter.record import ALONE, PROTECTED, Record, Seen
from tests.unit.ansible.module_host import utility
from tests.unit.colo_helper.arbiter.test_arbiters import free_port, wait_until
from tests.unit.colo_helper.arbiter.witness_etcd import authority, etcd, put_identity

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=40)
ENDED = f"{LONG_AGO + timedelta(days=30):%Y-%m-%d}"
#: Two ways in which etcd refuses one: it says so, or hangs up while the host still sends (TLS 1.3).
REFUSES = re.compile(r"it (?:refuses|hung up, and may refuse) (?P<what>.+?)(?: \(.*\))?\.$")
PAIR = Record("h1", "xa", 1, PROTECTED, "xb has a copy", 1000, "xb", "g1")


def urls():
    return [f"https://127.0.0.1:{free_port()}" for _ in range(2)]


def answers(url, identity):
    with contextlib.suppress(ArbiterError):
        return EtcdArbiter([url], identity, 2.0).read("any") == Seen()
    return False


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("witness")


@pytest.fixture(scope="module")
def signer():
    return authority.make_authority(NOW)


@pytest.fixture(scope="module")
def xa(directory, signer):
    return put_identity(directory / "xa", signer, "xa", ["xa"])


@pytest.fixture(scope="module")
def witness(directory, signer, xa):
    """The URL of one witness."""
    client, peer = urls()
    put_identity(directory / "w1", signer, "colo-witness", ["127.0.0.1"], server=True)
    with etcd(directory, "w1", client, peer, f"w1={peer}"):
        wait_until(lambda: answers(client, xa), "etcd answers")
        yield client


def fetch(url, identity):
    """What a URL of https answers to whom ``identity`` says; raises OSError."""
    context = ssl.create_default_context(cafile=identity.ca)
    context.load_cert_chain(identity.certificate, identity.key)
    direct = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    with urllib.request.build_opener(*direct).open(url, timeout=5) as answer:
        return answer.read()


def said(url, identity):
    with pytest.raises(ArbiterError) as failure:
        EtcdArbiter([url], identity, 5.0).read("h1")
    text = str(failure.value)
    assert text.startswith(f"The arbiter does not answer: {url}: ")
    return text.removeprefix(f"The arbiter does not answer: {url}: ")


def test_a_certificate_of_the_authority_is_all_it_takes(witness, xa):
    arbiter = EtcdArbiter([witness], xa, 5.0)
    put = arbiter.change(Seen(), dataclasses.replace(PAIR, vm="right"), 3)
    assert arbiter.renew(put.lease)
    assert arbiter.change(put, dataclasses.replace(PAIR, vm="right", mode=ALONE, epoch=2), 3).lease is None


def test_what_a_witness_keeps_a_lease_of_is_known_there(witness, xa, directory, monkeypatch):
    arbiter = EtcdArbiter([witness], xa, 5.0)
    arbiter.change(Seen(), dataclasses.replace(PAIR, vm="kept"), 60)
    arbiter.change(Seen(), dataclasses.replace(PAIR, vm="alone", mode=ALONE), 60)
    info = utility("witness")
    monkeypatch.setattr(info, "CERTIFICATES", directory / "w1")
    assert info.ask_leases(witness) == ("kept",)
    monkeypatch.setattr(info, "CERTIFICATES", directory / "nowhere")
    assert info.ask_leases(witness) is None


def test_without_a_certificate_nobody_can_tell(witness, xa):
    assert said(witness, Identity(ca=xa.ca)).startswith(
        "it answers nobody without a certificate, and this host shows none"
    )


def test_with_a_certificate_of_another_authority_nobody_can_tell(witness, xa, directory):
    other = put_identity(directory / "other", authority.make_authority(NOW), "xa", ["xa"])
    shown = Identity(xa.ca, other.certificate, other.key)
    assert REFUSES.match(said(witness, shown))["what"] == other.certificate


def test_with_an_expired_certificate_nobody_can_tell(witness, directory, signer):
    late = put_identity(directory / "late", signer, "xa", ["xa"], now=LONG_AGO)
    assert REFUSES.match(said(witness, late))["what"] == f"{late.certificate}, which ended on {ENDED}"


def test_a_replicator_that_runs_uses_its_hosts_certificate_that_was_renewed(witness, directory, signer):
    late = put_identity(directory / "renewed", signer, "xa", ["xa"], now=LONG_AGO)
    arbiter = EtcdArbiter([witness], late, 5.0)
    with pytest.raises(ArbiterError):
        arbiter.read("any")
    put_identity(directory / "renewed", signer, "xa", ["xa"])
    assert arbiter.read("any") == Seen()


def test_a_witness_of_another_authority_is_not_believed(witness, xa, directory):
    other = put_identity(directory / "other", authority.make_authority(NOW), "xa", ["xa"])
    believing = Identity(other.ca, xa.certificate, xa.key)
    assert said(witness, believing).startswith(f"its certificate does not hold against {other.ca} (")


def test_a_witness_is_asked_by_a_name_of_its_own(witness, xa):
    assert "Hostname mismatch" in said(witness.replace("127.0.0.1", "localhost"), xa)


def test_a_key_of_another_certificate_is_named(witness, xa, directory, signer):
    other = put_identity(directory / "xb", signer, "xb", ["xb"])
    mixed = Identity(xa.ca, xa.certificate, other.key)
    assert said(witness, mixed) == f"{xa.certificate} is not of the key beside it."


def test_the_environment_does_not_choose_the_way_or_the_authority(witness, xa, directory, monkeypatch):
    other = put_identity(directory / "other", authority.make_authority(NOW), "xa", ["xa"])
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", other.ca)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    assert EtcdArbiter([witness], xa, 5.0).read("any") == Seen()


def test_a_running_witness_uses_its_certificate_that_was_renewed(xa, directory, signer):
    client, peer = urls()
    put_identity(directory / "w2", signer, "colo-witness", ["127.0.0.1"], server=True, now=LONG_AGO)
    with etcd(directory, "w2", client, peer, f"w2={peer}"):
        wait_until(lambda: "has expired" in said(client, xa), "etcd shows its certificate")
        put_identity(directory / "w2", signer, "colo-witness", ["127.0.0.1"], server=True)
        wait_until(lambda: answers(client, xa), "etcd shows the new one")


def test_three_witnesses_go_on_without_one_and_let_no_host_be_a_member(xa, directory, signer):
    addresses = {name: urls() for name in ("a", "b", "c")}
    cluster = ",".join(f"{name}={peer}" for name, (_, peer) in addresses.items())
    clients = [client for client, _ in addresses.values()]
    arbiter = EtcdArbiter(clients, xa, 2.0)

    def put(record):
        def done():
            with contextlib.suppress(ArbiterError, RefusedError):
                seen = arbiter.read("h1")
                return seen if seen.record == record else arbiter.change(seen, record, 3)
            return None

        wait_until(done, "a majority answers")  # an election takes its time, and tells nobody
        return arbiter.read("h1").record

    with contextlib.ExitStack() as ends:
        processes = []
        for name, (client, peer) in addresses.items():
            put_identity(directory / name, signer, "colo-witness", ["127.0.0.1"], server=True)
            processes.append(ends.enter_context(etcd(directory, name, client, peer, cluster)))
        alone = dataclasses.replace(PAIR, mode=ALONE)
        assert put(alone) == alone
        members = addresses["b"][1] + "/members"
        assert fetch(
            members, Identity(xa.ca, *(f"{directory}/a/{name}.pem" for name in ("certificate", "key")))
        )
        with pytest.raises(OSError, match=r"."):
            fetch(members, xa)
        processes[0].kill()
        processes[0].wait()
        later = dataclasses.replace(alone, epoch=2)
        assert put(later) == later


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("(Caused by SSLError(1, '[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)')",
         "it refuses /c.pem (tlsv1 alert unknown ca)"),
        ("[Errno 111] Connection refused", "[Errno 111] Connection refused"),
        ("RemoteDisconnected('Remote end closed connection without response')", "it hung up, and may refuse /c.pem"),
    ],
)  # fmt: skip
def test_what_is_not_about_certificates_stays_as_it_was(said, words):
    assert tls.in_words(said, "/ca.pem", "/c.pem") == words
