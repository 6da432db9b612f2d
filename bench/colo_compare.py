"""Our comparator against QEMU's own colo-compare, in one run on the same frames of two copies of a guest.

Both are fed through sockets, in QEMU's framing, as a device model feeds them: the same conversations at the same moments. Where
both copies say the same to a client, every checkpoint asked for is a false one; where they do not, a conversation that is
released to its end without a checkpoint is a miss. colo-compare is given what filter-rewriter gives it at its best: the
secondary's numbers are the primary's already. Needs QEMU 7.2 (Debian 12); Debian 13 builds it without colo-compare.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from bench.comparators import DEADLINE_S, Ours, Side, checkpoint, colo_compare, released
from bench.tables import machine, table
from colo_helper.proxy.packet import ACK, FIN, RST, SYN
from colo_helper.quantiles import nearest_rank
from tests.unit.colo_helper.proxy.frames import icmp, tcp, udp

#: When all that either will say has been said.
_SETTLED_S = 2 * DEADLINE_S + 0.5
_LOAD_S = 120.0

#: (whether the primary's, the frame), in the order of time.
Frames = list[tuple[bool, bytes]]
Talk = Callable[[int], Frames]

_ANSWER = bytes(range(256)) * 20


# --------------------------------------------------------------------------------------------- what the copies say


@dataclass
class Copy:
    """One copy of a guest in one conversation: how it cuts its answers into segments, and what else is its own."""

    port: int
    cut: int = 1448
    window: int = 500
    clock: int | None = 1000
    pad: int = 0
    six: bool = False

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
            six=self.six,
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
    "without timestamps, cut anew": lambda port: answers(
        Copy(port, clock=None), Copy(port, clock=None, cut=1000)
    ),
    "IPv6, the same segments": lambda port: answers(Copy(port, six=True), Copy(port, six=True)),
    "IPv6, cut into other segments": lambda port: answers(
        Copy(port, six=True), Copy(port, cut=1000, six=True)
    ),
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
    "IPv6, one byte": lambda port: answers(Copy(port, six=True), Copy(port, six=True), second=changed(2000)),
    "a shorter answer": lambda port: answers(Copy(port), Copy(port), second=_ANSWER[:3000]),
    "a reset instead": reset,
    "UDP, one byte": lambda port: both(
        [udp(b"answer", ports=(53, port))], [udp(b"answes", ports=(53, port))]
    ),
    "ICMP, one byte": lambda port: both(
        *([icmp(0, 0, struct.pack(">HH", port, 1) + text)] for text in (b"echo", b"ecHo"))
    ),
}


# -------------------------------------------------------------------------------------------------------- the bench


def judged(side: Side, talk: Talk, ports: range) -> tuple[int, int]:
    """Let both copies hold conversations; returns how many asked for a checkpoint, and how many left without one."""
    asked = left = 0
    for port in ports:
        frames = talk(port)
        feed(side, frames)
        whole = sum(is_primary for is_primary, _ in frames)
        came = released(side, whole, _SETTLED_S)
        needed = side.asked()
        asked += needed
        left += came == whole and not needed
        checkpoint(side)
    return asked, left


def feed(side: Side, frames: Frames) -> None:
    """Give all frames at once."""
    for is_primary, row in groupby(frames, key=itemgetter(0)):
        side.feed([frame for _, frame in row], primary=is_primary)


def load(side: Side, ports: range) -> tuple[float, float]:
    """Let copies say the same as fast as it goes; returns packets of the primary in a second, and CPU time for each in us."""
    talks = [answers(Copy(port), Copy(port)) for port in ports]
    whole = sum(is_primary for talk in talks for is_primary, _ in talk)
    drained: list[tuple[int, float]] = []

    def drain() -> None:
        drained.append((released(side, whole, _LOAD_S), time.thread_time()))

    thread = threading.Thread(target=drain)
    began, cpu_s, own_s = time.monotonic(), side.cpu_s(), time.thread_time()
    thread.start()
    for talk in talks:
        feed(side, talk)
    own_s = time.thread_time() - own_s
    thread.join()
    took_s, cpu_s = time.monotonic() - began, side.cpu_s() - cpu_s
    count, drained_s = drained[0]
    if count != whole:
        raise SystemExit(f"only {count} of {whole} packets left within {_LOAD_S:.0f} s")
    checkpoint(side)
    if isinstance(side, Ours):
        cpu_s -= own_s + drained_s
    return whole / took_s, 1e6 * cpu_s / whole


def latencies_us(side: Side, packets: int) -> list[float]:
    """Return how long the secondary's packet takes to let go the primary's, one after the other."""
    found = []
    for number in range(packets):
        frames = both(*[[udp(b"%d" % number, ports=(53, 4000))]] * 2)
        feed(side, frames[:1])
        began = time.perf_counter()
        feed(side, frames[1:])
        if released(side, 1, 5.0) != 1:
            raise SystemExit(f"packet {number} did not leave")
        found.append((time.perf_counter() - began) * 1e6)
    return sorted(found)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--conversations", type=int, default=5, help="of each kind")
    parser.add_argument("--packets", type=int, default=2000)
    parser.add_argument("--load", type=int, default=2000, help="conversations as fast as it goes")
    options = parser.parse_args()
    if not shutil.which("qemu-system-x86_64"):
        raise SystemExit("qemu-system-x86_64 is not here: apt install qemu-system-x86")
    with closing(Ours()) as ours, colo_compare() as theirs:
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
        print(table(["an equal packet, us", "ours", "colo-compare"], rows), "\n")
        loads = [load(side, range(port, port + options.load)) for side in sides]
        rows = [
            ["the primary's packets a second", *(f"{per_s:,.0f}" for per_s, _ in loads)],
            ["CPU us for each", *(f"{cpu_us:.0f}" for _, cpu_us in loads)],
        ]
        print(table(["as fast as it goes", "ours", "colo-compare"], rows))


if __name__ == "__main__":
    main()
