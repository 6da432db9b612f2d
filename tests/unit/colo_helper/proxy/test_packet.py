"""Frames are read once, by what their headers say; damage makes them OTHER, never an error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.proxy.packet import ACK, FIN, SYN, Kind, flow_name, opposite, parse
from tests.unit.colo_helper.proxy import frames
from tests.unit.colo_helper.proxy.frames import arp, ethernet, icmp, ip, tcp, udp

TCP_FLOW = bytes.fromhex("c000020a c6336407 0050 c738".replace(" ", ""))


def payload_of(packet):
    return packet.frame[packet.payload : packet.end]


@pytest.mark.parametrize("vnet_bytes", [0, 10, 12])
@pytest.mark.parametrize("options", [b"", b"\x01\x01\x01\x00"])
@pytest.mark.parametrize("vlan", [None, 0x2007])
@pytest.mark.parametrize("pad", [0, 200])
def test_tcp_over_ipv4(vnet_bytes, options, vlan, pad):
    segment = frames.tcp_segment(
        (frames.GUEST, frames.CLIENT), (80, 51_000), 7, 9, ACK | FIN, b"hello", b"\x01" * 4
    )
    frame = b"\xaa" * vnet_bytes + ip(segment, 6, options=options, vlan=vlan, pad=pad)
    packet = parse(frame, vnet_bytes)
    tag = 0 if vlan is None else 4
    assert packet.kind is Kind.TCP
    assert (packet.seq, packet.ack, packet.flags) == (7, 9, ACK | FIN)
    assert packet.flow == TCP_FLOW + (b"" if vlan is None else b"\0\x07")
    assert packet.ethernet == vnet_bytes
    assert packet.network == vnet_bytes + 14 + tag
    assert packet.transport == packet.network + 20 + len(options)
    assert payload_of(packet) == b"hello"
    assert flow_name(packet) == "TCP 192.0.2.10:80 to 198.51.100.7:51000"


EXTENSIONS = {
    "hop by hop": (0, bytes([6, 0, *range(6)])),
    "routing, then options": (43, bytes([60, 1, *bytes(14)]) + bytes([6, 0, *bytes(6)])),
    "authentication": (51, bytes([6, 4, *bytes(22)])),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_tcp_over_ipv6_with_extension_headers(name):
    first, extensions = EXTENSIONS[name]
    packet = parse(tcp(1, 2, SYN, b"abc", six=True, first=first, extensions=extensions, pad=300))
    assert packet.kind is Kind.TCP
    assert payload_of(packet) == b"abc"
    assert packet.flow == parse(tcp(5, six=True)).flow
    assert flow_name(packet) == "TCP [2001:db8::10]:80 to [2001:db8:1::7]:51000"


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("vlan", [None, 9])
def test_the_flow_of_the_other_end(six, vlan):
    ours, theirs = (parse(tcp(1, six=six, vlan=vlan, outward=outward)).flow for outward in (True, False))
    assert ours != theirs
    assert opposite(ours) == theirs
    assert opposite(theirs) == ours


def test_one_vlan_in_another_and_no_third():
    tagged = tcp(1, vlan=7)
    twice = tagged[:12] + bytes.fromhex("88a80005") + tagged[12:]
    thrice = twice[:12] + bytes.fromhex("88a80001") + twice[12:]
    assert parse(twice).flow == TCP_FLOW + b"\0\5\0\7"
    assert parse(thrice).kind is Kind.OTHER


def test_udp_ends_where_its_own_length_says():
    packet = parse(udp(b"name?", pad=60))
    assert (packet.kind, payload_of(packet)) == (Kind.UDP, b"name?")
    assert flow_name(packet) == "UDP 192.0.2.10:53 to 198.51.100.7:4000"


def test_echoes_are_told_apart_by_their_identifier():
    flows = [parse(icmp(0, 0, struct.pack(">HH", ident, 1) + b"x")).flow for ident in (1, 1, 2)]
    assert flows[0] == flows[1] != flows[2]
    unreachable = [parse(icmp(3, 1, struct.pack(">HH", unused, 0) + bytes(28))) for unused in (0, 5)]
    assert unreachable[0].flow == unreachable[1].flow
    assert flow_name(unreachable[0]) == "ICMP type 3 192.0.2.10 to 198.51.100.7"


@pytest.mark.parametrize(
    ("frame", "kind", "name"),
    [
        (ip(b"data", 132), Kind.IP, "packets of IP protocol 132 192.0.2.10 to 198.51.100.7"),
        (udp(b"data", fragment=0x2000), Kind.FRAGMENT, "fragments of IP protocol 17 192.0.2.10 to 198.51.100.7"),
        (udp(b"data", fragment=3), Kind.FRAGMENT, "fragments of IP protocol 17 192.0.2.10 to 198.51.100.7"),
        (
            ip(b"data", 17, frames.GUEST6, frames.CLIENT6, first=44, extensions=bytes([17, 0, 0, 9, 0, 0, 0, 1])),
            Kind.FRAGMENT,
            "fragments of IP protocol 17 2001:db8::10 to 2001:db8:1::7",
        ),
        (ethernet(b"lldp", 0x88CC), Kind.OTHER, "the frames 00163e0000c100163e00000a88cc"),
    ],
)  # fmt: skip
def test_what_is_not_tcp_udp_or_icmp(frame, kind, name):
    packet = parse(frame)
    assert packet.kind is kind
    assert flow_name(packet) == name


def test_do_not_fragment_is_no_fragment():
    assert parse(udp(b"data", fragment=0x4000)).kind is Kind.UDP


NEIGHBOURS = {
    "arp": arp(),
    "solicitation": icmp(135, 0, bytes(20), frames.GUEST6, "ff02::1:ff00:7"),
    "advertisement": icmp(136, 0, bytes(4) + bytes(15) + b"\1", frames.GUEST6, "ff02::1"),
    "listener report": icmp(143, 0, bytes(8), frames.GUEST6, "ff02::16"),
    "igmp": ip(b"\x16\0\xee\xee\xe0\0\0\5", 2),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_announcements(name):
    packet = parse(NEIGHBOURS[name])
    assert packet.kind is Kind.NEIGHBOUR
    assert packet.flow[:5] in (b"is at", b"joins")


def test_announcements_mean_the_same_or_not():
    assert parse(arp(1)).flow == parse(arp(2, target="192.0.2.99", pad=60)).flow
    assert parse(arp()).flow != parse(arp(address="192.0.2.11")).flow
    assert parse(arp()).flow != parse(arp(mac=bytes(6))).flow
    assert parse(arp()).flow != parse(arp(vlan=5)).flow


def other_length(frame, at, value):
    return frame[:at] + struct.pack(">H", value) + frame[at + 2 :]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        tcp(1)[:13],
        tcp(1)[:30],
        tcp(1)[:50],  # in TCP's header
        other_length(tcp(1), 16, 39),  # IP says less than both headers have
        other_length(tcp(1), 16, 41),  # IP says more than there is
        other_length(tcp(1), 14, 0x4400),  # IP's header of 16 bytes
        other_length(tcp(1), 14, 0x6500),  # IPv6 says IPv4
        other_length(tcp(1), 46, 0x4010),  # TCP's header of 16 bytes
        other_length(tcp(1), 46, 0xF010),  # TCP's header of 60 bytes
        other_length(tcp(1, six=True), 18, 0),  # a jumbogram
        other_length(tcp(1, six=True), 14, 0x4500),  # IPv4 says IPv6
        tcp(1, six=True, first=0, extensions=bytes([6, 9, *bytes(6)])),  # an extension header beyond the end
        other_length(ip(b"data", 132), 16, 19),  # IP says less than its own header has
        ip(b"data", 132, frames.GUEST6, frames.CLIENT6, first=0, extensions=bytes([132, 9, *bytes(6)])),
        other_length(udp(b"abc"), 38, 7),
        other_length(udp(b"abc"), 38, 12),
        icmp(8, 0, b"abc"),
        other_length(arp(), 18, 0x0804),
        arp()[:40],
        icmp(136, 0, bytes(19), frames.GUEST6, "ff02::1"),
        ethernet(b"", 0x8100),
    ],
)
def test_damage_makes_a_packet_other(frame):
    for vnet_bytes in (0, 12):
        packet = parse(bytes(vnet_bytes) + frame, vnet_bytes)
        assert packet.kind is Kind.OTHER
        assert payload_of(packet) == frame


FRAMES = [
    tcp(1, 2, ACK, b"abc", b"\x01" * 8),
    tcp(1, six=True, first=0, extensions=EXTENSIONS["hop by hop"][1]),
    udp(b"abc", vlan=5),
    icmp(0, 0, bytes(8)),
    *NEIGHBOURS.values(),
]


@given(st.sampled_from(FRAMES), st.data(), st.sampled_from([0, 10, 12]))
def test_any_damage_is_read_without_an_error(frame, data, vnet_bytes):
    damaged = bytearray(frame)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    packet = parse(bytes(vnet_bytes) + bytes(damaged[:cut]), vnet_bytes)
    assert vnet_bytes <= packet.payload <= packet.end <= max(vnet_bytes + cut, packet.payload)
    assert flow_name(packet)
