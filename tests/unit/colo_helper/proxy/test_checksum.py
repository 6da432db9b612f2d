"""Checksums that follow a changed number are what a full computation gives (RFC 1624 against RFC 1071)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.proxy.checksum import is_partial, updated, with_numbers
from colo_helper.proxy.packet import ACK, parse
from tests.unit.colo_helper.proxy.frames import checksum, ones_sum, pseudo, tcp

numbers = st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([0, 0xFFFF_FFFF, 0xFFFF, 0xFFFF_0000, 1]))


@given(st.binary(min_size=8, max_size=40), numbers, numbers, st.integers(0, 60), st.booleans())
def test_an_update_is_what_a_full_computation_gives(data, old, new, at, first):
    """``data`` is never all zero where it counts: a pseudo header never is."""
    covered = bytearray(b"\x45" + data)
    at %= len(covered) - 4
    at = max(at, 1)
    covered[at : at + 4] = old.to_bytes(4, "big")
    before = checksum(bytes(covered))
    covered[at : at + 4] = new.to_bytes(4, "big")
    assert updated(before, old, new, odd=bool(at % 2)) == checksum(bytes(covered))


def is_right(frame, six, network=14):
    """Whether TCP's checksum is right, computed over the whole of it."""
    start = network + (40 if six else 20)
    addresses = ("2001:db8::10", "2001:db8:1::7") if six else ("192.0.2.10", "198.51.100.7")
    segment = frame[start:]
    return ones_sum(pseudo(*addresses, 6, len(segment)) + segment) == 0xFFFF


@pytest.mark.parametrize("six", [False, True])
@given(seq=numbers, ack=numbers, new=numbers, payload=st.binary(max_size=9))
def test_a_changed_segment_has_the_right_checksum(six, seq, ack, new, payload):
    packet = parse(tcp(seq, ack, ACK, payload, six=six))
    frame = with_numbers(packet, [(packet.transport + 4, new), (packet.transport + 8, seq)])
    changed = parse(frame)
    assert (changed.seq, changed.ack) == (new, seq)
    assert is_right(frame, six)


def test_a_checksum_that_was_wrong_stays_wrong():
    frame = bytearray(tcp(5, 6, ACK, b"abc"))
    frame[-1] ^= 1
    packet = parse(bytes(frame))
    assert not is_right(with_numbers(packet, [(packet.transport + 4, 99)]), six=False)


@pytest.mark.parametrize("vnet_bytes", [10, 12])
@pytest.mark.parametrize("partial", [False, True])
def test_a_checksum_left_to_the_device_is_left_alone(vnet_bytes, partial):
    packet = parse(tcp(5, 6, ACK, b"abc", partial=partial, vnet_bytes=vnet_bytes), vnet_bytes)
    frame = with_numbers(packet, [(packet.transport + 4, 99)])
    place = packet.transport + 16
    assert is_partial(packet) is partial
    assert frame[:vnet_bytes] == packet.frame[:vnet_bytes]
    assert (frame[place : place + 2] == packet.frame[place : place + 2]) is partial
    if partial:  # what the device does: the sum of all from csum_start on, over the sum that is there
        start = packet.transport
        done = frame[:place] + checksum(frame[start:]).to_bytes(2, "big") + frame[place + 2 :]
        assert is_right(done[vnet_bytes:], six=False)
    else:
        assert is_right(frame[vnet_bytes:], six=False)


def test_a_partial_checksum_of_something_else_is_none_of_ours():
    frame = bytearray(tcp(5, 6, vnet_bytes=12, partial=True))
    frame[6] += 2
    assert not is_partial(parse(bytes(frame), 12))
