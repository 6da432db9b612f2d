"""Feeds two captures into the comparator: ``python -m colo_helper.proxy.replay PRIMARY.pcap SECONDARY.pcap``.

Each file is what one copy of the guest sent, captured at its tap. Packets are taken in the order of their times, so both hosts'
clocks should agree. A checkpoint that is needed counts as made at once: from then on the secondary's sequence numbers are moved
to the primary's. Its content is what was captured, so streams that have lost their step do not find it again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path

from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import SYN, Kind, Packet, parse
from colo_helper.proxy.pcap import Captured, PcapError, read_pcap
from colo_helper.proxy.sequence import MASK
from colo_helper.proxy.verdicts import Checkpoint, Counters, Limits, Verdict


@dataclass(frozen=True)
class Replayed:
    """What came of it: the counters, each checkpoint with its time, and how many packets left without one."""

    counters: Counters
    agreed: int
    checkpoints: list[tuple[float, Checkpoint]] = field(default_factory=list)


class _Numbers:
    """What the initial sequence numbers were, and by how much the secondary's are moved since a checkpoint."""

    def __init__(self) -> None:
        self._initial: dict[bool, dict[bytes, int]] = {True: {}, False: {}}
        self._moved: dict[bytes, int] = {}

    def take(self, packet: Packet, is_primary: bool) -> None:
        """Note the number of a SYN, or move that of another segment."""
        if packet.kind is not Kind.TCP:
            return
        if packet.flags & SYN:
            self._initial[is_primary][packet.flow] = packet.seq
            self._moved.pop(packet.flow, None)
        elif not is_primary:
            packet.seq = (packet.seq + self._moved.get(packet.flow, 0)) & MASK

    def checkpointed(self) -> None:
        """Move all connections that both sides have opened."""
        ours, theirs = self._initial[True], self._initial[False]
        self._moved = {flow: ours[flow] - theirs[flow] for flow in ours.keys() & theirs.keys()}


def replay(primary: Iterable[Captured], secondary: Iterable[Captured], limits: Limits) -> Replayed:
    """Feed the frames of both sides into a comparator, by time."""
    comparator = Comparator(limits)
    checkpoints: list[tuple[float, Checkpoint]] = []
    agreed = 0
    numbers = _Numbers()

    def take(verdict: Verdict, now_s: float) -> None:
        nonlocal agreed
        agreed += len(verdict.release)
        if verdict.checkpoint:
            checkpoints.append((now_s, verdict.checkpoint))
            comparator.checkpointed()
            numbers.checkpointed()

    def expire(until_s: float) -> None:
        while (due_s := comparator.deadline()) is not None and due_s <= until_s:
            take(comparator.expire(due_s), due_s)

    ours = ((captured.time_s, True, captured.frame) for captured in primary)
    theirs = ((captured.time_s, False, captured.frame) for captured in secondary)
    for now_s, is_primary, frame in merge(ours, theirs, key=lambda item: item[0]):
        expire(now_s)
        packet = parse(frame)
        numbers.take(packet, is_primary)
        take((comparator.primary if is_primary else comparator.secondary)(packet, now_s), now_s)
    expire(float("inf"))
    return Replayed(comparator.counters, agreed, checkpoints)


def report(result: Replayed) -> Iterator[str]:
    """Yield the lines that are printed."""
    counters = result.counters
    yield f"{counters.primary} packets of the primary, {counters.secondary} of the secondary"
    yield f"{result.agreed} released without a checkpoint, {counters.primary - result.agreed} after one"
    total = sum(counters.checkpoints.values())
    yield f"{total} checkpoints" + "".join(
        f", {cause.name.lower()} {count}" for cause, count in sorted(counters.checkpoints.items(), key=str)
    )
    start = result.checkpoints[0][0] if result.checkpoints else 0.0
    for time_s, checkpoint in result.checkpoints:
        yield f"{time_s - start:+10.3f} s {checkpoint.cause.name.lower()}: {checkpoint.sentence}"


def _frames(path: Path, mac: bytes) -> Iterator[Captured]:
    with path.open("rb") as file:
        for captured in read_pcap(str(path), file):
            if captured.frame[6:12].startswith(mac):
                yield captured


def _mac(text: str) -> bytes:
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6:
        raise argparse.ArgumentTypeError(f"{text} is not a MAC address of six bytes")
    return mac


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 when a file cannot be read."""
    parser = argparse.ArgumentParser(prog="replay", description=__doc__.splitlines()[0])
    usual = Limits()
    parser.add_argument("primary", type=Path, metavar="PRIMARY.pcap")
    parser.add_argument("secondary", type=Path, metavar="SECONDARY.pcap")
    parser.add_argument("--guest-mac", type=_mac, default=b"", help="only what has this source address")
    parser.add_argument("--secondary-ms", type=float, default=1000 * usual.secondary_s)
    parser.add_argument("--primary-ms", type=float, default=1000 * usual.primary_s)
    options = parser.parse_args(arguments)
    limits = Limits(secondary_s=options.secondary_ms / 1000, primary_s=options.primary_ms / 1000)
    try:
        primary, secondary = (
            _frames(path, options.guest_mac) for path in (options.primary, options.secondary)
        )
        result = replay(primary, secondary, limits)
    except (OSError, PcapError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(report(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
