"""What a copy has said over TCP since its last checkpoint, for its clients when it takes over."""

from __future__ import annotations

from collections.abc import Iterator

from colo_helper.proxy.packet import FIN, RST, SYN, Kind, Packet

#: What is remembered, in bytes; the connection silent longest is forgotten first, from its oldest segment on.
_MOST_BYTES = 1 << 20
_Connection = tuple[int, bytes]
#: The place of a segment without bytes.
_BARE = (-1, 0)


class Said:
    """The segments of each connection that carry bytes or its end; one that is said again takes the place of the older.

    And its last acknowledgement, if that came after them: the client may wait for it. A connection that is opened anew has said
    nothing yet.
    """

    def __init__(self) -> None:
        self._said: dict[_Connection, dict[tuple[int, int], Packet]] = {}
        self._bytes = 0

    def note(self, nic: int, packet: Packet) -> None:
        """Remember a packet, if it is such a segment."""
        if packet.kind is not Kind.TCP:
            return
        connection = (nic, packet.flow)
        if packet.flags & SYN:
            for old in self._said.pop(connection, {}).values():
                self._bytes -= len(old.frame)
        elif not packet.flags & RST:
            segments = self._said.pop(connection, {})
            self._said[connection] = segments  # the one heard last is the last
            if _BARE in segments:
                self._bytes -= len(segments.pop(_BARE).frame)
            carries = packet.end > packet.payload or packet.flags & FIN
            place = (packet.seq, packet.flags & FIN) if carries else _BARE
            self._bytes += len(packet.frame) - len(segments[place].frame if place in segments else b"")
            segments[place] = packet
            while self._bytes > _MOST_BYTES:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        connection, segments = next(iter(self._said.items()))
        self._bytes -= len(segments.pop(next(iter(segments))).frame)
        if not segments:
            del self._said[connection]

    def take(self) -> Iterator[tuple[int, Packet]]:
        """Return each with its NIC, each connection's in the order in which they were said first; all is forgotten."""
        said, self._said, self._bytes = self._said, {}, 0
        return ((nic, packet) for (nic, _), segments in said.items() for packet in segments.values())
