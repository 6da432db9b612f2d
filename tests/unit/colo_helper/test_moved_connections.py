"""A client keeps one connection over two takeovers and all the replicators in between: on the emulated hypervisor.

The connection is younger than the last checkpoint when its first host dies: its client knows numbers that the guest does not.
"""

import os

import pytest

from colo_helper.channel.session import Session, Timing
from colo_helper.proxy.packet import ACK, FIN, SYN, parse
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.traffic.framing import FrameReader, RawFrame, pack
from tests.unit.colo_helper.emulated_host import EmulatedHost
from tests.unit.colo_helper.proxy.frames import tcp
from tests.unit.colo_helper.replication_pair import VM, eventually, pairs_that_retry

BRIEF_MS = 500
#: Initial sequence numbers of the client, of the first host's guest and of its copy.
CLIENT, FIRST, COPY = 50, 5000, 1000


@pytest.fixture
def pair(monkeypatch):
    with pairs_that_retry(monkeypatch, BRIEF_MS) as make:
        yield make


@pytest.fixture
def hosts(tmp_path):
    made = [EmulatedHost(run_dir=tmp_path / name) for name in ("xa", "xb", "xc")]
    for host in made:
        host.run_dir.mkdir()
    return made


def nic(host):
    """The device model's ends of the guest's one NIC."""
    return host.filters[host.find(VM)].ends[0]


def send(end, *args, **kwargs):
    end.sendall(pack(RawFrame(tcp(*args, **kwargs), 0)))


def received(end):
    end.settimeout(10)
    found = FrameReader().feed(end.recv(1 << 16))
    return parse(found[-1].data)


def asks_and_is_answered(host, said, copy=None):
    """The client says ``said`` bytes of its own, and gets an answer of one byte, by its numbers."""
    send(nic(host).from_network, CLIENT + 1 + said, FIRST + 1 + said, payload=b"?", outward=False)
    for one in filter(None, (host, copy)):
        if one is host and nic(host).to_guest is None:
            continue
        assert received(nic(one).to_guest).ack == COPY + 1 + said
    for one in filter(None, (host, copy)):
        send(nic(one).from_guest, COPY + 1 + said, CLIENT + 2 + said, payload=b"!")
    assert received(nic(host).to_network).seq == FIRST + 1 + said


def opened_and_taken_over(pair, hosts, said=b""):
    """A pair whose client opened a connection just before the primary's host died; its copy has taken over.

    ``said``: what the copy alone has said over it before.
    """
    both = pair(primary_host=hosts[0], secondary_host=hosts[1]).start().replicating()
    both.ask("primary", "checkpoint")
    both.both_run()
    ours, theirs = nic(hosts[0]), nic(hosts[1])
    send(ours.from_network, CLIENT, flags=SYN, outward=False)
    received(theirs.to_guest)
    send(ours.from_guest, FIRST, CLIENT + 1, SYN | ACK)
    send(theirs.from_guest, COPY, CLIENT + 1, SYN | ACK)
    assert received(ours.to_network).seq == FIRST
    send(ours.from_network, CLIENT + 1, FIRST + 1, outward=False)
    assert received(theirs.to_guest).ack == COPY + 1
    if said:
        send(theirs.from_guest, COPY + 1, CLIENT + 1, payload=said)
    both.cut_line()
    both.phase("secondary", "peer_lost")
    answer = both.ask("secondary", "takeover")
    assert (answer["ok"], answer["followed"]) == (True, 1)
    if said:
        again = received(theirs.to_network)
        assert (again.seq, again.frame[again.payload : again.end]) == (FIRST + 1, said)
    else:
        asks_and_is_answered(hosts[1], 0)
    return both


def test_an_answer_that_never_left_comes_with_the_takeover(pair, hosts):
    """Nobody sends anything after the takeover, neither the guest nor its client."""
    opened_and_taken_over(pair, hosts, said=b"answer")


def made_the_primary(pair, both, hosts, output="compare"):
    """The host that took over gets a secondary: its replicator ends, and one with the other role begins."""
    both.s_inbox.put_stop("The service manager stopped the replicator.")
    assert both.ended("secondary") == 0
    assert both.events("secondary")[-1]["sentence"].startswith("Connections of h1 whose numbers")
    hosts[1].devices[hosts[1].find(VM)].closed = False

    def before_there_is_a_copy(_pair):
        asks_and_is_answered(hosts[1], 1)

    options = {"before_link": before_there_is_a_copy, "output": output}
    return pair(primary_host=hosts[1], secondary_host=hosts[2], **options).start()


def test_a_connection_goes_on_through_two_takeovers(pair, hosts):
    both = opened_and_taken_over(pair, hosts)
    again = made_the_primary(pair, both, hosts)
    again.replicating()
    asks_and_is_answered(hosts[1], 2, hosts[2])
    again.ask("primary", "checkpoint")
    again.both_run()
    asks_and_is_answered(hosts[1], 3, hosts[2])
    again.cut_line()
    again.phase("secondary", "peer_lost")
    again.phase("primary", "unprotected")
    asks_and_is_answered(hosts[1], 4)  # whoever lives moves them: here the first of the two,
    answer = again.ask("secondary", "takeover")
    assert (answer["ok"], answer["followed"]) == (True, 1)
    again = received(nic(hosts[2]).to_network)
    assert (again.seq, again.frame[again.payload : again.end]) == (FIRST + 4, b"!"), (
        "said since the checkpoint"
    )
    asks_and_is_answered(hosts[2], 4)  # and had it died, the other


def test_a_replicator_that_is_started_anew_after_a_takeover_goes_on(pair, hosts):
    both = opened_and_taken_over(pair, hosts)
    both.s_inbox.put_stop("The service manager stopped the replicator.")
    assert both.ended("secondary") == 0
    saved = both.saved_by("secondary")
    hosts[1].devices[hosts[1].find(VM)].closed = False
    pair(secondary_host=hosts[1], saved=saved, only_secondary=True).start().phase("secondary", "active")
    asks_and_is_answered(hosts[1], 1)


def test_a_connection_goes_on_where_outputs_are_only_held(pair, hosts):
    both = opened_and_taken_over(pair, hosts)
    again = made_the_primary(pair, both, hosts, "hold").replicating()
    again.cut_line()
    again.phase("secondary", "peer_lost")
    assert again.ask("secondary", "takeover")["ok"] is True
    asks_and_is_answered(hosts[2], 2)


def test_a_connection_goes_on_after_a_switch_over(pair, hosts):
    both = opened_and_taken_over(pair, hosts)
    again = made_the_primary(pair, both, hosts).replicating()
    again.both_run()
    assert again.ask("primary", "switchover")["ok"] is True
    assert [again.ended(role) for role in ("primary", "secondary")] == [0, 0]
    for host in hosts[1:]:
        host.devices[host.find(VM)].closed = False
    after = {"before_link": lambda _pair: asks_and_is_answered(hosts[2], 2)}
    pair(primary_host=hosts[2], secondary_host=EmulatedHost(next_domid=9), **after).start().replicating()


def test_a_connection_that_ends_is_forgotten_on_both_hosts(pair, hosts):
    """Its ports may be used again, and what is opened then has numbers of its own."""
    both = opened_and_taken_over(pair, hosts)
    again = made_the_primary(pair, both, hosts).replicating()
    again.both_run()
    assert all((host.run_dir / "moved.json").exists() for host in hosts[1:])
    for one in hosts[1:]:
        send(nic(one).from_guest, COPY + 3, CLIENT + 3, FIN | ACK)
    assert received(nic(hosts[1]).to_network).seq == FIRST + 3
    send(nic(hosts[1]).from_network, CLIENT + 3, FIRST + 4, FIN | ACK, outward=False)
    assert [received(nic(one).to_guest).ack for one in hosts[1:]] == [COPY + 4] * 2
    again.ask("primary", "checkpoint")
    again.both_run()
    assert not any((host.run_dir / "moved.json").exists() for host in hosts[1:])


def test_a_table_that_cannot_be_read_does_not_hinder_anybody(pair, hosts):
    both = opened_and_taken_over(pair, hosts)
    both.s_inbox.put_stop("The service manager stopped the replicator.")
    assert both.ended("secondary") == 0
    table = hosts[1].run_dir / "moved.json"
    stamp = table.stat().st_mtime_ns
    table.write_text("[")
    os.utime(table, ns=(stamp, stamp))
    hosts[1].devices[hosts[1].find(VM)].closed = False
    again = pair(primary_host=hosts[1], secondary_host=hosts[2]).start().replicating()
    assert "cannot be used" in next(
        one["sentence"] for one in again.events("primary") if one["event"] == "moved_connections"
    )


def test_packets_flow_by_themselves_when_what_moves_them_fails_without_a_secondary(pair, hosts):
    both = opened_and_taken_over(pair, hosts)
    again = made_the_primary(pair, both, hosts).replicating()
    again.cut_line()
    again.phase("primary", "unprotected")
    nic(hosts[1]).from_guest.sendall(b"\xff" * 64)
    eventually(lambda: not hosts[1].filters[7].attached, "the filters are taken away")


def test_packets_flow_by_themselves_when_what_moves_them_fails_in_the_last_session(pair, hosts):
    both = opened_and_taken_over(pair, hosts)
    again = made_the_primary(pair, both, hosts).replicating()
    again.cut_line()
    nic(hosts[1]).from_guest.sendall(b"\xff" * 64)
    again.phase("primary", "unprotected")
    eventually(lambda: not hosts[1].filters[7].attached, "the filters are taken away")


def test_what_fails_while_a_primary_is_turned_away_is_not_forgotten(pair, hosts, monkeypatch):
    both = opened_and_taken_over(pair, hosts)
    active = both.secondary.active

    def fail_meanwhile(self, *_kinds, **_options):
        nic(hosts[1]).from_guest.sendall(b"\xff" * 64)
        eventually(lambda: active.copy.failure, "it fails")
        raise SessionEndedError(Cause.PEER_LOST, "It went (scripted).")

    monkeypatch.setattr(Conversation, "expect", fail_meanwhile)
    both.s_inbox.put_session(Session("late", "back", Timing(10)))
    eventually(
        lambda: any(one["event"] == "packets_flow" for one in both.events("secondary")), "it is noticed"
    )
    assert not hosts[1].filters[7].attached
