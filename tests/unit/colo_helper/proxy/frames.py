"""Frames for the tests, made the long way: every checksum in full, by code of its own."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from colo_helper.proxy.packet import ACK

GUEST, CLIENT = "192.0.2.10", "198.51.100.7"
GUEST6, CLIENT6 = "2001:db8::10", "2001:db8:1::7"
GUEST_MAC, CLIENT_MAC = bytes.fromhex("00163e00000a"), bytes.fromhex("00163e0000c1")
PORT, CLIENT_PORT = 80, 51_000
NEEDS_CSUM = 1


def ones_sum(data: bytes) -> int:
    """RFC 1071: the sum of 16-bit words with the carries put back in."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ones_sum(data) ^ 0xFFFF


def pseudo(src: str, dst: str, protocol: int, length: int) -> bytes:
    addresses = ip_address(src).packed + ip_address(dst).packed
    if len(addresses) == 8:
        return addresses + struct.pack(">BBH", 0, protocol, length)
    return addresses + struct.pack(">IHBB", length, 0, 0, protocol)


def ethernet(
    payload: bytes, ether_type: int, *, vlan: int | None = None, pad: int = 0, outward: bool = True
) -> bytes:
    macs = CLIENT_MAC + GUEST_MAC if outward else GUEST_MAC + CLIENT_MAC
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    return (macs + tag + struct.pack(">H", ether_type) + payload).ljust(pad, b"\xee")


def ip(
    payload: bytes,
    protocol: int,
    src: str = GUEST,
    dst: str = CLIENT,
    *,
    options: bytes = b"",
    fragment: int = 0,
    ident: int = 1,
    ttl: int = 64,
    extensions: bytes = b"",
    first: int | None = None,
    **kwargs,
) -> bytes:
    """A frame; ``extensions`` are IPv6 headers before the payload, of which ``first`` is the first's number."""
    if isinstance(ip_address(src), IPv4Address):
        total = 20 + len(options) + len(payload)
        head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, 0, total, ident, fragment, ttl, protocol, 0)
        head += ip_address(src).packed + ip_address(dst).packed + options
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
        return ethernet(head + payload, 0x0800, **kwargs)
    payload = extensions + payload
    number = protocol if first is None else first
    head = struct.pack(">IHBB", 6 << 28, len(payload), number, ttl)
    return ethernet(head + ip_address(src).packed + ip_address(dst).packed + payload, 0x86DD, **kwargs)


def tcp_segment(  # the header and payload with the full checksum, or with the pseudo header's sum only
    addresses: tuple[str, str],
    ports: tuple[int, int],
    seq: int,
    ack: int = 0,
    flags: int = ACK,
    payload: bytes = b"",
    options: bytes = b"",
    *,
    window: int = 500,
    partial: bool = False,
) -> bytes:
    options += b"\0" * (-len(options) % 4)
    words = 5 + len(options) // 4
    head = struct.pack(
        ">HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, flags, window, 0, 0
    )
    whole = head + options + payload
    front = pseudo(*addresses, 6, len(whole))
    field = ones_sum(front) if partial else checksum(front + whole)
    return whole[:16] + struct.pack(">H", field) + whole[18:]


def tcp(
    seq: int,
    ack: int = 0,
    flags: int = ACK,
    payload: bytes = b"",
    options: bytes = b"",
    *,
    outward: bool = True,
    six: bool = False,
    ports: tuple[int, int] = (PORT, CLIENT_PORT),
    window: int = 500,
    partial: bool = False,
    vnet_bytes: int = 0,
    **kwargs,
) -> bytes:
    """A segment of the guest's, or with ``outward`` false of the client's, on one connection."""
    addresses = (GUEST6, CLIENT6) if six else (GUEST, CLIENT)
    if not outward:
        addresses, ports = addresses[::-1], ports[::-1]
    segment = tcp_segment(addresses, ports, seq, ack, flags, payload, options, window=window, partial=partial)
    frame = ip(segment, 6, *addresses, outward=outward, **kwargs)
    if not vnet_bytes:
        return frame
    start = len(frame) - len(segment) if "pad" not in kwargs else 34
    return vnet(partial, start, vnet_bytes) + frame


def vnet(partial: bool, csum_start: int, length: int) -> bytes:
    head = struct.pack("<BBHHHH", NEEDS_CSUM * partial, 0, 0, 0, csum_start if partial else 0, 16 * partial)
    return head.ljust(length, b"\0")


def udp(payload: bytes, src: str = GUEST, dst: str = CLIENT, ports=(53, 4000), **kwargs) -> bytes:
    head = struct.pack(">HHHH", *ports, 8 + len(payload), 0)
    sum_ = checksum(pseudo(src, dst, 17, len(head) + len(payload)) + head + payload)
    return ip(head[:6] + struct.pack(">H", sum_) + payload, 17, src, dst, **kwargs)


def icmp(kind: int, code: int, rest: bytes, src: str = GUEST, dst: str = CLIENT, **kwargs) -> bytes:
    six = ":" in src
    body = struct.pack(">BBH", kind, code, 0) + rest
    covered = pseudo(src, dst, 58, len(body)) + body if six else body
    body = body[:2] + struct.pack(">H", checksum(covered)) + body[4:]
    return ip(body, 58 if six else 1, src, dst, **kwargs)


def arp(
    operation: int = 2, mac: bytes = GUEST_MAC, address: str = GUEST, target: str = CLIENT, **kwargs
) -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + mac + ip_address(address).packed
    return ethernet(body + CLIENT_MAC + ip_address(target).packed, 0x0806, **kwargs)
