"""Properties of dirty bitmaps, their encoding, and the comparison of two copies."""

from __future__ import annotations

import zlib
from array import array
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import BitmapHead, EncodingError, decode_bitmap, encode_bitmap
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
    larger = max(a.frames, b.frames)
    a.unite(b)
    assert set(a.gfns()) == wanted
    assert a.frames == larger
    assert set(b.gfns()) == theirs


def test_the_frames_a_bitmap_grows_by_are_clean():
    for _ in range(50):
        a, b = DirtyBitmap.empty(3), DirtyBitmap.empty(100_000)
        a.unite(b)
        assert a.count == 0


def test_a_bitmap_of_the_wrong_length():
    with pytest.raises(ValueError, match="A dirty bitmap of 9 frames has 2 bytes, not 1"):
        DirtyBitmap.from_bytes(b"\0", 9)


@given(bitmaps())
def test_what_is_encoded_is_decoded(bitmap):
    head, payload = encode_bitmap(bitmap)
    assert len(payload) <= len(bitmap.to_bytes())
    assert decode_bitmap(BitmapHead.parse(head.to_json()), payload, bitmap.frames) == bitmap


@given(bitmaps(), st.integers(0, 3000))
def test_no_frame_at_or_beyond_the_limit_is_accepted(bitmap, limit):
    head, payload = encode_bitmap(bitmap)
    if any(gfn >= limit for gfn in bitmap.gfns()):
        with pytest.raises(EncodingError, match="the guest ends at"):
            decode_bitmap(head, payload, limit)
    else:
        assert decode_bitmap(head, payload, limit) == bitmap


@given(bitmaps(size=800), st.data())
def test_any_changed_byte_is_noticed(bitmap, data):
    head, payload = encode_bitmap(bitmap)
    at = data.draw(st.integers(0, len(payload) - 1))
    damaged = bytearray(payload)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_bitmap(head, bytes(damaged), 800)
    except EncodingError:
        return
    assert decoded == bitmap  # a byte of zstd's header that does not matter


def sparse():
    bitmap = DirtyBitmap.empty(80_000)
    bitmap.mark(70_000)
    return bitmap


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frames": 80_001}, r"to 10000 bytes instead of 10001"),
        ({"frames": 79_992}, r"to 10000 bytes instead of 9999"),
        ({"frames": 1 << 40}, r"came for a guest of 80000"),
        ({"dirty": 2}, r"has 1 frames set, its header says 2"),
        ({"crc32": 1}, r"checksum does not match"),
        ({"encoding": "raw"}, r"bytes instead of 10000"),
    ],
)
def test_a_head_that_does_not_fit_its_bitmap(change, reason):
    head, payload = encode_bitmap(sparse())
    assert head.encoding == "zstd"
    with pytest.raises(EncodingError, match=reason):
        decode_bitmap(replace(head, **change), payload, 80_000)


def test_a_bit_in_the_padding():
    head = BitmapHead(9, 1, "raw", zlib.crc32(b"\0\2"))
    with pytest.raises(EncodingError, match="set beyond its own end"):
        decode_bitmap(head, b"\0\2", 9)


def test_a_bomb_takes_no_memory():
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    with pytest.raises(EncodingError):
        decode_bitmap(BitmapHead(800, 0, "zstd", 0), bomb, 800)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "without a header"),
        ({"frames": -1, "dirty": 0, "crc32": 0, "encoding": "raw"}, "'frames'"),
        ({"frames": 1, "dirty": True, "crc32": 0, "encoding": "raw"}, "'dirty'"),
        ({"frames": 1, "dirty": 0, "crc32": "x", "encoding": "raw"}, "'crc32'"),
        ({"frames": 1, "dirty": 0, "crc32": 0, "encoding": "lzma"}, "'lzma' is unknown"),
    ],
)
def test_a_head_that_is_none(value, reason):
    with pytest.raises(EncodingError, match=reason):
        BitmapHead.parse(value)


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
