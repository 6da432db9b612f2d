"""What clients are told when an outage is over."""

from __future__ import annotations

import struct

import pytest

from colo_helper.proxy.outage import Outage
from colo_helper.proxy.packet import ACK, FIN, RST, SYN, Kind, parse
from tests.unit.colo_helper.proxy.frames import (
    CLIENT6,
    CLIENT_MAC,
    GUEST6,
    GUEST_MAC,
    checksum,
    pseudo,
    tcp,
    udp,
)


def told(outage):
    """The frames, each once; they come three times, one after the other."""
    rows = list(outage.over(outage._clients))
    assert rows[::3] == rows[1::3] == rows[2::3]
    return rows[::3]


def talked(*frames, six=False, vnet_bytes=0, **options):
    """An outage that has seen frames: (whether the client's, seq, ack, flags, payload)."""
    outage = Outage(**options)
    for from_client, seq, ack, flags, payload in frames:
        frame = tcp(seq, ack, flags, payload, outward=not from_client, six=six, vnet_bytes=vnet_bytes)
        note = outage.from_client if from_client else outage.from_guest
        note(1, parse(frame, vnet_bytes))
    return outage


def quoted_numbers(rows):
    """The sequence numbers that the messages quote."""
    return sorted(struct.unpack(">I", frame[-4:])[0] for _, frame in rows)


OPENED = [
    (True, 99, 0, SYN, b""),
    (False, 499, 100, SYN | ACK, b""),
    (True, 100, 500, ACK, b""),
]


def test_a_connection_that_is_being_opened_is_not_spoken_of():
    assert told(talked(*OPENED[:2])) == []


def test_what_was_lost_begins_behind_all_that_is_acknowledged_or_behind_all_that_was_sent():
    assert quoted_numbers(told(talked(*OPENED))) == [100]
    asked = [*OPENED, (True, 100, 500, ACK, b"question")]
    assert quoted_numbers(told(talked(*asked))) == [100, 108]
    assert quoted_numbers(told(talked(*asked, (False, 500, 108, ACK, b"answer")))) == [108]
    ended = [*asked, (False, 500, 108, ACK, b""), (True, 108, 500, ACK | FIN, b"")]
    assert quoted_numbers(told(talked(*ended))) == [108, 109]
    assert quoted_numbers(told(talked(*OPENED, (True, 2**32 - 2, 500, ACK, b"abcd")))) == [2, 100]


def test_numbers_of_another_connection_of_the_same_ports_are_forgotten():
    assert told(talked(*OPENED, (True, 7000, 0, SYN, b""))) == []


@pytest.mark.parametrize("from_client", [True, False])
def test_a_connection_that_was_given_up_is_not_spoken_of(from_client):
    assert told(talked(*OPENED, (from_client, 100, 500, RST, b""))) == []


def test_the_message_is_one_of_the_guest_to_its_client():
    ((vnet_bytes, frame),) = told(talked(*OPENED))
    client = tcp(100, 500, ACK, outward=False)
    assert vnet_bytes == 0
    assert frame[:14] == CLIENT_MAC + GUEST_MAC + b"\x08\0"
    head, message = frame[14:34], frame[34:]
    assert checksum(head) == 0
    assert checksum(message) == 0
    assert parse(frame).kind is Kind.ICMP
    assert head[12:20] == client[30:34] + client[26:30]
    assert message[:2] == bytes((3, 1))
    assert message[8:] == client[14:42]


def test_the_message_of_version_six_with_a_vnet_header():
    ((vnet_bytes, frame),) = told(talked(*OPENED, six=True, vnet_bytes=12))
    client = tcp(100, 500, ACK, outward=False, six=True)
    assert vnet_bytes == 12
    assert frame[:12] == bytes(12)
    assert parse(frame, 12).kind is Kind.ICMP
    message = frame[12 + 14 + 40 :]
    assert checksum(pseudo(GUEST6, CLIENT6, 58, len(message)) + message) == 0
    assert message[:2] == bytes((1, 0))
    assert message[8:] == client[14 : 14 + 48]


def test_only_of_the_connections_that_are_asked_for():
    assert list(talked(*OPENED).over([(0, b"of another NIC")])) == []


def test_connections_that_are_silent_longest_are_forgotten_first():
    outage = Outage(2)
    for port in (1, 2, 3):
        outage.from_client(0, parse(tcp(port, 1, ACK, outward=False, ports=(80, port))))
    assert quoted_numbers(told(outage)) == [2, 3]


def test_other_packets_are_nobodys_connection():
    outage = Outage()
    outage.from_client(0, parse(udp(b"question", outward=False)))
    outage.from_guest(0, parse(udp(b"answer")))
    assert told(outage) == []
