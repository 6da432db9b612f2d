"""What is kept of a checkpoint until it is complete: it comes back as it was, and no stream can make it grow for ever."""

from __future__ import annotations

import os
import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.helper.fds import Fd, Stop
from colo_helper.helper.spool import MAX_SMALL_BYTES, MAX_SMALL_RECORDS, Spool
from colo_helper.stream.libxc import PAGE_BYTES, WITH_CONTENT, PageEntries, RecordType, StreamError
from tests.fuzz.seeds import page

FRAMES = 5000
records = st.lists(
    st.lists(st.tuples(st.integers(0, FRAMES - 1), st.sampled_from([0, 13, 15])), min_size=1, max_size=30),
    max_size=8,
)


def entries_of(pairs):
    return PageEntries(array("Q", (gfn for gfn, _ in pairs)), bytes(kind for _, kind in pairs))


def take(spool, *many):
    """Let the spool take records whose pages come from a file."""
    fd = os.memfd_create("stream")
    try:
        for entries in many:
            os.write(fd, b"".join(map(page, entries.content_gfns)))
        os.lseek(fd, 0, os.SEEK_SET)
        stream = Fd(fd, "the stream", Stop(), writing=False)
        for entries in many:
            spool.take_pages(entries, stream)
    finally:
        os.close(fd)


@given(records)
def test_a_checkpoint_comes_back_as_it_was(tmp_path_factory, checkpoint):
    spool = Spool(tmp_path_factory.getbasetemp(), FRAMES)
    for _ in range(2):  # the second checkpoint is in no way the first one's
        take(spool, *map(entries_of, checkpoint))
        pairs, contents = [], []
        for entries in spool.pages():
            content = bytearray(PAGE_BYTES * len(entries.content_gfns))
            spool.read_into(memoryview(content))
            pairs += zip(entries.gfns, entries.types, strict=True)
            contents.append(bytes(content))
        named = [pair for record in checkpoint for pair in record]
        assert pairs == named
        assert b"".join(contents) == b"".join(page(gfn) for gfn, kind in named if kind in WITH_CONTENT)
        assert spool.page_count() == sum(kind in WITH_CONTENT for _, kind in named)
        spool.clear()
    spool.close()


def test_content_is_found_though_nobody_read_the_batch_before_it(tmp_path):
    spool = Spool(tmp_path, FRAMES)
    take(spool, entries_of([(gfn, 0) for gfn in range(1500)]))
    for entries in spool.pages():
        content = bytearray(PAGE_BYTES)
        spool.read_into(memoryview(content))
        assert content == page(entries.gfns[0])


def test_a_checkpoint_has_each_frame_once(tmp_path):
    spool = Spool(tmp_path, 10)
    take(spool, entries_of([(gfn, 15) for gfn in range(10)]))
    with pytest.raises(StreamError, match="names more than 10 frames"):
        take(spool, entries_of([(3, 15)]))
    spool.clear()
    take(spool, entries_of([(3, 15)]))


def test_other_records_are_few_and_small(tmp_path):
    spool = Spool(tmp_path, 10)
    half = bytes(MAX_SMALL_BYTES // 2)
    spool.keep(RecordType.HVM_CONTEXT, half)
    spool.keep(RecordType.HVM_CONTEXT, half)
    with pytest.raises(
        StreamError, match=f"HVM_PARAMS is too much: the checkpoint has 2 records of {MAX_SMALL_BYTES}"
    ):
        spool.keep(RecordType.HVM_PARAMS, b"x")
    spool.clear()
    for _ in range(MAX_SMALL_RECORDS):
        spool.keep(0x80000000, b"")
    with pytest.raises(StreamError, match=f"{MAX_SMALL_RECORDS} records of 0 bytes"):
        spool.keep(0x80000000, b"")


def test_a_record_for_each_frame_takes_little_memory(tmp_path):
    spool = Spool(tmp_path, FRAMES)
    records = [entries_of([(gfn, 15)]) for gfn in range(FRAMES)]
    tracemalloc.start()
    take(spool, *records)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 16 * FRAMES + 20_000
