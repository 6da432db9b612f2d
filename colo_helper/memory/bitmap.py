"""The set of dirty frames of one guest, one bit per frame."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Self

from bitarray import bitarray


class DirtyBitmap:
    """Dirty frames; bit ``n`` is guest frame number ``n``.

    ``bits`` is little endian, as in Xen's log-dirty bitmap: bit ``n & 7`` of byte ``n >> 3``
    (``xc_logdirty_control`` with XEN_DOMCTL_SHADOW_OP_CLEAN). Its length is the number of frames.
    """

    __slots__ = ("bits",)

    def __init__(self, bits: bitarray) -> None:
        self.bits = bits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DirtyBitmap) and self.bits == other.bits

    __hash__ = None  # type: ignore[assignment]  # it changes in place

    def __repr__(self) -> str:
        return f"DirtyBitmap({self.count} of {self.frames} frames)"

    @classmethod
    def empty(cls, frames: int) -> Self:
        """Return a bitmap of ``frames`` clean frames."""
        bits = bitarray(frames, endian="little")
        bits.setall(0)
        return cls(bits)

    @classmethod
    def from_bytes(cls, data: bytes, frames: int) -> Self:
        """Read a bitmap of ``frames`` bits; bits of the last byte beyond it are cut off.

        Raises ValueError when ``data`` is not exactly as long as that many bits need.
        """
        needed = (frames + 7) // 8
        if len(data) != needed:
            raise ValueError(f"A dirty bitmap of {frames} frames has {needed} bytes, not {len(data)}.")
        bits = bitarray(endian="little")
        bits.frombytes(data)
        del bits[frames:]
        return cls(bits)

    @classmethod
    def from_gfns(cls, gfns: Iterable[int], frames: int) -> Self:
        """Return a bitmap of ``frames`` with these dirty. Raises IndexError when one is not below ``frames``."""
        bitmap = cls.empty(frames)
        bitmap.bits[list(gfns)] = 1
        return bitmap

    @property
    def frames(self) -> int:
        """The number of guest frames the bitmap speaks about."""
        return len(self.bits)

    @property
    def count(self) -> int:
        """The number of dirty frames."""
        return self.bits.count()

    def to_bytes(self) -> bytes:
        """Return the bitmap as Xen writes it, padded with zero bits to a whole byte."""
        return self.bits.tobytes()

    def mark(self, gfn: int) -> None:
        """Make one frame dirty."""
        self.bits[gfn] = 1

    def has(self, gfn: int) -> bool:
        """Whether a frame is dirty; one that the bitmap does not speak about is not."""
        return gfn < self.frames and bool(self.bits[gfn])

    def copy(self) -> DirtyBitmap:
        """Return a bitmap of its own, whatever happens to this one's memory."""
        return DirtyBitmap(self.bits.copy())

    def forget(self, gfns: Iterable[int]) -> None:
        """Make frames clean; those beyond the end are clean already."""
        for gfn in gfns:
            if gfn < self.frames:
                self.bits[gfn] = 0

    def unite(self, other: DirtyBitmap) -> None:
        """Add the dirty frames of ``other``, in place unless it has one beyond our end: then this one grows.

        The sizes may differ by right: each side asks its own hypervisor anew before every clean.
        """
        if other.frames > self.frames and other.bits.find(1, self.frames) >= 0:
            self.bits = self.bits + bitarray(
                other.frames - self.frames, endian="little"
            )  # zeros; a buffer cannot grow
        common = min(self.frames, other.frames)
        if common == self.frames == other.frames:
            self.bits |= other.bits
        else:
            self.bits[:common] |= other.bits[:common]

    def gfns(self) -> array[int]:
        """Return the dirty frames' numbers, ascending, as an array of u64 (8 bytes a frame)."""
        return array("Q", self.bits.search(1))
