"""Upstream's list of dirty frames: round trips, its bounds, and the shifted list of Xen 4.18 and later."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.stream.dirty_list import (
    ENTRY_BYTES,
    check_list_length,
    first_list_is_suspicious,
    max_list_bytes,
    mend_shifted,
    pack_dirty_list,
    parse_dirty_list,
)
from colo_helper.stream.libxc import MAX_RECORD_BYTES, RecordType, StreamError, parse_record_header

SIZE = 1 << 20
lists = st.sets(st.integers(0, SIZE - 1), max_size=60).map(lambda gfns: array("Q", sorted(gfns)))


def list_length(header, size=SIZE):
    """Read the header of a list as the helper does."""
    kind, length = parse_record_header(header)
    assert kind == RecordType.CHECKPOINT_DIRTY_PFN_LIST
    check_list_length(length, size)
    return length


def parse(record, size=SIZE):
    """Read a record: the header first, then as many bytes as it says."""
    length = list_length(record[:8], size)
    assert len(record) == 8 + length
    return parse_dirty_list(record[8:], size)


def stock_418(gfns):
    """What send_checkpoint_dirty_pfn_list of Xen 4.18 and later puts on the wire."""
    length = ENTRY_BYTES * len(gfns)
    return (0x0F).to_bytes(4, "little") + length.to_bytes(4, "little") + bytes(8) + gfns.tobytes()


@given(lists)
def test_what_is_packed_is_parsed(gfns):
    record = pack_dirty_list(gfns)
    assert len(record) == 8 + 8 * len(gfns)
    assert parse(record) == gfns


def test_the_bytes_are_upstreams():
    assert (
        pack_dirty_list(array("Q", [1, 0x12345])).hex(" ", 8)
        == "0f00000010000000 0100000000000000 4523010000000000"
    )


@pytest.mark.parametrize("size", [1, 2, 255, SIZE])
def test_the_last_frame_is_accepted_and_the_one_behind_it_is_not(size):
    assert parse_dirty_list(pack_dirty_list(array("Q", [size - 1]))[8:], size) == array("Q", [size - 1])
    with pytest.raises(StreamError, match=rf"names frame {size:#x}; the guest ends at {size:#x}"):
        parse_dirty_list(pack_dirty_list(array("Q", [size]))[8:], size)


@given(lists, st.integers(1, 7))
def test_bytes_left_over(gfns, more):
    with pytest.raises(StreamError, match="not a multiple of 8"):
        parse_dirty_list(gfns.tobytes() + bytes(more), SIZE)


def test_more_entries_than_the_guest_has_frames():
    with pytest.raises(StreamError, match="has 3 entries; the guest has 2 frames"):
        parse_dirty_list(bytes(24), 2)
    with pytest.raises(StreamError, match="has 3 entries; the guest has 2 frames"):
        check_list_length(24, 2)


def test_no_list_is_longer_than_a_record():
    frames = MAX_RECORD_BYTES // 8
    assert max_list_bytes(frames) == max_list_bytes(frames + 1) == MAX_RECORD_BYTES
    check_list_length(MAX_RECORD_BYTES, frames + 1)
    with pytest.raises(StreamError, match="entries; the guest has"):
        check_list_length(MAX_RECORD_BYTES + 8, frames + 1)
    with pytest.raises(StreamError, match="more than the 134217728"):
        pack_dirty_list(array("Q", bytes(MAX_RECORD_BYTES + 8)))


@given(lists, st.data())
def test_a_flipped_bit_is_an_error_or_another_frame_of_the_guest(gfns, data):
    """The format has no checksum: what cannot be noticed must at least stay within the guest."""
    record = bytearray(pack_dirty_list(gfns))
    bit = data.draw(st.integers(0, 8 * len(record) - 1))
    record[bit // 8] ^= 1 << bit % 8
    try:
        _kind, length = parse_record_header(bytes(record[:8]))
        check_list_length(length, SIZE)
        parsed = parse_dirty_list(bytes(record[8 : 8 + length]), SIZE)
    except StreamError:
        return
    assert length <= max_list_bytes(SIZE)
    assert all(gfn < SIZE for gfn in parsed)


@given(lists)
def test_a_sound_list_is_suspected_only_when_it_begins_with_frame_0_or_is_empty(gfns):
    assert first_list_is_suspicious(gfns) == (len(gfns) == 0 or 0 in gfns)


@given(lists)
def test_a_list_of_stock_418_is_always_suspected_and_mended(gfns):
    wire = stock_418(gfns)
    length = list_length(wire[:8])
    entries, tail = parse_dirty_list(wire[8 : 8 + length], SIZE), wire[8 + length :]
    assert len(tail) == 8
    assert first_list_is_suspicious(entries)
    assert mend_shifted(entries, int.from_bytes(tail, "little")) == gfns


@pytest.mark.parametrize(
    ("entries", "tail", "reason"),
    [
        ([], 5, "empty list of dirty frames is followed by 0x5"),
        ([1, 2], 3, "beginning with 0x1 is not shifted"),
        ([0, 7], 7, "goes back from 0x7 to 0x7"),
    ],
)
def test_what_is_no_tail_of_a_shifted_list(entries, tail, reason):
    with pytest.raises(StreamError, match=reason):
        mend_shifted(array("Q", entries), tail)


def test_the_tail_of_a_shifted_list_is_held_against_the_size_like_every_frame():
    assert mend_shifted(array("Q", [0]), 0) == array("Q", [0])
    assert parse_dirty_list(mend_shifted(array("Q", [0, 7]), 99).tobytes(), 100) == array("Q", [7, 99])
    svm_ready = 5 | 4 << 32  # the header of libxl's next record, should somebody take it for a tail
    for tail in (100, svm_ready):
        with pytest.raises(StreamError, match=rf"names frame {tail:#x}"):
            parse_dirty_list(mend_shifted(array("Q", [0, 7]), tail).tobytes(), 100)
