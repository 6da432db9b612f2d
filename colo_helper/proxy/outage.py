"""Has clients send at once, after an outage, what was lost in it: their retransmissions come seldom after a while (RFC 6069).

A client whose request was lost with the primary sends it again after 0.2 s, then after twice as long each time. When the copy
goes on after 9 s it is in the middle of a pause of 6 to 13 s. RFC 6069 (TCP-LCD) has it take "destination unreachable" for the
sign that its way was broken, and not crowded: it goes back by one doubling, and sends at once when that time has passed
already. Linux does so for the codes below when the quoted segment is the oldest one that it has no acknowledgement for
(tcp_ld_RTO_revert); other systems pay no attention to such messages on connections that are established.

One that is still being opened would give up instead. So none is sent about a connection before its client has acknowledged
something in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from colo_helper.proxy.checksum import internet_checksum
from colo_helper.proxy.packet import ACK, FIN, RST, SYN, Kind, Packet, opposite
from colo_helper.proxy.sequence import MASK

#: RFC 792, host unreachable; RFC 4443, no route to destination.
_UNREACHABLE_4, _UNREACHABLE_6 = bytes((3, 1)), bytes((1, 0))
_ICMP, _ICMPV6 = 1, 58
_HOPS = 64
_MAC_BYTES, _PORTS_BYTES = 6, 4
#: So many doublings are taken back: after so many the rest of any pause has passed that is longer than an eighth of it.
_TIMES = 3
#: A NIC and a flow as the client sees it.
Connection = tuple[int, bytes]


@dataclass(slots=True)
class _Client:
    """One end of a connection. ``head``: what its last frame began with, ports included; ``network``: where IP begins in it."""

    vnet_bytes: int
    head: bytes
    network: int
    #: The number after the last byte that it is known to have sent; and the last one that the guest has acknowledged.
    sent: int
    acknowledged: int


class Outage:
    """Knows who talks with the guest; of more than ``most`` connections those silent longest are forgotten."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._clients: dict[Connection, _Client] = {}

    def from_client(self, nic: int, packet: Packet) -> None:
        """Take note of what a client has sent."""
        if packet.kind is not Kind.TCP:
            return
        known = self._clients.pop((nic, packet.flow), None)
        if packet.flags & (SYN | RST) or not packet.flags & ACK:
            return
        end = packet.seq + packet.end - packet.payload + bool(packet.flags & FIN)
        self._clients[nic, packet.flow] = _Client(
            packet.ethernet,
            packet.frame[packet.ethernet : packet.transport + _PORTS_BYTES],
            packet.network - packet.ethernet,
            end & MASK,
            known.acknowledged if known else packet.seq,
        )
        if len(self._clients) > self._most:
            del self._clients[next(iter(self._clients))]

    def from_guest(self, nic: int, packet: Packet) -> None:
        """Take note of what the guest has sent."""
        if packet.kind is not Kind.TCP:
            return
        connection = (nic, opposite(packet.flow))
        known = self._clients.get(connection)
        if known and packet.flags & RST:
            del self._clients[connection]
        elif known and packet.flags & ACK:
            known.acknowledged = packet.ack

    def over(self, connections: Iterable[Connection]) -> Iterator[tuple[int, bytes]]:
        """Yield what to tell the clients of these connections: how long the vnet header in front is, and the frame with it.

        What the guest says in them must follow: a client to which nothing was lost notes an error until it hears something.
        """
        for client in filter(None, map(self._clients.get, connections)):
            for seq in {client.acknowledged, client.sent}:  # what was lost begins at the one or at the other
                frame = bytes(client.vnet_bytes) + _unreachable(client, seq)
                yield from [(client.vnet_bytes, frame)] * _TIMES


def _unreachable(client: _Client, seq: int) -> bytes:
    """Return the frame that says of a client's segment that it did not arrive."""
    network = client.network
    macs = client.head[_MAC_BYTES : 2 * _MAC_BYTES] + client.head[:_MAC_BYTES]
    quoted = client.head[network:] + seq.to_bytes(4, "big")
    six = quoted[0] >> 4 == 6
    source, target = (quoted[24:40], quoted[8:24]) if six else (quoted[16:20], quoted[12:16])
    message = (_UNREACHABLE_6 if six else _UNREACHABLE_4) + bytes(6) + quoted
    if six:
        length = len(message).to_bytes(2, "big")
        head = b"\x60\0\0\0" + length + bytes((_ICMPV6, _HOPS)) + source + target
        pseudo = source + target + b"\0\0" + length + bytes((0, 0, 0, _ICMPV6))
    else:
        length = (20 + len(message)).to_bytes(2, "big")
        head = b"\x45\0" + length + b"\0\0\x40\0" + bytes((_HOPS, _ICMP, 0, 0)) + source + target
        head, pseudo = _with_checksum(head, 10), b""
    return macs + client.head[2 * _MAC_BYTES : network] + head + _with_checksum(message, 2, pseudo)


def _with_checksum(data: bytes, at: int, pseudo: bytes = b"") -> bytes:
    """Return the data with the Internet checksum of it, and of a pseudo header, at a place that is zero."""
    return data[:at] + internet_checksum(pseudo + data).to_bytes(2, "big") + data[at + 2 :]
