"""Our comparator against QEMU's own colo-compare, in one run on the same frames of two copies of a guest.

Both are fed through sockets, in QEMU's framing, as a device model feeds them: the same conversations at the same moments. Where
both copies say the same to a client, every checkpoint asked for is a false one; where they do not, a conversation that is
released to its end without a checkpoint is a miss. colo-compare is given what filter-rewriter gives it at its best: the
secondary's numbers are the primary's already. Needs QEMU 7.2 (Debian 12); Debian 13 builds it without colo-compare.
"""

from __future__ import annotations

import argparse
import queue
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.tables import machine, table
from colo_helper.devices.emulated import EmulatedFilters
from colo_helper.devices.filters import socket_chardev
from colo_helper.devices.qmp import QmpDeviceModel
from colo_helper.proxy.packet import ACK, FIN, RST, SYN
from colo_helper.proxy.verdicts import Checkpoint
from colo_helper.quantiles import nearest_rank
from colo_helper.traffic.framing import FrameReader, RawFrame, pack
from colo_helper.traffic.sides import PrimarySide
from tests.unit.colo_helper.proxy.frames import icmp, tcp, udp
from tests.unit.colo_helper.qemu import PROGRAM, connected

#: How long a packet may wait for the other copy's, of both.
_DEADLINE_S = 1.0
#: When all that either will say has been said.
_SETTLED_S = 2 * _DEADLINE_S + 0.5
_LENGTH = struct.Struct(">I")

#: (whether the primary's, the frame), in the order of time.
Frames = list[tuple[bool, bytes]]
Talk = Callable[[int], Frames]

_ANSWER = bytes(range(256)) * 20


class Side(Protocol):
    """One of the two that are compared."""

    def feed(self, frames: Sequence[tuple[bool, bytes]]) -> None:
        """Give it what both copies send."""

    def released(self, count: int, timeout_s: float) -> int:
        """Wait for packets to leave; returns how many of ``count`` have."""

    def asked(self) -> int:
        """Return how many times a checkpoint was asked for since the last time, once for each need."""

    def checkpoint(self) -> None:
        """Both copies are equal; what waited leaves and is thrown away."""


# --------------------------------------------------------------------------------------------- what the copies say


@dataclass
class Copy:
    """One copy of a guest in one conversation: how it cuts its answers into segments, and what else is its own."""

    port: int
    cut: int = 1448
    window: int = 500
    clock: int | None = 1000
    pad: int = 0

    def segment(self, offset: int, flags: int = ACK, payload: bytes = b"", ack: int = 1) -> bytes:
        """Return one frame; offset 0 is the SYN."""
        stamps = b"" if self.clock is None else b"\1\1\x08\x0a" + struct.pack(">II", self.clock + offset, 7)
        padded = {"pad": self.pad} if self.pad else {}
        return tcp(
            9000 + offset,
            5000 + ack,
            flags,
            payload,
            stamps,
            ports=(80, self.port),
            window=self.window,
            **padded,
        )

    def opens(self) -> bytes:
        """Return the SYN-ACK."""
        return self.segment(0, SYN | ACK)

    def says(self, data: bytes, start: int = 1, ack: int = 100) -> list[bytes]:
        """Return the segments of an answer."""
        places = range(0, len(data), self.cut)
        return [
            self.segment(start + place, payload=data[place : place + self.cut], ack=ack) for place in places
        ]


def both(ours: Sequence[bytes], theirs: Sequence[bytes]) -> Frames:
    """Return the frames of both, the primary's first."""
    return [(True, frame) for frame in ours] + [(False, frame) for frame in theirs]


def answers(one: Copy, other: Copy, first: bytes = _ANSWER, second: bytes = _ANSWER) -> Frames:
    """Return a conversation in which each copy opens a connection and gives one answer."""
    return both([one.opens(), *one.says(first)], [other.opens(), *other.says(second)])


def repeated(port: int) -> Frames:
    """The secondary says its second segment twice."""
    one, other = Copy(port), Copy(port)
    said = other.says(_ANSWER)
    return both([one.opens(), *one.says(_ANSWER)], [other.opens(), *said[:2], said[1], *said[2:]])


def reordered(port: int) -> Frames:
    """Two of the secondary's segments change places on their way."""
    one, other = Copy(port), Copy(port)
    first, second, *rest = other.says(_ANSWER)
    return both([one.opens(), *one.says(_ANSWER)], [other.opens(), second, first, *rest])


def acknowledged_apart(port: int) -> Frames:
    """The primary acknowledges the request before it answers, the secondary with its answer."""
    one, other = Copy(port), Copy(port)
    early = one.segment(1, ack=100)
    return both([one.opens(), early, *one.says(_ANSWER)], [other.opens(), *other.says(_ANSWER)])


def padded(port: int) -> Frames:
    """As before, without timestamps and over a card that pads: a bare acknowledgement is 54 of 60 bytes."""
    one, other = (Copy(port, clock=None, pad=60) for _ in range(2))
    early = one.segment(1, ack=100)
    return both([one.opens(), early, *one.says(_ANSWER)], [other.opens(), *other.says(_ANSWER)])


def ended(port: int) -> Frames:
    """The primary ends the connection in its last segment, the secondary in one of its own."""
    one, other = Copy(port), Copy(port)
    data, behind = _ANSWER[:1000], 1001
    with_end = one.segment(1, ACK | FIN, data, ack=100)
    apart = [*other.says(data), other.segment(behind, ACK | FIN, ack=100)]
    return both([one.opens(), with_end], [other.opens(), *apart])


def reset(port: int) -> Frames:
    """The secondary resets the connection instead of answering."""
    one, other = Copy(port), Copy(port)
    return both(
        [one.opens(), *one.says(_ANSWER[:1000])], [other.opens(), other.segment(1, ACK | RST, ack=100)]
    )


def changed(at: int) -> bytes:
    """Return the answer with one byte changed."""
    return _ANSWER[:at] + bytes([_ANSWER[at] ^ 1]) + _ANSWER[at + 1 :]


SAME: dict[str, Talk] = {
    "the same segments": lambda port: answers(Copy(port), Copy(port)),
    "cut into other segments": lambda port: answers(Copy(port), Copy(port, cut=1000)),
    "a segment repeated": repeated,
    "two segments reordered": reordered,
    "another window and clock": lambda port: answers(Copy(port), Copy(port, window=77, clock=900)),
    "an acknowledgement of its own": acknowledged_apart,
    "the same, padded to 60 bytes": padded,
    "an end of its own": ended,
    "UDP": lambda port: both([udp(b"answer", ports=(53, port))], [udp(b"answer", ports=(53, port))]),
    "UDP, other IP numbers": lambda port: both(
        [udp(b"answer", ports=(53, port), ident=1)], [udp(b"answer", ports=(53, port), ident=9)]
    ),
    "ICMP": lambda port: both(*[[icmp(0, 0, struct.pack(">HH", port, 1) + b"echo")]] * 2),
}
DIFFERENT: dict[str, Talk] = {
    "one byte": lambda port: answers(Copy(port), Copy(port), second=changed(2000)),
    "the last byte": lambda port: answers(Copy(port), Copy(port), second=changed(len(_ANSWER) - 1)),
    "one byte, cut elsewhere": lambda port: answers(Copy(port), Copy(port, cut=700), second=changed(2000)),
    "a shorter answer": lambda port: answers(Copy(port), Copy(port), second=_ANSWER[:3000]),
    "a reset instead": reset,
    "UDP, one byte": lambda port: both(
        [udp(b"answer", ports=(53, port))], [udp(b"answes", ports=(53, port))]
    ),
    "ICMP, one byte": lambda port: both(
        *([icmp(0, 0, struct.pack(">HH", port, 1) + text)] for text in (b"echo", b"ecHo"))
    ),
}


# ------------------------------------------------------------------------------------------------- the two of them


class Ours:
    """Our primary's side with its pump, between sockets."""

    def __init__(self) -> None:
        self._filters = EmulatedFilters()
        self._wanted: queue.SimpleQueue[Checkpoint] = queue.SimpleQueue()
        self._side = PrimarySide(
            self._filters,
            lambda _epoch, _nic, _packed: None,
            self._wanted.put,
            self._fail,
            comparing=True,
            latency_s=_DEADLINE_S,
            moves=[],
        )
        self._epoch = 0
        self._reader = FrameReader()
        self.checkpoint()

    @staticmethod
    def _fail(sentence: str) -> None:
        raise RuntimeError(sentence)

    def feed(self, frames: Sequence[tuple[bool, bytes]]) -> None:
        """See Side."""
        for is_primary, frame in frames:
            packed = pack(RawFrame(frame, 0))
            if is_primary:
                self._filters.ends[0].from_guest.sendall(packed)
            else:
                self._side.from_peer(self._epoch, 0, packed)

    def released(self, count: int, timeout_s: float) -> int:
        """See Side."""
        return _count(self._filters.ends[0].to_network, self._reader.feed, count, timeout_s)

    def asked(self) -> int:
        """See Side."""
        found = 0
        while not self._wanted.empty():
            self._wanted.get()
            found += 1
        return found

    def checkpoint(self) -> None:
        """See Side."""
        self._epoch += 1
        self._side.halting()
        self._side.cut(self._epoch)
        self._side.resumed()
        self._side.received()
        self._side.both_run()
        self.released(1 << 30, 0.2)
        self.asked()


class Qemus:
    """colo-compare in a QEMU without a machine, with the notifications that Xen's COLO uses."""

    def __init__(self, model: QmpDeviceModel) -> None:
        self._model = model
        self._primary, self._secondary, self._out, self._notify = map(
            self._chardev, ("primary", "secondary", "out", "notify")
        )
        model.command("object-add", **{"qom-type": "iothread", "id": "compare-thread"})
        model.command(
            "object-add",
            **{
                "qom-type": "colo-compare",
                "id": "compare",
                "primary_in": "primary",
                "secondary_in": "secondary",
                "outdev": "out",
                "notify_dev": "notify",
                "iothread": "compare-thread",
                "compare_timeout": int(1000 * _DEADLINE_S),
                "expired_scan_cycle": int(200 * _DEADLINE_S),
            },
        )
        self._out_reader, self._notify_reader = _Lengths(), _Lengths()
        self._say("COLO_USERSPACE_PROXY_INIT")
        if _count(self._notify, self._notify_reader.feed, 1, 5.0) != 1:
            raise RuntimeError("colo-compare does not answer on its notify_dev")

    def _chardev(self, name: str) -> socket.socket:
        ours = socket_chardev(self._model, name)
        ours.setblocking(True)
        return ours

    def _say(self, text: str) -> None:
        self._notify.sendall(_LENGTH.pack(len(text)) + text.encode())

    def feed(self, frames: Sequence[tuple[bool, bytes]]) -> None:
        """See Side."""
        for is_primary, frame in frames:
            end = self._primary if is_primary else self._secondary
            end.sendall(_LENGTH.pack(len(frame)) + frame)

    def released(self, count: int, timeout_s: float) -> int:
        """See Side."""
        return _count(self._out, self._out_reader.feed, count, timeout_s)

    def asked(self) -> int:
        """See Side. It repeats itself until it is answered, which is no need of its own."""
        return min(1, _count(self._notify, self._notify_reader.feed, 1 << 30, 0.0))

    def checkpoint(self) -> None:
        """See Side."""
        self._say("COLO_CHECKPOINT")
        self.released(1 << 30, 0.2)
        self.asked()


class _Lengths:
    """Cuts a stream of messages, each behind its length."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete."""
        self._rest += data
        found = []
        while len(self._rest) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._rest)[0]
            if len(self._rest) < end:
                break
            found.append(self._rest[_LENGTH.size : end])
            self._rest = self._rest[end:]
        return found


def _count(
    end: socket.socket, feed: Callable[[bytes], Sequence[object]], count: int, timeout_s: float
) -> int:
    """Read messages until there are ``count``, or nothing more came in time."""
    deadline, found = time.monotonic() + timeout_s, 0
    while found < count and select.select([end], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = end.recv(1 << 20)
        if not data:
            raise RuntimeError("what compares has closed its socket")
        found += len(feed(data))
    return found


@contextmanager
def colo_compare() -> Iterator[Qemus]:
    """Run a QEMU with colo-compare."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "qmp"
        command = [str(PROGRAM), "-M", "none", "-nodefaults", "-display", "none"]
        with subprocess.Popen([*command, "-qmp", f"unix:{path},server=on,wait=off"]) as process:
            try:
                model = connected(process, 1, path)
                yield Qemus(model)
                model.close()
            finally:
                process.kill()


# -------------------------------------------------------------------------------------------------------- the bench


def judged(side: Side, talk: Talk, ports: range) -> tuple[int, int]:
    """Let both copies hold conversations; returns how many asked for a checkpoint, and how many left without one."""
    asked = left = 0
    for port in ports:
        frames = talk(port)
        side.feed(frames)
        whole = sum(is_primary for is_primary, _ in frames)
        came = side.released(whole, _SETTLED_S)
        needed = side.asked()
        asked += needed > 0
        left += came == whole and not needed
        side.checkpoint()
    return asked, left


def latencies_us(side: Side, packets: int) -> list[float]:
    """Return how long the secondary's packet takes to let go the primary's, one after the other."""
    found = []
    for number in range(packets):
        frames = both(*[[udp(b"%d" % number, ports=(53, 4000))]] * 2)
        side.feed(frames[:1])
        began = time.perf_counter()
        side.feed(frames[1:])
        if side.released(1, 5.0) != 1:
            raise SystemExit(f"packet {number} did not leave")
        found.append((time.perf_counter() - began) * 1e6)
    return sorted(found)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--conversations", type=int, default=5, help="of each kind")
    parser.add_argument("--packets", type=int, default=2000)
    options = parser.parse_args()
    if not shutil.which("qemu-system-x86_64"):
        raise SystemExit("qemu-system-x86_64 is not here: apt install qemu-system-x86")
    with colo_compare() as theirs:
        ours = Ours()
        sides: list[Side] = [ours, theirs]
        print(f"{options.conversations} conversations of each kind, {machine()}.\n")
        port = 20_000  # each conversation is a connection of its own
        for what, talks, column in (("false checkpoints", SAME, 0), ("missed", DIFFERENT, 1)):
            rows: list[list[object]] = []
            for name, talk in talks.items():
                ports = range(port, port := port + options.conversations)
                rows.append([name, *(judged(side, talk, ports)[column] for side in sides)])
            rows.append(["all", *(sum(row[at] for row in rows) for at in (1, 2))])  # type: ignore[misc]
            print(table([what, "ours", "colo-compare"], rows), "\n")
        times = [latencies_us(side, options.packets) for side in sides]
        rows = [
            [f"p{int(share * 100)}", *(f"{nearest_rank([round(t) for t in one], share)}" for one in times)]
            for share in (0.5, 0.99)
        ]
        print(table(["an equal packet, us", "ours", "colo-compare"], rows))


if __name__ == "__main__":
    main()
