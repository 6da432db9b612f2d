"""The networks between the two hosts: every connection of a session goes through here, frame by frame.

The forward and back channels are on the path ``data``, the heartbeat on ``mgmt``. A way (``data>`` is from the primary to the
secondary) that is cut lets nothing through, not even the end of a connection; when it is mended, what was sent meanwhile
comes, as with TCP.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from colo_helper.channel.wire import PRELUDE_BYTES, Kind, parse_lengths, parse_prelude

PATHS = {"forward": "data", "back": "data", "heartbeat": "mgmt"}
DOWN, UP = ">", "<"
WAYS = ("data>", "data<", "mgmt>", "mgmt<")
_READ_BYTES = 1 << 18


class Frames:
    """Cuts a stream of a channel into frames, which stay as they are."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """Return the frames that are complete with these bytes."""
        self._data += data
        found = []
        while (length := self._length()) and len(self._data) >= length:
            found.append((Kind(self._data[5]), bytes(self._data[:length])))
            del self._data[:length]
        return found

    def _length(self) -> int:
        """Return how many bytes the first frame has; 0 when that is not known yet."""
        if len(self._data) < PRELUDE_BYTES:
            return 0
        prelude = parse_prelude(bytes(self._data[:PRELUDE_BYTES]))
        at = PRELUDE_BYTES + 4 * prelude.parts
        if len(self._data) < at:
            return 0
        lengths = parse_lengths(bytes(self._data[PRELUDE_BYTES:at]), prelude)
        return at + prelude.head_bytes + sum(lengths)


@dataclass(eq=False)
class Connection:
    """One connection. ``near`` is the primary's end, ``far`` the secondary's, ``keeper`` the forced command's."""

    number: int
    channel: str
    near: socket.socket
    far: socket.socket
    keeper: socket.socket
    frames: dict[str, Frames] = field(default_factory=lambda: {DOWN: Frames(), UP: Frames()})
    waiting: dict[str, bytearray] = field(default_factory=lambda: {DOWN: bytearray(), UP: bytearray()})
    closed: bool = False
    #: Ways whose source has closed the connection, and whose target does not know it yet.
    ended: set[str] = field(default_factory=set)
    #: One of its ends is a host without power: whatever is sent comes to nothing.
    hushed: bool = False

    def ends(self, way: str) -> tuple[socket.socket, socket.socket]:
        """Return (source, target) of one way."""
        return (self.near, self.far) if way == DOWN else (self.far, self.near)


class Line:
    """All connections between the hosts. ``step`` is called with a frame's kind and way, before and after it is passed on."""

    def __init__(
        self,
        watch: Callable[[socket.socket, Callable[[], None]], None],
        unwatch: Callable[[socket.socket], None],
        step: Callable[[str, str], None],
    ) -> None:
        self._watch, self._unwatch, self._step = watch, unwatch, step
        self.cut: set[str] = set()
        #: No connection can be made, and those who try are told so at once: "R" when they may try again, "N" when the key
        #: is not known any more, which no further attempt cures.
        self.refusing = ""
        #: Bytes that each connection may pass on in each way and turn; 0 is no limit.
        self.narrow_bytes = 0
        self.connections: list[Connection] = []
        self._refusals: dict[int, str] = {}

    def blocked(self, channel: str) -> bool:
        """Whether a connection of this channel can be made: both ways of its path must be open."""
        return any(f"{PATHS[channel]}{way}" in self.cut for way in (DOWN, UP))

    def join(self, number: int, channel: str, near: socket.socket, attach_path: str) -> None:
        """Hand the other end of a new connection to the secondary's replicator, and pass frames on from now."""
        far, theirs = socket.socketpair()
        keeper = socket.socket(socket.AF_UNIX)
        try:
            keeper.connect(attach_path)
            rights = array.array("i", [theirs.fileno(), theirs.fileno()])
            keeper.sendmsg([channel.encode() + b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError as error:
            self._refusals[number] = f"No replicator waits for this VM here ({error.strerror})."
            for end in (near, far, keeper):
                end.close()
            return
        finally:
            theirs.close()
        one = Connection(number, channel, near, far, keeper)
        self.connections.append(one)
        for end in (near, far, keeper):
            end.setblocking(False)
        self._watch(near, lambda: self._read(one, DOWN))
        self._watch(far, lambda: self._read(one, UP))
        self._watch(keeper, lambda: self._hear_refusal(one))

    def why(self, number: int) -> str:
        """Return why the secondary's replicator refused a connection, or an empty string."""
        return self._refusals.get(number, "")

    def close(self, one: Connection) -> None:
        """Close one connection at both ends."""
        if one.closed:
            return
        self._hear_refusal(one)
        one.closed = True
        self.connections.remove(one)
        for end in (one.near, one.far, one.keeper):
            self._unwatch(end)
            end.close()

    def break_all(self) -> None:
        """Close all connections, as when sshd or a host's network stack ends."""
        for one in list(self.connections):
            self.close(one)

    def hush(self) -> None:
        """One of the hosts has no power any more, and nothing tells the other one so."""
        for one in self.connections:
            one.hushed = True
            for end in (one.near, one.far, one.keeper):
                self._unwatch(end)

    def flow(self) -> None:
        """Pass on what waits because a way was cut or is narrow, or because its reader is slow."""
        for one in list(self.connections):
            for way in (DOWN, UP):
                if not (one.closed or one.hushed or self._is_cut(one, way)):
                    self._write(one, way)
                    if way in one.ended and not one.waiting[way]:
                        self.close(one)

    def _is_cut(self, one: Connection, way: str) -> bool:
        return f"{PATHS[one.channel]}{way}" in self.cut

    def _hear_refusal(self, one: Connection) -> None:
        if one.closed:
            return
        try:
            text = one.keeper.recv(4096)
        except OSError:
            return
        if text:
            self._refusals[one.number] = text.decode(errors="replace")
        else:
            self._unwatch(one.keeper)

    def _read(self, one: Connection, way: str) -> None:
        source, _ = one.ends(way)
        try:
            data = source.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._unwatch(source)
            one.ended.add(way)
            if not (self._is_cut(one, way) or one.waiting[way]):
                self.close(one)
            return
        for kind, frame in one.frames[way].feed(data):
            if one.closed:
                return
            name = f"line.{kind.name}{way}"
            self._step(name, "before")
            if not (one.closed or one.hushed):
                one.waiting[way] += frame
                if not self._is_cut(one, way):
                    self._write(one, way)
            self._step(name, "after")

    def _write(self, one: Connection, way: str) -> None:
        _, target = one.ends(way)
        waiting = one.waiting[way]
        most = self.narrow_bytes or len(waiting)
        try:
            while waiting and most > 0:
                sent = target.send(waiting[: min(most, _READ_BYTES)])
                del waiting[:sent]
                most -= sent
        except BlockingIOError:
            return
        except OSError:
            waiting.clear()  # its reader has closed, and says so itself
