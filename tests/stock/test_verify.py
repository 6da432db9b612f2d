"""Xen's own verifier of streams reads what our saver writes."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from colo_helper.helper.argv import StreamType
from tests.stock.fakexen import FakeDomain
from tests.stock.harness import LIVE, OURS, STOCK
from tests.stock.packages import Stock
from tests.stock.solo import save

HEADERS_BYTES = 24 + 16
OFFER = 0x80434F4C
CHECKPOINT, END = 0x0E, 0x00


def verify(stock: Stock, stream: Path) -> subprocess.CompletedProcess[str]:
    command, env = stock.verifier
    return subprocess.run(
        [*command, "-v", "-f", "libxc", "-i", str(stream)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def records(data: bytes) -> list[tuple[int, bytes]]:
    """Split an image behind its headers into records: type, and all their bytes."""
    found, at = [], HEADERS_BYTES
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        end = at + 8 + length + -length % 8
        found.append((kind, data[at:end]))
        at = end
    return found


def saved(
    stock: Stock, workdir: Path, which: str, stream_type: StreamType, flags: int = LIVE, epochs: int = 3
) -> Path:
    domain = FakeDomain.create_guest(workdir / which, 3, ram_pages=1024)
    stream = workdir / f"{which}.stream"
    with stream.open("wb") as file:
        side = save(stock, which, domain, file.fileno(), stream_type=stream_type, flags=flags, epochs=epochs)
    assert side.result.retval == 0, side.lines
    return stream


@pytest.mark.parametrize("flags", [LIVE, 0], ids=["live", "standing still"])
def test_a_plain_image_is_accepted(stock: Stock, workdir: Path, flags: int) -> None:
    done = verify(stock, saved(stock, workdir, OURS, StreamType.PLAIN, flags))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_ours_has_the_records_of_the_stock_saver_in_its_order(stock: Stock, workdir: Path) -> None:
    seen = []
    for which in (OURS, STOCK):
        done = verify(stock, saved(stock, workdir, which, StreamType.PLAIN, flags=0))
        assert done.returncode == 0, done.stderr
        seen.append(re.sub(r"Squashed \d+ ", "Squashed ", done.stdout))
    assert "Page Data records" in seen[0]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stream_type", [StreamType.REMUS, StreamType.COLO], ids=["remus", "colo"])
def test_checkpointed_images_are_accepted(stock: Stock, workdir: Path, stream_type: StreamType) -> None:
    """The verifier wants an END, which no checkpointed stream has, and knows no optional record at all.

    So an END is put behind it, and the offer of a COLO saver, the one record of ours, is taken out. A stock restorer
    ignores the offer: see test_matrix.py.
    """
    stream = saved(stock, workdir, OURS, stream_type, epochs=3)
    data = stream.read_bytes()
    kinds = [kind for kind, _ in records(data)]
    assert kinds.count(CHECKPOINT) == 3
    offers = 1 if stream_type is StreamType.COLO else 0
    assert kinds.count(OFFER) == offers
    if offers:
        refused = verify(stock, stream)
        assert refused.returncode == 1
        assert f"Unrecognised record type {OFFER:#x}" in refused.stderr
    kept = b"".join(record for kind, record in records(data) if kind != OFFER)
    stream.write_bytes(data[:HEADERS_BYTES] + kept + struct.pack("<II", END, 0))
    done = verify(stock, stream)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.count("Libxc Record: Checkpoint") == 3
