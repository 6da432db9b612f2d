"""Packed dirty bitmaps: round trips in every encoding, damage of every kind, and bounded memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import zlib

import pytest
import zstandard
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import (
    SLACK_FRAMES,
    UNPACK_COPIES,
    UNPACK_FIXED_BYTES,
    Encoding,
    EncodingError,
    max_packed_bytes,
    pack_bitmap,
    unpack_bitmap,
)
from colo_helper.memory.runs import decode_runs, encode_runs, mean_run

HEADER_BYTES = 28


def clustered(frames, runs, length, step):
    return DirtyBitmap.from_gfns(
        (at % frames for run in range(runs) for at in range(run * step, run * step + length)), frames
    )


def scattered(frames, dirty):
    """Frames that follow no pattern: a walk over the guest by a large odd step."""
    return DirtyBitmap.from_gfns({n * n * 40_503 % frames for n in range(dirty)}, frames)


#: One bitmap for each encoding that wins somewhere.
SAMPLES = {
    Encoding.RAW: DirtyBitmap.from_gfns((n for n in range(64) if n * n % 7 in (1, 2)), 64),
    Encoding.ZSTD: clustered(200_000, 3000, 9, 61),
    Encoding.SPARSE: scattered(1 << 20, 10_000),
    Encoding.RUNS: clustered(100_000, 40, 300, 2111),
}


@st.composite
def bitmaps(draw, most_frames=20_000):
    """Bitmaps made of a few runs of any length, on any size: what guests do, and what no guest does."""
    frames = draw(st.integers(0, most_frames))
    bitmap = DirtyBitmap.empty(frames)
    for start, length in draw(
        st.lists(st.tuples(st.integers(0, most_frames), st.integers(1, 600)), max_size=40)
    ):
        bitmap.bits[start : start + length] = 1
    return bitmap


def packed(encoding, frames, dirty, payload):
    """Return a packed bitmap that need not be one we would write, with the right checksum."""
    head = struct.pack("<BBHIQQ", 1, encoding, 0, len(payload), frames, dirty)
    return head + zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "little") + payload


@given(bitmaps())
def test_what_is_packed_is_unpacked(bitmap):
    data = pack_bitmap(bitmap)
    assert len(data) <= HEADER_BYTES + len(bitmap.to_bytes()) <= max_packed_bytes(bitmap.frames)
    assert unpack_bitmap(data, bitmap.frames) == bitmap
    assert unpack_bitmap(memoryview(data), bitmap.frames + 1) == bitmap


@pytest.mark.parametrize("encoding", Encoding)
def test_each_encoding_wins_where_it_should(encoding):
    bitmap = SAMPLES[encoding]
    data = pack_bitmap(bitmap)
    assert Encoding(data[1]) is encoding
    assert unpack_bitmap(data, bitmap.frames) == bitmap


@pytest.mark.parametrize("encoding", Encoding)
def test_a_bitmap_over_xens_own_buffer_is_packed_too(encoding):
    raw = SAMPLES[encoding].to_bytes()
    frames = 8 * len(raw)
    for buffer in (raw, bytearray(raw)):
        bitmap = DirtyBitmap(bitarray(buffer=buffer, endian="little"))
        assert unpack_bitmap(pack_bitmap(bitmap), frames) == bitmap


@pytest.mark.parametrize("frames", [0, 1, 8, 255, 256, 65_535, 65_536, 1 << 20, (1 << 24) + 3])
@pytest.mark.parametrize("bit", [0, 1])
def test_all_clean_and_all_dirty(frames, bit):
    bitmap = DirtyBitmap(bitarray(frames, endian="little"))
    bitmap.bits.setall(bit)
    data = pack_bitmap(bitmap)
    assert unpack_bitmap(data, frames) == bitmap
    assert len(data) <= 100


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_a_bitmap_is_smaller_than_the_list_of_its_frames(share):
    for bitmap in (
        scattered(1 << 18, int(share * (1 << 18))),
        clustered(1 << 18, int(share * (1 << 14)), 16, 1009),
    ):
        assert len(pack_bitmap(bitmap)) * 3 < 8 * bitmap.count


@given(bitmaps(), st.integers(0, 20_000))
def test_no_frame_at_or_beyond_the_limit_is_accepted(bitmap, limit):
    data = pack_bitmap(bitmap)
    beyond = bitmap.bits.find(1, limit) if limit < bitmap.frames else -1
    if beyond >= 0:
        with pytest.raises(EncodingError, match=rf"names frame {beyond:#x}, the guest ends at {limit:#x}"):
            unpack_bitmap(data, limit)
    else:
        assert unpack_bitmap(data, limit) == bitmap


def test_the_last_frame_is_accepted_and_the_one_behind_it_is_not():
    bitmap = DirtyBitmap.from_gfns([999], 1000)
    assert unpack_bitmap(pack_bitmap(bitmap), 1000) == bitmap
    with pytest.raises(EncodingError, match=r"names frame 0x3e7, the guest ends at 0x3e7"):
        unpack_bitmap(pack_bitmap(bitmap), 999)


@pytest.mark.parametrize("encoding", Encoding)
def test_every_flipped_bit_is_noticed_or_does_not_matter(encoding):
    bitmap = SAMPLES[encoding]
    data = pack_bitmap(bitmap)
    step = max(1, len(data) // 300)
    refused = []
    for at in [*range(min(len(data), 64)), *range(64, len(data), step)]:
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            try:
                assert unpack_bitmap(damaged, bitmap.frames) == bitmap
            except EncodingError as error:
                refused.append(str(error))
    assert len(refused) >= 8 * HEADER_BYTES
    assert all(sentence.endswith(".") for sentence in refused)


@given(bitmaps(), st.data())
def test_a_truncated_or_longer_one_is_refused(bitmap, data):
    whole = pack_bitmap(bitmap)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"\0"):
        with pytest.raises(EncodingError):
            unpack_bitmap(wrong, bitmap.frames)


@given(st.binary(max_size=300), st.sampled_from(Encoding), st.integers(0, 3000), st.integers(0, 5))
def test_any_payload_is_decoded_or_refused(payload, encoding, frames, dirty):
    """The checksum keeps nearly all damage from the decoders: here they see it."""
    try:
        bitmap = unpack_bitmap(packed(encoding, frames, dirty, payload), 4000)
    except EncodingError:
        return
    assert (bitmap.frames, bitmap.count) == (frames, dirty)


#: A zstd frame with the content size it should have, that claims a window of 128 MiB.
wide_window = b"\x28\xb5\x2f\xfd\x80\x88" + (40_960).to_bytes(4, "little") + bytes(3)
sparse_bomb = bytes([0xC4, 0]) * 1000 + b"\0"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "has 0 bytes, fewer than the 28"),
        (b"\2" + bytes(27), "packed in version 2"),
        (packed(9, 8, 0, b"\0"), "encoding 9 is unknown"),
        (packed(0, 800 + SLACK_FRAMES + 1, 0, b""), "frames came for a guest of 800"),
        (packed(0, 1 << 63, 0, b""), "frames came for a guest of 800"),
        (packed(0, 9, 0, b"\0"), "has 1 bytes instead of 2"),
        (packed(0, 9, 1, b"\0\2"), "set beyond its own end, 9"),
        (packed(0, 8, 2, b"\1"), "has 1 frames set, its header says 2"),
        (packed(0, 8, 2, b"\1")[:-1] + b"\3", "checksum does not match"),
        (packed(0, 8, 0, bytes(2)), "payload has 2 bytes, its header says 2; it may have 1"),
        (packed(1, 800, 0, zstandard.compress(bytes(101))), "unpacks to 101 bytes instead of 100"),
        (packed(1, 800, 0, zstandard.compress(bytes(100)) + b"\0"), "cannot be unpacked"),
        (packed(1, 800, 0, b"no frame"), "cannot be unpacked"),
        (packed(1, 327_680, 0, wide_window), "requires too much memory"),
        (packed(2, 1 << 20, 0, b"\xff"), "cannot be unpacked: invalid block head"),
        (packed(2, 1 << 20, 0, b"\xa1"), "its blocks end too early"),
        (packed(2, 1 << 20, 0, b"\0\0"), "bytes follow its last block"),
        (packed(2, 8, 0, b""), "its blocks end too early"),
        (packed(3, 800, 0, b"\1"), "its list of runs has no head"),
        (packed(3, 800, 0, b"\1\3"), "its runs are of 1 and 3 bytes"),
        (packed(3, 800, 0, b"\1\1\0"), "ends within a run, 1 bytes into it"),
        (packed(3, 80, 0, b"\1\1\x50\1"), "its runs end at frame 0x51, beyond its own end at 0x50"),
    ],
)
def test_damage_is_named(data, reason):
    with pytest.raises(EncodingError, match=reason):
        unpack_bitmap(data, 800)


@pytest.mark.parametrize(
    "data",
    [
        packed(1, 800, 0, zstandard.compress(bytes(64 << 20))[:100]),
        packed(2, 1 << 20, 0, sparse_bomb),
        packed(3, 1 << 20, 0, b"\1\1" + bytes(20_000)),
        packed(0, 1 << 40, 0, b""),
    ],
)
def test_no_claim_takes_memory(data):
    unpack_bitmap(pack_bitmap(SAMPLES[Encoding.ZSTD]), 1 << 20)  # what is imported lazily is not the claim's
    unpack_bitmap(pack_bitmap(SAMPLES[Encoding.SPARSE]), 1 << 20)
    tracemalloc.start()
    try:
        unpack_bitmap(data, 1 << 20)
    except EncodingError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= UNPACK_COPIES * (max_packed_bytes(1 << 20)) + UNPACK_FIXED_BYTES


def test_nothing_slow_is_imported_before_it_is_used():
    script = (
        "import sys; from colo_helper.memory.encoding import pack_bitmap, unpack_bitmap\n"
        "from colo_helper.memory.bitmap import DirtyBitmap\n"
        "unpack_bitmap(pack_bitmap(DirtyBitmap.from_gfns([1, 5], 1 << 20)), 1 << 20)\n"
        "print([name for name in ('zstandard', 'bitarray.util') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(bitmaps())
def test_runs_come_back_with_their_count(bitmap):
    runs = len([run for run in bitmap.bits.to01().split("0") if run])
    data, dirty = encode_runs(bitmap.bits, runs)
    assert dirty == bitmap.count
    assert decode_runs(data, bitmap.frames) == (bitmap.bits, dirty)
    if runs:
        assert encode_runs(bitmap.bits, runs - 1) is None
        assert 1 <= mean_run(bitmap.bits) <= bitmap.count


@pytest.mark.parametrize("frames", [1 << 20, (1 << 20) + 5])
@pytest.mark.parametrize("length", [1, 4, 50])
def test_the_mean_run_is_seen_from_a_sample(length, frames):
    bits = clustered(frames, 2000, length, 523).bits
    assert mean_run(bits) == pytest.approx(length, rel=0.2)
    assert mean_run(DirtyBitmap.empty(frames).bits) == 0


@pytest.mark.parametrize(
    ("gfns", "frames"),
    [
        ([0], 1),
        ([255], 256),
        ([256], 257),
        (range(300), 300),
        ([*range(0, 4000, 40), 3_999_999], 4_000_000),  # an outlier does not widen the rest
        ([*range(0, 4000, 40), *range(100_000, 180_000)], 4_000_000),
    ],
)
def test_runs_that_do_not_fit_their_width(gfns, frames):
    bits = DirtyBitmap.from_gfns(gfns, frames).bits
    data, dirty = encode_runs(bits, 1000)
    assert decode_runs(data, frames) == (bits, dirty)
    assert len(data) < 1000
