"""Comparing two copies of a guest's memory by a hash per page."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

PAGE_BYTES = 4096
#: Bytes of one page's hash. With 2**22 pages compared, the chance that any differing page goes unseen is
#: below 2**-42.
HASH_BYTES = 8


def page_hash(page: bytes | memoryview) -> bytes:
    """Return the 8-byte blake2b hash of one 4 KiB page."""
    return blake2b(page, digest_size=HASH_BYTES).digest()


@dataclass(slots=True)
class HashSet:
    """Hashes of the present frames of a window of guest memory, ascending by frame number.

    ``gfns`` has one u64 a frame, ``hashes`` HASH_BYTES bytes a frame in the same order.
    """

    gfns: array[int] = field(default_factory=lambda: array("Q"))
    hashes: bytearray = field(default_factory=bytearray)

    def add(self, gfn: int, page: bytes | memoryview) -> None:
        """Hash one page; frames must come in ascending order."""
        self.gfns.append(gfn)
        self.hashes += page_hash(page)

    def __len__(self) -> int:
        return len(self.gfns)

    def pack(self) -> tuple[int, bytes, bytes]:
        """Return (bytes per frame number: 4 or 8, the numbers little endian, the hashes)."""
        width, code = (4, "I") if not self.gfns or self.gfns[-1] < 1 << 32 else (8, "Q")
        numbers = array(code, self.gfns)
        if sys.byteorder == "big":
            numbers.byteswap()
        return width, numbers.tobytes(), bytes(self.hashes)

    @classmethod
    def unpack(cls, width: int, numbers: bytes, hashes: bytes) -> HashSet:
        """Read what ``pack`` wrote. Raises ValueError when it is not well-formed."""
        if width not in (4, 8) or len(numbers) % width:
            raise ValueError(f"A set of page hashes came with frame numbers of {width} bytes.")
        gfns = array("I" if width == 4 else "Q")
        gfns.frombytes(numbers)
        if sys.byteorder == "big":
            gfns.byteswap()
        if len(hashes) != len(gfns) * HASH_BYTES:
            raise ValueError(f"{len(gfns)} frame numbers came with {len(hashes)} bytes of hashes.")
        if any(low >= high for low, high in pairwise(gfns)):
            raise ValueError("The frame numbers of a set of page hashes are not ascending.")
        return cls(array("Q", gfns), bytearray(hashes))

    def items(self) -> Iterable[tuple[int, bytes]]:
        """Yield (gfn, hash)."""
        for index, gfn in enumerate(self.gfns):
            yield gfn, bytes(self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES])


def differing_gfns(ours: HashSet, theirs: HashSet) -> list[int]:
    """Return the frames that are not the same on both sides, ascending: other content, or only on one."""
    if ours.gfns == theirs.gfns and ours.hashes == theirs.hashes:
        return []
    mine, other = dict(ours.items()), dict(theirs.items())
    return sorted(gfn for gfn in mine.keys() | other.keys() if mine.get(gfn) != other.get(gfn))
