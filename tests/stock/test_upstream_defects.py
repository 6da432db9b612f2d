"""What is wrong in the stock helpers, on record: with it gone, these tests fail and the work-arounds can go too."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from colo_helper.helper.argv import StreamType
from tests.stock.harness import OURS, STOCK, Pair, read_exact
from tests.stock.packages import Stock


@pytest.mark.parametrize("saver", [OURS, STOCK])
def test_a_stock_secondary_measures_an_empty_domain_and_the_copies_diverge(
    stock: Stock, workdir: Path, saver: str
) -> None:
    pair = Pair(stock, workdir, saver, STOCK, StreamType.COLO)
    pair.run()
    assert pair.saver.result.retval == pair.restorer.result.retval == 0, "neither notices"
    cleans = [op for op in pair.restorer.operations if op.name == "clean"]
    assert [op.args["pages"] for op in cleans] == [1] * 3
    assert all(int(op.args["dirty"]) > 50 for op in cleans), "the hypervisor knew of many more dirty frames"
    assert pair.differences[0] == []
    assert [len(frames) > 50 for frames in pair.differences[1:]] == [True] * 3


def test_our_secondary_asks_for_the_size_at_every_checkpoint(stock: Stock, workdir: Path) -> None:
    pair = Pair(stock, workdir, STOCK, OURS, StreamType.COLO)
    assert pair.restorer.domain.state.max_mapped_gfn == 0
    pair.run()
    cleans = [op for op in pair.restorer.operations if op.name == "clean"]
    assert [op.args["pages"] for op in cleans] == [pair.saver.domain.state.max_mapped_gfn + 1] * 3
    assert pair.differences == [[]] * 4


def malformed_as_of_4_18(source: int, sink: int) -> None:
    """Do to a sound back channel what 4.18 and later do: a header of 16 bytes announced as one of 8."""
    while True:
        header = read_exact(source, 8)
        kind, length = struct.unpack("<II", header)
        body = read_exact(source, length + -length % 8)
        os.write(sink, header + (bytes(8) if kind == 0x0F else b"") + body)


def test_the_malformed_list_of_4_18_is_read_correctly(stock: Stock, workdir: Path) -> None:
    pair = Pair(
        stock, workdir, OURS, STOCK, StreamType.COLO, preset_max_gfn=True, back_filter=malformed_as_of_4_18
    )
    pair.run()
    print(*pair.saver.lines, sep="\n")
    assert pair.saver.result.retval == pair.restorer.result.retval == 0
    assert pair.differences == [[]] * 4


def test_a_stock_primary_loses_its_way_in_the_malformed_list(stock: Stock, workdir: Path) -> None:
    pair = Pair(
        stock, workdir, STOCK, STOCK, StreamType.COLO, preset_max_gfn=True, back_filter=malformed_as_of_4_18
    )
    pair.run()
    # Eight bytes are left in the pipe, and the next reader, libxl, takes them for a record.
    assert isinstance(pair.saver.failure, AssertionError)
    assert "libxl record" in str(pair.saver.failure)
