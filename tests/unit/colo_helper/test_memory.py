"""Properties of dirty bitmaps, their encoding, and the comparison of two copies."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.hashes import PAGE_BYTES, HashSet, differing_gfns, page_hash

sizes = st.integers(1, 3000)


@st.composite
def bitmaps(draw, size=None):
    frames = size or draw(sizes)
    bitmap = DirtyBitmap.empty(frames)
    for gfn in draw(st.sets(st.integers(0, frames - 1))):
        bitmap.mark(gfn)
    return bitmap


@given(bitmaps())
def test_bytes_are_as_xen_writes_them(bitmap):
    data = bitmap.to_bytes()
    assert {gfn for gfn in range(bitmap.frames) if data[gfn // 8] >> (gfn % 8) & 1} == set(bitmap.gfns())
    assert DirtyBitmap.from_bytes(data, bitmap.frames) == bitmap
    assert bitmap.count == len(bitmap.gfns())


@given(bitmaps(), bitmaps())
def test_the_union_has_the_frames_of_both_whatever_their_sizes(a, b):
    wanted = set(a.gfns()) | set(b.gfns())
    theirs = set(b.gfns())
    needed = max(a.frames, b.frames if any(gfn >= a.frames for gfn in theirs) else 0)
    a.unite(b)
    assert set(a.gfns()) == wanted
    assert a.frames == needed
    assert set(b.gfns()) == theirs


def test_the_frames_a_bitmap_grows_by_are_clean():
    for _ in range(50):
        a, b = DirtyBitmap.empty(3), DirtyBitmap.empty(100_000)
        a.unite(b)
        assert a.count == 0


def test_a_bitmap_of_the_wrong_length():
    with pytest.raises(ValueError, match="A dirty bitmap of 9 frames has 2 bytes, not 1"):
        DirtyBitmap.from_bytes(b"\0", 9)


def hash_set(pages):
    made = HashSet()
    for gfn in sorted(pages):
        made.add(gfn, bytes([pages[gfn]]) * PAGE_BYTES)
    return made


copies = st.dictionaries(st.integers(0, 40), st.integers(0, 2))


@given(copies, copies)
def test_the_comparison_names_exactly_the_frames_that_differ(ours, theirs):
    wanted = [gfn for gfn in range(41) if ours.get(gfn) != theirs.get(gfn)]
    assert differing_gfns(hash_set(ours), hash_set(theirs)) == wanted


@given(st.sets(st.integers(0, 1 << 36)))
def test_hash_sets_travel(gfns):
    made = hash_set(dict.fromkeys(gfns, 1))
    width, numbers, hashes = made.pack()
    assert width == (8 if gfns and max(gfns) >= 1 << 32 else 4)
    back = HashSet.unpack(width, numbers, hashes)
    assert (back.gfns, back.hashes) == (made.gfns, made.hashes)


@pytest.mark.parametrize(
    ("width", "numbers", "hashes", "reason"),
    [
        (3, b"abc", b"", "of 3 bytes"),
        (4, b"abcde", b"", "of 4 bytes"),
        (4, b"\1\0\0\0", b"short", "5 bytes of hashes"),
        (4, array("I", [2, 1]).tobytes(), bytes(16), "not ascending"),
        (4, array("I", [2, 2]).tobytes(), bytes(16), "not ascending"),
    ],
)
def test_hash_sets_that_are_not_well_formed(width, numbers, hashes, reason):
    with pytest.raises(ValueError, match=reason):
        HashSet.unpack(width, numbers, hashes)


def test_the_hash_is_blake2b_of_8_bytes():
    assert page_hash(bytes(PAGE_BYTES)).hex() == page_hash(memoryview(bytearray(PAGE_BYTES))).hex()
    assert len(page_hash(b"x")) == 8
