"""Every pair of helpers in every stream type: what arrives, in which order, and what is left behind."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from colo_helper.helper.argv import StreamType
from tests.stock import fakexen
from tests.stock.harness import CONSOLE_PORT, OURS, STOCK, STORE_PORT, Pair, read_exact
from tests.stock.packages import Stock

PAIRS = [(OURS, OURS), (OURS, STOCK), (STOCK, OURS), (STOCK, STOCK)]
EPOCHS = 4


def expected_calls(stream_type: StreamType) -> tuple[list[str], list[str]]:
    on, off = "switch_qemu_logdirty 1", "switch_qemu_logdirty 0"
    first, last = ["static_data_done"], ["restore_results"]
    if stream_type is StreamType.PLAIN:
        return [on, "suspend", off], first + last
    if stream_type is StreamType.REMUS:
        return [on, *["suspend", "postcopy", "checkpoint"] * EPOCHS, off], first + [
            "checkpoint"
        ] * EPOCHS + last
    epoch = ["checkpoint", "restore_results", "postcopy", "wait_checkpoint", "suspend"]
    return (
        [on, *["suspend", "checkpoint", "postcopy", "wait_checkpoint"] * EPOCHS, off],
        first + (epoch * EPOCHS)[:-1] + last,
    )


@pytest.mark.parametrize("stream_type", StreamType, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize(("saver", "restorer"), PAIRS, ids=lambda name: name)
def test_guest_arrives_and_every_checkpoint_is_the_primarys(
    stock: Stock, workdir: Path, saver: str, restorer: str, stream_type: StreamType
) -> None:
    # A stock restorer asks for the size of a domain that is still empty; see test_upstream_defects.py.
    preset = restorer == STOCK and stream_type is StreamType.COLO
    pair = Pair(stock, workdir, saver, restorer, stream_type, epochs=EPOCHS, preset_max_gfn=preset)
    pair.run()
    print(*pair.saver.lines, *pair.restorer.lines, sep="\n")

    for side in (pair.saver, pair.restorer):
        assert (side.result.retval, side.result.exit_status, side.result.error) == (0, 0, ""), side.name
    # Remus compares before each checkpoint is applied, and once at the end.
    comparisons = {StreamType.PLAIN: 1, StreamType.REMUS: EPOCHS + 1, StreamType.COLO: EPOCHS}[stream_type]
    assert pair.differences == [[]] * comparisons

    assert (pair.saver.calls, pair.restorer.calls) == expected_calls(stream_type)
    assert pair.missing == 0
    assert set(pair.restorer.results) == {(fakexen.STORE_GFN, fakexen.CONSOLE_GFN)}

    primary, secondary = pair.saver.domain, pair.restorer.domain
    assert secondary.context == pair.snapshots[-1].context
    assert secondary.policy == primary.policy
    assert secondary.params[fakexen.PARAM_STORE_EVTCHN] == STORE_PORT
    assert secondary.params[fakexen.PARAM_CONSOLE_EVTCHN] == CONSOLE_PORT
    assert secondary.grants == [(1, 0, fakexen.CONSOLE_GFN), (1, 0, fakexen.STORE_GFN)]
    assert secondary.state.tot_pages == primary.state.tot_pages, "a frame was populated twice or not at all"
    for gfn in fakexen.RING_GFNS:
        assert secondary.read(gfn) == bytes(fakexen.PAGE), (
            f"ring page {gfn:#x} still has the other host's indexes"
        )

    assert not primary.log_dirty
    switches = [op.name for op in pair.saver.operations if op.name.startswith("logdirty")]
    assert switches == ["logdirty_on", "logdirty_off"]


@pytest.mark.parametrize("saver", [OURS, STOCK])
def test_without_live_the_guest_stands_still_first_and_nothing_is_logged(
    stock: Stock, workdir: Path, saver: str
) -> None:
    pair = Pair(stock, workdir, saver, OURS, StreamType.PLAIN, live=False)
    pair.run()
    assert pair.saver.result.retval == pair.restorer.result.retval == 0
    assert pair.differences == [[]]
    assert pair.saver.calls == ["switch_qemu_logdirty 1", "suspend", "switch_qemu_logdirty 0"]
    assert "logdirty_on" not in [op.name for op in pair.saver.operations]


@pytest.mark.parametrize("stream_type", [StreamType.REMUS, StreamType.COLO], ids=["remus", "colo"])
def test_frames_that_appear_later_are_replicated_between_ours(
    stock: Stock, workdir: Path, stream_type: StreamType
) -> None:
    """Upstream asks once for the size; a guest that balloons up above it is then silently left behind."""
    pair = Pair(stock, workdir, OURS, OURS, stream_type, epochs=EPOCHS)
    grown = range(fakexen.LOWEST_HOLE_END, fakexen.LOWEST_HOLE_END + 16)
    grow_in = "wait_checkpoint" if stream_type is StreamType.COLO else "checkpoint"
    pair.hooks["saver", grow_in, 2] = lambda: pair.saver.domain.populate(grown)
    pair.run()
    assert pair.saver.result.retval == pair.restorer.result.retval == 0
    assert not any(pair.differences)
    assert set(grown) <= set(pair.restorer.domain.gfns())
    if stream_type is StreamType.COLO:
        asked = [op.args["pages"] for op in pair.restorer.operations if op.name == "clean"]
        assert asked[-1] == grown.stop
        assert all(int(earlier) <= int(later) for earlier, later in pairwise(asked))


DIRTY_LIST, DIRTY_BITMAP, CHECKPOINT_STATE = 0x0F, 0x80434F44, 5


def watched(kinds: list[int]) -> Callable[[int, int], None]:
    """Return a filter that passes records on and writes down their types."""

    def act(source: int, sink: int) -> None:
        while True:
            header = read_exact(source, 8)
            kind, length = struct.unpack("<II", header)
            kinds.append(kind)
            os.write(sink, header + read_exact(source, length + -length % 8))

    return act


@pytest.mark.parametrize(("saver", "kind"), [(OURS, DIRTY_BITMAP), (STOCK, DIRTY_LIST)])
def test_the_dirty_frames_come_in_the_form_the_saver_reads(
    stock: Stock, workdir: Path, saver: str, kind: int
) -> None:
    kinds: list[int] = []
    pair = Pair(stock, workdir, saver, OURS, StreamType.COLO, epochs=3, back_filter=watched(kinds))
    pair.run()
    assert pair.differences == [[]] * 3
    state = CHECKPOINT_STATE
    assert kinds == [
        *[state, state, state, kind] * 2,
        state,
        state,
    ]  # ready, resumed, suspended, dirty frames
