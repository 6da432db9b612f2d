"""How a dirty bitmap travels on the back channel.

The bitmap is 32 KiB per GiB of guest memory; most of it is zero, so zstd at its fastest level makes it
a few hundred bytes. It is sent raw when compressing does not make it smaller. The header carries what is
needed to reject a damaged or a mistaken bitmap before any frame of it is believed.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import zstandard

from colo_helper.memory.bitmap import DirtyBitmap

ENCODINGS = ("raw", "zstd")
_LEVEL = 1


class EncodingError(ValueError):
    """A bitmap from the peer that must not be used; the text says why."""


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
    try:
        claimed = zstandard.frame_content_size(payload)
        if claimed != length:
            raise EncodingError(f"The dirty bitmap unpacks to {claimed} bytes instead of {length}.")
        return zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise EncodingError(f"The dirty bitmap cannot be unpacked: {error}.") from error
