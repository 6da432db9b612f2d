"""How a dirty bitmap travels on the back channel between two helpers of ours.

A bitmap is 32 KiB per GiB of guest memory, most of it zero. `pack_bitmap` writes it in the smallest of four
encodings, of which it tries only those that can win; `unpack_bitmap` believes nothing that it has not checked.

A packed bitmap, all numbers little endian:

| offset | bytes | field |
|---|---|---|
| 0 | 1 | version, 1 |
| 1 | 1 | encoding: 0 raw, 1 zstd, 2 sparse, 3 runs |
| 2 | 2 | 0 |
| 4 | 4 | bytes of the payload |
| 8 | 8 | frames: bits in the bitmap |
| 16 | 8 | dirty: how many of them are set |
| 24 | 4 | CRC-32 of the 24 bytes before this field and of the raw bitmap |
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
from dataclasses import asdict, dataclass
from enum import IntEnum, unique
from typing import Any

from bitarray import bitarray

from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.runs import count_runs, decode_runs, encode_runs

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
#: Up to this many runs nothing is smaller by enough to look for it.
_FEW_RUNS = 16
#: Beyond this many runs, listing them takes longer (a ms) than the bytes it saves against zstd take on any link.
_MANY_RUNS = 2048
#: `sc_encode` takes more than a byte per scattered dirty frame and loses to zstd above one frame in 32.
_SPARSE_SHARE = 32
#: Up to this size (8 GiB of guest) all candidates together take a ms, so the guess below need not be trusted.
_SMALL_BYTES = 256 << 10


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
    """Return the bitmap in the smallest of the encodings worth trying.

    Takes well under a ms for a guest of 4 GiB with 1 % dirty, scattered or not, and about 15 ms at worst for 64 GiB.
    """
    raw = bitmap.to_bytes()
    dirty = bitmap.count
    encoding, payload = min(_candidates(bitmap.bits, raw, dirty), key=lambda candidate: len(candidate[1]))
    head = _HEADER.pack(VERSION, encoding, 0, len(payload), bitmap.frames, dirty, 0)[:_CHECKED_BYTES]
    crc32 = zlib.crc32(raw, zlib.crc32(head))
    return b"".join((head, crc32.to_bytes(4, "little"), payload))


def unpack_bitmap(data: bytes | memoryview, frame_limit: int) -> DirtyBitmap:
    """Return the bitmap, after every check; no frame at or beyond ``frame_limit`` is dirty in it.

    It has as many frames as the peer's guest has. Raises EncodingError.
    """
    if len(data) < _HEADER.size:
        raise EncodingError(
            f"A packed dirty bitmap has {len(data)} bytes, fewer than the {_HEADER.size} of its header."
        )
    version, encoding, zero, length, frames, dirty, crc32 = _HEADER.unpack_from(data)
    if version != VERSION or zero:
        raise EncodingError(
            f"The dirty bitmap is packed in version {version}; this helper reads version {VERSION}."
        )
    if encoding not in Encoding.__members__.values():
        raise EncodingError(f"The dirty bitmap's encoding {encoding} is unknown.")
    if frames > frame_limit + SLACK_FRAMES:
        raise EncodingError(f"A dirty bitmap of {frames} frames came for a guest of {frame_limit}.")
    needed = _raw_bytes(frames)
    if length != len(data) - _HEADER.size or length > needed:
        raise EncodingError(
            f"The dirty bitmap's payload has {len(data) - _HEADER.size} bytes, its header says {length};"
            f" it may have {needed}."
        )
    bitmap, raw = _decode(Encoding(encoding), memoryview(data)[_HEADER.size :], frames)
    if zlib.crc32(raw, zlib.crc32(memoryview(data)[:_CHECKED_BYTES])) != crc32:
        raise EncodingError("The dirty bitmap's checksum does not match.")
    if frames % 8 and raw[-1] >> (frames % 8):
        raise EncodingError(f"The dirty bitmap has a frame set beyond its own end, {frames}.")
    if bitmap.count != dirty:
        raise EncodingError(f"The dirty bitmap has {bitmap.count} frames set, its header says {dirty}.")
    if frames > frame_limit and (gfn := bitmap.bits.find(1, frame_limit)) >= 0:
        raise EncodingError(f"The dirty bitmap names frame {gfn:#x}, the guest ends at {frame_limit:#x}.")
    return bitmap


def _raw_bytes(frames: int) -> int:
    return (frames + 7) // 8


# ------------------------------------------------------------------------------------------------------- encoding


def _candidates(bits: bitarray, raw: bytes, dirty: int) -> list[tuple[Encoding, bytes]]:
    """Return the encodings that can be the smallest here, judged by how many runs there are and how long.

    Runs cost 2 to 3 bytes each, zstd 3 to 6 bytes a run, the sparse encoding 1 to 2 bytes a frame.
    """
    made = [(Encoding.RAW, raw)]
    runs = count_runs(bits, dirty) if dirty > _FEW_RUNS else dirty
    scattered = dirty < 2 * runs
    if runs <= _MANY_RUNS and not (scattered and runs > _FEW_RUNS):
        made.append((Encoding.RUNS, encode_runs(bits)))
        if runs <= _FEW_RUNS:
            return made
    sparse = scattered and dirty * _SPARSE_SHARE < len(bits)
    if sparse:
        made.append((Encoding.SPARSE, _encode_sparse(bits)))
    if not sparse or len(raw) <= _SMALL_BYTES:
        made.append((Encoding.ZSTD, _encode_zstd(raw)))
    return made


def _encode_zstd(raw: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - see the top

    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def _encode_sparse(bits: bitarray) -> bytes:
    from bitarray.util import sc_encode  # noqa: PLC0415 - see the top

    return bytes(sc_encode(bits)[len(_sparse_header(len(bits))) :])


def _sparse_header(frames: int) -> bytes:
    """Return what sc_encode begins with: the bytes in the number of bits (bit 4 set: big endian), and that number."""
    width = (frames.bit_length() + 7) // 8
    return bytes((width,)) + frames.to_bytes(width, "little")


# ------------------------------------------------------------------------------------------------------- decoding


def _decode(encoding: Encoding, payload: memoryview, frames: int) -> tuple[DirtyBitmap, bytes]:
    """Return the bitmap and its raw bytes; only its size is sure."""
    if encoding in (Encoding.RAW, Encoding.ZSTD):
        raw = _decode_zstd(payload, _raw_bytes(frames)) if encoding is Encoding.ZSTD else bytes(payload)
        if len(raw) != _raw_bytes(frames):
            raise EncodingError(f"The dirty bitmap has {len(raw)} bytes instead of {_raw_bytes(frames)}.")
        return DirtyBitmap.from_bytes(raw, frames), raw
    try:
        decode = decode_runs if encoding is Encoding.RUNS else _decode_sparse
        bitmap = DirtyBitmap(decode(payload, frames))
    except ValueError as error:
        raise EncodingError(f"The dirty bitmap cannot be unpacked: {error}.") from error
    return bitmap, bitmap.to_bytes()


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


# --------------------------------------------------------------------------------- the replicator's form, until it
# --------------------------------------------------------------------------------- uses the callout

ENCODINGS = ("raw", "zstd")


@dataclass(frozen=True, slots=True)
class BitmapHead:
    """What travels beside an encoded bitmap.

    ``frames``: bits in it; ``dirty``: how many of them are set; ``encoding``: one of ENCODINGS;
    ``crc32``: of the bitmap's raw bytes.
    """

    frames: int
    dirty: int
    encoding: str
    crc32: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that ``parse`` reads."""
        return asdict(self)

    @classmethod
    def parse(cls, value: object) -> BitmapHead:
        """Read the JSON object of a head; raises EncodingError naming the field that is wrong."""
        if not isinstance(value, dict):
            raise EncodingError("The dirty bitmap came without a header.")
        for name in ("frames", "dirty", "crc32"):
            number = value.get(name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise EncodingError(f"The dirty bitmap's field '{name}' is not a number: {number!r}.")
        if value.get("encoding") not in ENCODINGS:
            raise EncodingError(f"The dirty bitmap's encoding {value.get('encoding')!r} is unknown.")
        return cls(value["frames"], value["dirty"], value["encoding"], value["crc32"])


def encode_bitmap(bitmap: DirtyBitmap) -> tuple[BitmapHead, bytes]:
    """Return the header and the bytes of a bitmap, in the smaller of the two encodings."""
    import zstandard  # noqa: PLC0415 - see the top

    raw = bitmap.to_bytes()
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
    encoding, payload = ("zstd", packed) if len(packed) < len(raw) else ("raw", raw)
    return BitmapHead(bitmap.frames, bitmap.count, encoding, zlib.crc32(raw)), payload


def decode_bitmap(head: BitmapHead, payload: bytes, frame_limit: int) -> DirtyBitmap:
    """Return the bitmap, after every check; no frame at or beyond ``frame_limit`` may be dirty in it.

    Memory is bounded by the frame limit: a header that claims more than the limit rounded up to whole MiB of
    bitmap is refused before anything is unpacked. Raises EncodingError.
    """
    slack = 8 * (1 << 20)
    if head.frames > frame_limit + slack:
        raise EncodingError(f"A dirty bitmap of {head.frames} frames came for a guest of {frame_limit}.")
    needed = (head.frames + 7) // 8
    raw = _unpack(payload, needed) if head.encoding == "zstd" else payload
    if len(raw) != needed:
        raise EncodingError(f"The dirty bitmap has {len(raw)} bytes instead of {needed}.")
    if zlib.crc32(raw) != head.crc32:
        raise EncodingError("The dirty bitmap's checksum does not match.")
    if head.frames % 8 and raw[-1] >> (head.frames % 8):
        raise EncodingError(f"The dirty bitmap has a frame set beyond its own end, {head.frames}.")
    bitmap = DirtyBitmap.from_bytes(raw, head.frames)
    if bitmap.count != head.dirty:
        raise EncodingError(f"The dirty bitmap has {bitmap.count} frames set, its header says {head.dirty}.")
    if head.frames > frame_limit and bitmap.bits.find(1, frame_limit) >= 0:
        gfn = bitmap.bits.find(1, frame_limit)
        raise EncodingError(f"The dirty bitmap names frame {gfn:#x}, the guest ends at {frame_limit:#x}.")
    return bitmap


def _unpack(payload: bytes, length: int) -> bytes:
    """Unpack exactly ``length`` bytes; the size a frame claims is checked first, because zstd takes memory for it."""
    import zstandard  # noqa: PLC0415 - see the top

    try:
        claimed = zstandard.frame_content_size(payload)
        if claimed != length:
            raise EncodingError(f"The dirty bitmap unpacks to {claimed} bytes instead of {length}.")
        return zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise EncodingError(f"The dirty bitmap cannot be unpacked: {error}.") from error
