"""How a dirty bitmap travels on the back channel between two helpers of ours.

A bitmap is 32 KiB per GiB of guest memory, most of it zero. `pack_bitmap` writes it in that of four encodings that
is the smallest for its kind; `unpack_bitmap` believes nothing that it has not checked. Both run while the guest
stands still, so neither walks over a large bitmap more often than it must.

A packed bitmap, all numbers little endian:

| offset | bytes | field |
|---|---|---|
| 0 | 1 | version, 1 |
| 1 | 1 | encoding: 0 raw, 1 zstd, 2 sparse, 3 runs |
| 2 | 2 | 0 |
| 4 | 4 | bytes of the payload |
| 8 | 8 | frames: bits in the bitmap |
| 16 | 8 | dirty: how many of them are set |
| 24 | 4 | CRC-32 of the 24 bytes before this field and of the payload |
| 28 | | payload |

| encoding | payload |
|---|---|
| raw | the bitmap as Xen has it: frame n is bit n & 7 of byte n >> 3; bits beyond the last frame are 0 |
| zstd | one zstd frame of the raw bitmap, with its content size |
| sparse | what `bitarray.util.sc_encode` makes of it, without the header (endianness and number of bits) |
| runs | see `colo_helper.memory.runs` |

A payload is never longer than the raw bitmap. Whatever a packed bitmap claims, unpacking it takes at most
UNPACK_COPIES times the raw bitmap of ``frame_limit + SLACK_FRAMES`` frames and UNPACK_FIXED_BYTES.

zstandard and bitarray.util are imported where they are used: a helper starts anew for every operation, in a slow
dom0, and most never pack a bitmap.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum, unique

from bitarray import bitarray

from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.runs import decode_runs, encode_runs, mean_run

VERSION = 1
#: The two sides ask their own hypervisors for a guest's size, so one bitmap may be longer than the other's guest.
#: Frames beyond the end must be clean, and there may be this many: a MiB of bitmap.
SLACK_FRAMES = 8 << 20
#: Bound of the memory that unpacking takes: the bitmap, its raw bytes, a copy of the payload and one to spare.
UNPACK_COPIES = 4
UNPACK_FIXED_BYTES = 1 << 20

_HEADER = struct.Struct("<BBHIQQI")
_CHECKED_BYTES = _HEADER.size - 4
_LEVEL = 1
#: zstd takes a window of the size that a damaged frame claims; level 1 writes none larger than this.
_WINDOW_BYTES = 1 << 20
#: Shorter runs than this on average are single frames for the encodings.
_SCATTERED = 2.0
#: Up to this many runs nothing is smaller by enough to look for it.
_FEW_RUNS = 16
#: Beyond this many runs, listing them takes longer (a ms) than the bytes it saves against zstd take on any link.
_MANY_RUNS = 2048
#: `sc_encode` takes more than a byte per scattered dirty frame and loses to zstd above one frame in 32.
_SPARSE_SHARE = 32


class EncodingError(ValueError):
    """A bitmap from the peer that must not be used; the text says why."""


@unique
class Encoding(IntEnum):
    """How the payload of a packed bitmap is written."""

    RAW = 0
    ZSTD = 1
    SPARSE = 2
    RUNS = 3


def max_packed_bytes(frame_limit: int) -> int:
    """Return the most bytes that a packed bitmap for a guest of ``frame_limit`` frames may have."""
    return _HEADER.size + _raw_bytes(frame_limit + SLACK_FRAMES)


def pack_bitmap(bitmap: DirtyBitmap) -> bytes:
    """Return the bitmap in the encoding that is the smallest for bitmaps like it.

    Takes less than a ms for a guest of 4 GiB with 1 % dirty, and about 10 ms at worst for 64 GiB.
    """
    encoding, payload, dirty = _encode(bitmap.bits)
    head = _HEADER.pack(VERSION, encoding, 0, len(payload), bitmap.frames, dirty, 0)[:_CHECKED_BYTES]
    crc32 = zlib.crc32(payload, zlib.crc32(head))
    return b"".join((head, crc32.to_bytes(4, "little"), payload))


def unpack_bitmap(data: bytes | memoryview, frame_limit: int) -> DirtyBitmap:
    """Return the bitmap, after every check; no frame at or beyond ``frame_limit`` is dirty in it.

    It has as many frames as the peer's guest has. Raises EncodingError.
    """
    if len(data) < _HEADER.size:
        raise EncodingError(
            f"A packed dirty bitmap has {len(data)} bytes, fewer than the {_HEADER.size} of its header."
        )
    version, number, zero, length, frames, dirty, crc32 = _HEADER.unpack_from(data)
    if version != VERSION or zero:
        raise EncodingError(
            f"The dirty bitmap is packed in version {version}; this helper reads version {VERSION}."
        )
    if number not in Encoding.__members__.values():
        raise EncodingError(f"The dirty bitmap's encoding {number} is unknown.")
    if frames > frame_limit + SLACK_FRAMES:
        raise EncodingError(f"A dirty bitmap of {frames} frames came for a guest of {frame_limit}.")
    payload = memoryview(data)[_HEADER.size :]
    if length != len(payload) or length > _raw_bytes(frames):
        raise EncodingError(
            f"The dirty bitmap's payload has {len(payload)} bytes, its header says {length};"
            f" it may have {_raw_bytes(frames)}."
        )
    if zlib.crc32(payload, zlib.crc32(memoryview(data)[:_CHECKED_BYTES])) != crc32:
        raise EncodingError("The dirty bitmap's checksum does not match.")
    bits, count = _decode(Encoding(number), payload, frames)
    if count != dirty:
        raise EncodingError(f"The dirty bitmap has {count} frames set, its header says {dirty}.")
    if frames > frame_limit and (gfn := bits.find(1, frame_limit)) >= 0:
        raise EncodingError(f"The dirty bitmap names frame {gfn:#x}, the guest ends at {frame_limit:#x}.")
    return DirtyBitmap(bits)


def _raw_bytes(frames: int) -> int:
    return (frames + 7) // 8


# ------------------------------------------------------------------------------------------------------- encoding


def _encode(bits: bitarray) -> tuple[Encoding, bytes, int]:
    """Return the encoding, the payload and the number of dirty frames.

    Which is the smallest follows from how long runs are: as runs each takes 2 to 3 bytes, in zstd 3 to 6; in the
    sparse encoding each frame takes 1 to 2. To try all of them would take longer than the bytes between them.
    """
    scattered = mean_run(bits) < _SCATTERED
    listed = encode_runs(bits, _FEW_RUNS if scattered else _MANY_RUNS)
    if listed:
        return _shorter(bits, Encoding.RUNS, *listed)
    dirty = bits.count()
    if scattered and dirty * _SPARSE_SHARE < len(bits):
        return _shorter(bits, Encoding.SPARSE, _encode_sparse(bits), dirty)
    return _shorter(bits, Encoding.ZSTD, _encode_zstd(bits), dirty)


def _shorter(bits: bitarray, encoding: Encoding, payload: bytes, dirty: int) -> tuple[Encoding, bytes, int]:
    """Return this, or the bitmap as it is if that is no longer."""
    if len(payload) < _raw_bytes(len(bits)):
        return encoding, payload, dirty
    return Encoding.RAW, bits.tobytes(), dirty


def _encode_zstd(bits: bitarray) -> bytes:
    import zstandard  # noqa: PLC0415 - see the top

    # What pads the last byte in memory need not be 0.
    raw = bits.tobytes() if len(bits) % 8 else memoryview(bits)
    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def _encode_sparse(bits: bitarray) -> bytes:
    from bitarray.util import sc_encode  # noqa: PLC0415 - see the top

    return bytes(sc_encode(bits)[len(_sparse_header(len(bits))) :])


def _sparse_header(frames: int) -> bytes:
    """Return what sc_encode begins with: the bytes in the number of bits (bit 4 set: big endian), and that number."""
    width = (frames.bit_length() + 7) // 8
    return bytes((width,)) + frames.to_bytes(width, "little")


# ------------------------------------------------------------------------------------------------------- decoding


def _decode(encoding: Encoding, payload: memoryview, frames: int) -> tuple[bitarray, int]:
    """Return the bits, exactly ``frames`` of them, and how many are set. Raises EncodingError."""
    if encoding is Encoding.RAW:
        bits = _from_raw(bytes(payload), frames)
    elif encoding is Encoding.ZSTD:
        bits = _from_raw(_decode_zstd(payload, _raw_bytes(frames)), frames)
    else:
        try:
            if encoding is Encoding.RUNS:
                return decode_runs(payload, frames)
            bits = _decode_sparse(payload, frames)
        except ValueError as error:
            raise EncodingError(f"The dirty bitmap cannot be unpacked: {error}.") from error
    return bits, bits.count()


def _from_raw(raw: bytes, frames: int) -> bitarray:
    if len(raw) != _raw_bytes(frames):
        raise EncodingError(f"The dirty bitmap has {len(raw)} bytes instead of {_raw_bytes(frames)}.")
    if frames % 8 and raw[-1] >> (frames % 8):
        raise EncodingError(f"The dirty bitmap has a frame set beyond its own end, {frames}.")
    bits = bitarray(endian="little")
    bits.frombytes(raw)
    del bits[frames:]
    return bits


def _decode_zstd(payload: memoryview, length: int) -> bytes:
    """Unpack exactly ``length`` bytes; the size a frame claims is checked first, because zstd takes memory for it."""
    import zstandard  # noqa: PLC0415 - see the top

    try:
        claimed = zstandard.frame_content_size(payload)
        if claimed != length:
            raise EncodingError(f"The dirty bitmap unpacks to {claimed} bytes instead of {length}.")
        decompressor = zstandard.ZstdDecompressor(max_window_size=max(_WINDOW_BYTES, length))
        return decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise EncodingError(f"The dirty bitmap cannot be unpacked: {error}.") from error


def _decode_sparse(payload: memoryview, frames: int) -> bitarray:
    """Unpack what sc_encode made. The header is ours, so the size it takes memory for is the one checked."""
    from bitarray.util import sc_decode  # noqa: PLC0415 - see the top

    rest = iter(_sparse_header(frames) + payload)
    try:
        bits = sc_decode(rest)
    except StopIteration:
        raise ValueError("its blocks end too early") from None
    if next(rest, None) is not None:
        raise ValueError("bytes follow its last block")
    return bits
