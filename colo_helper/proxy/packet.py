"""One look at an Ethernet frame: what it is, which flow it belongs to, and where its payload begins and ends.

Sources of the formats: RFC 791 and 8200 (IP), 9293 (TCP), 768 (UDP), 792 and 4443 (ICMP), 826 (ARP), 4861 (ND), IEEE 802.1Q
(VLAN), and the virtio specification 1.2, 5.1.6 (the header in front of a frame of virtio-net).

The end of a packet is what its IP header says, so the padding of short frames is never payload. What is damaged, cut off or
unknown is of the kind OTHER and never an error: guests may send anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, unique
from ipaddress import ip_address

FIN, SYN, RST, ACK, URG = 0x01, 0x02, 0x04, 0x10, 0x20

_MACS_BYTES = 12
_VLAN_TAGS = (0x8100, 0x88A8)
#: One tag in another, as IEEE 802.1ad has it, and no more; two bytes of each are the VLAN's number.
_MOST_VLAN_BYTES = 4
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_ICMP, _IGMP, _TCP, _UDP, _ICMPV6 = 1, 2, 6, 17, 58
_FRAGMENT_HEADER, _AUTHENTICATION, _OPTIONS_HEADERS = 44, 51, (0, 43, 60, 135)
#: ICMP types whose bytes 4 and 5 name a conversation: echo requests and replies.
_ECHOES = {_ICMP: (0, 8), _ICMPV6: (128, 129)}
_SOLICITATIONS, _ADVERTISEMENT = (133, 135), 136
_LISTENER_REPORTS = (131, 132, 143)
#: Where more fragments follow, or this one is not the first.
_FRAGMENTED = 0x3FFF

_ether_type = struct.Struct(">12xH").unpack_from
_tag = struct.Struct(">HH").unpack_from
_ipv4 = struct.Struct(">BxHxxHxB").unpack_from
_ipv6 = struct.Struct(">B3xHB33x").unpack_from
_tcp = struct.Struct(">4xIIH6x").unpack_from
_udp_length = struct.Struct(">4xHxx").unpack_from
_arp = struct.Struct(">HHBB22x").unpack_from


@unique
class Kind(IntEnum):
    """How a packet is compared; see docs/architecture/proxy.md."""

    OTHER = 0
    TCP = 1
    UDP = 2
    ICMP = 3
    IP = 4
    FRAGMENT = 5
    NEIGHBOUR = 6


@dataclass(slots=True)
class Packet:
    """A frame and what one look found. Places are offsets into ``frame``.

    ``frame`` begins with the vnet header, if the stream has one: ``ethernet`` is its length. ``flow`` names the conversation
    as its sender sees it: its own address, the other's, its own port, the other's, and the VLAN if there is one. For neighbours
    it is what the packet says about its sender. ``transport`` is where TCP, UDP or ICMP begins; ``end`` is the first byte that
    is not the packet's. ``seq``, ``ack`` and ``flags`` are TCP's.
    """

    frame: bytes
    kind: Kind
    flow: bytes
    ethernet: int
    network: int
    transport: int
    payload: int
    end: int
    seq: int = 0
    ack: int = 0
    flags: int = 0


def parse(frame: bytes, vnet_bytes: int = 0) -> Packet:
    """Return what a frame is; ``vnet_bytes`` (0, 10 or 12) is what stands in front of it. Never raises."""
    try:
        network = vnet_bytes + _MACS_BYTES + 2
        (ether_type,) = _ether_type(frame, vnet_bytes)
        vlan = b""
        while ether_type in _VLAN_TAGS and len(vlan) < _MOST_VLAN_BYTES:
            tag, ether_type = _tag(frame, network)
            vlan += (tag & 0xFFF).to_bytes(2, "big")
            network += 4
        packet = None
        if ether_type == _IPV4:
            packet = _parse_ipv4(frame, vnet_bytes, network, vlan)
        elif ether_type == _IPV6:
            packet = _parse_ipv6(frame, vnet_bytes, network, vlan)
        elif ether_type == _ARP:
            packet = _parse_arp(frame, vnet_bytes, network, vlan)
    except (struct.error, IndexError):
        packet = None
    if packet is not None:
        return packet
    flow = frame[vnet_bytes : vnet_bytes + _MACS_BYTES + 2]
    return Packet(frame, Kind.OTHER, flow, vnet_bytes, vnet_bytes, vnet_bytes, vnet_bytes, len(frame))


def _parse_ipv4(frame: bytes, ethernet: int, network: int, vlan: bytes) -> Packet | None:
    version, total, fragment, protocol = _ipv4(frame, network)
    end = network + total
    transport = network + 4 * (version & 15)
    if not 0x45 <= version < 0x50 or transport > end or end > len(frame):
        return None
    if fragment & _FRAGMENTED:
        flow = frame[network + 12 : network + 20] + frame[network + 9 : network + 10] + vlan
        return Packet(frame, Kind.FRAGMENT, flow, ethernet, network, transport, transport, end)
    return _parse_transport(frame, ethernet, network, transport, end, protocol, vlan)


def _parse_ipv6(frame: bytes, ethernet: int, network: int, vlan: bytes) -> Packet | None:
    version, length, protocol = _ipv6(frame, network)
    transport = network + 40
    end = transport + length
    if version >> 4 != 6 or not length or end > len(frame):
        return None
    while protocol in _OPTIONS_HEADERS or protocol == _AUTHENTICATION:
        units = frame[transport + 1]
        step = 4 * (units + 2) if protocol == _AUTHENTICATION else 8 * (units + 1)
        protocol = frame[transport]
        transport += step
        if transport > end:
            return None
    if protocol == _FRAGMENT_HEADER:
        flow = frame[network + 8 : network + 40] + frame[transport : transport + 1] + vlan
        return Packet(frame, Kind.FRAGMENT, flow, ethernet, network, transport, transport, end)
    return _parse_transport(frame, ethernet, network, transport, end, protocol, vlan)


def _parse_transport(
    frame: bytes, ethernet: int, network: int, transport: int, end: int, protocol: int, vlan: bytes
) -> Packet | None:
    addresses = (
        frame[network + 8 : network + 40] if frame[network] >> 4 == 6 else frame[network + 12 : network + 20]
    )
    if protocol == _TCP:
        seq, ack, words_flags = _tcp(frame, transport)
        payload = transport + (words_flags >> 12) * 4
        if payload < transport + 20 or payload > end:
            return None
        flow = addresses + frame[transport : transport + 4] + vlan
        flags = words_flags & 0x3F
        return Packet(frame, Kind.TCP, flow, ethernet, network, transport, payload, end, seq, ack, flags)
    if protocol == _UDP:
        (length,) = _udp_length(frame, transport)
        if length < 8 or transport + length > end:
            return None
        flow = addresses + frame[transport : transport + 4] + vlan
        return Packet(frame, Kind.UDP, flow, ethernet, network, transport, transport + 8, transport + length)
    if protocol in (_ICMP, _IGMP, _ICMPV6):
        return _parse_control(frame, ethernet, network, transport, end, protocol, addresses, vlan)
    flow = addresses + bytes((protocol,)) + vlan
    return Packet(frame, Kind.IP, flow, ethernet, network, transport, transport, end)


def _parse_control(
    frame: bytes,
    ethernet: int,
    network: int,
    transport: int,
    end: int,
    protocol: int,
    addresses: bytes,
    vlan: bytes,
) -> Packet | None:
    if end - transport < 8:
        return None
    kind = frame[transport]
    mac = frame[ethernet + 6 : ethernet + 12]
    if protocol == _IGMP or (protocol == _ICMPV6 and kind in _LISTENER_REPORTS):
        flow = b"joins" + frame[transport : transport + 2] + frame[transport + 4 : end] + vlan
    elif protocol == _ICMPV6 and kind in _SOLICITATIONS:
        flow = b"is at" + mac + addresses[:16] + vlan
    elif protocol == _ICMPV6 and kind == _ADVERTISEMENT:
        if end - transport < 24:
            return None
        flow = b"is at" + mac + frame[transport + 8 : transport + 24] + vlan
    else:
        echo = kind in _ECHOES[protocol]
        flow = addresses + frame[transport : transport + 2]
        flow += (frame[transport + 4 : transport + 6] if echo else b"\0\0") + vlan
        return Packet(frame, Kind.ICMP, flow, ethernet, network, transport, transport + 4, end)
    return Packet(frame, Kind.NEIGHBOUR, flow, ethernet, network, transport, transport, end)


def _parse_arp(frame: bytes, ethernet: int, network: int, vlan: bytes) -> Packet | None:
    if _arp(frame, network) != (1, _IPV4, 6, 4):
        return None
    flow = b"is at" + frame[network + 8 : network + 18] + vlan
    return Packet(frame, Kind.NEIGHBOUR, flow, ethernet, network, network, network, network + 28)


# ---------------------------------------------------------------------------------------------------------- flows


def opposite(flow: bytes) -> bytes:
    """Return the flow of TCP or UDP as the other end sees it."""
    wide = 16 if len(flow) >= 36 else 4
    ports = 2 * wide
    return (
        flow[wide:ports]
        + flow[:wide]
        + flow[ports + 2 : ports + 4]
        + flow[ports : ports + 2]
        + flow[ports + 4 :]
    )


def flow_name(packet: Packet) -> str:
    """Return the flow of a packet for people: ``TCP 10.0.0.1:80 to 10.0.0.2:4711``."""
    flow, kind = packet.flow, packet.kind
    if kind is Kind.OTHER:
        return f"the frames {flow.hex()}"
    if kind is Kind.NEIGHBOUR:
        return f"the announcement that {flow[:5].decode()} {flow[5:].hex()}"
    wide = 16 if len(flow) >= 33 else 4
    source, target = ip_address(flow[:wide]), ip_address(flow[wide : 2 * wide])
    if kind in (Kind.TCP, Kind.UDP):
        ports = struct.unpack_from(">HH", flow, 2 * wide)
        if wide == 16:
            return f"{kind.name} [{source}]:{ports[0]} to [{target}]:{ports[1]}"
        return f"{kind.name} {source}:{ports[0]} to {target}:{ports[1]}"
    if kind is Kind.ICMP:
        return f"ICMP type {flow[2 * wide]} {source} to {target}"
    what = "fragments" if kind is Kind.FRAGMENT else "packets"
    return f"{what} of IP protocol {flow[2 * wide]} {source} to {target}"
