"""The proxy's core: parsing and comparing what two copies of a guest send, against no more than reading the same headers.

The peer unpacks the Ethernet, IP and TCP headers of the same frames with one struct each and does nothing with them: the least
that any program in Python must do. The primary's frames come a batch ahead of the secondary's, so each of them is held, as
it is on a network; the secondary cuts its stream elsewhere where it says "other cuts".
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Callable, Sequence

from bench.tables import machine, medians, seconds, table
from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import parse

#: So many frames of the primary are on their way before the secondary's first of them comes.
AHEAD = 32
_ethernet = struct.Struct(">6s6sH").unpack_from
_ipv4 = struct.Struct(">BBHHHBBH4s4s").unpack_from
_tcp = struct.Struct(">HHIIHHHH").unpack_from


def frame(seq: int, payload: bytes, protocol: int = 6, port: int = 51_000) -> bytes:
    """Return one frame of the guest's; checksums are 0, nobody looks at them."""
    if protocol == 6:
        head = struct.pack(">HHIIHHHH", 80, port, seq & 0xFFFF_FFFF, 1000, 0x8010, 500, 0, 0)
        head += b"\x01\x01\x08\x0a" + struct.pack(">II", seq & 0xFFFF_FFFF, 1)
    else:
        head = struct.pack(">HHHH", 53, port, 8 + len(payload), 0)
    total = 20 + len(head) + len(payload)
    address = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, total, 1, 0, 64, protocol, 0, b"\xc0\0\2\1", b"\xc6\x33\x64\7"
    )
    return bytes(12) + b"\x08\0" + address + head + payload


def stream(count: int, size: int, cut: int, connections: int) -> list[bytes]:
    """Return frames that carry ``count`` times ``size`` bytes on each connection, cut into pieces of ``cut`` bytes."""
    data = bytes(range(256)) * (count * size // 256 + 1)
    places = range(0, count * size, cut)
    return [
        frame(place + 1, data[place : min(place + cut, count * size)], port=port)
        for place in places
        for port in range(1, connections + 1)
    ]


def feed(primary: Sequence[bytes], secondary: Sequence[bytes]) -> None:
    """Compare two sides, the primary's frames AHEAD of the secondary's; all must be released."""
    comparator = Comparator()
    released = 0
    share = len(secondary) / len(primary)
    behind = 0
    for number, ours in enumerate(primary):
        released += len(comparator.primary(parse(ours), 0.0).release)
        upto = int((number + 1 - AHEAD) * share)
        while behind < upto:
            released += len(comparator.secondary(parse(secondary[behind]), 0.0).release)
            behind += 1
    for theirs in secondary[behind:]:
        released += len(comparator.secondary(parse(theirs), 0.0).release)
    assert released == len(primary), (released, len(primary), comparator.asked)


def headers(frames: Sequence[bytes]) -> None:
    """Read the headers, and no more."""
    for one in frames:
        _ethernet(one)
        _ipv4(one, 14)
        _tcp(one, 34)


def parsed(frames: Sequence[bytes]) -> None:
    """Parse, and no more."""
    for one in frames:
        parse(one)


def compare(name: str, primary: Sequence[bytes], secondary: Sequence[bytes], runs: int) -> list[object]:
    """Return one row of the table."""
    both = [*primary, *secondary]

    def timed(action: Callable[[], None]) -> Callable[[], float]:
        return lambda: seconds(action, time.process_time)

    ours_s, parse_s, peer_s = medians(
        runs,
        timed(lambda: feed(primary, secondary)),
        timed(lambda: parsed(both)),
        timed(lambda: headers(both)),
    )
    mbit = 8 * sum(map(len, primary)) / ours_s / 1e6
    return [
        name,
        f"{len(both) / ours_s:,.0f}",
        f"{len(primary) / ours_s:,.0f}",
        f"{mbit:,.0f}",
        f"{len(both) / parse_s:,.0f}",
        f"{len(both) / peer_s:,.0f}",
        f"{ours_s / peer_s:.1f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="of which the median is taken")
    parser.add_argument("--frames", type=int, default=20_000, help="of the primary, in each run")
    options = parser.parse_args()
    count = options.frames
    datagrams = [frame(0, number.to_bytes(8, "big") * 16, 17) for number in range(count)]
    bulk = stream(count, 1448, 1448, 1)
    rows = [
        compare("TCP, 1448 bytes, equal cuts", bulk, bulk, options.runs),
        compare("TCP, 1448 bytes, other cuts", bulk, stream(count // 1000, 1_448_000, 1000, 1), options.runs),
        *(
            compare(f"TCP, {size} bytes, 100 connections", frames, frames, options.runs)
            for size in (64, 1448)
            for frames in [stream(count // 100, size, size, 100)]
        ),
        compare(
            "TCP, 64 KiB (TSO), equal cuts",
            large := stream(count // 20, 65_000, 65_000, 1),
            large,
            options.runs,
        ),
        compare("UDP, 128 bytes", datagrams, datagrams, options.runs),
    ]
    print(f"COLO proxy, {machine()}, medians of {options.runs}, CPU time of one thread.\n")
    header = (
        "traffic",
        "packets/s",
        "released/s",
        "Mbit/s",
        "parse only/s",
        "headers only/s",
        "ours/headers",
    )
    print(table(header, rows))


if __name__ == "__main__":
    main()
