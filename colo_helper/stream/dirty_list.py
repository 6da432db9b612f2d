"""The back channel as upstream writes it: CHECKPOINT_DIRTY_PFN_LIST, 8 bytes for each frame that the secondary dirtied.

Xen 4.14 to 4.17 write one record: type 0x0f, length 8 n, then n frame numbers, which stock writers list ascending.
Since 4.18 (commit efe8de1f91) the stock writer puts 16 bytes instead of 8 before the frames, the second 8 of them
zero, under the same length: every frame is shifted by one place and the last one stands behind the record, where
nobody expects it. ::

    sound     0f 8n | p0 p1 .. p(n-1)
    shifted   0f 8n | 0  p0 .. p(n-2) | p(n-1)          n = 0:  0f 0 | 0

A list that begins with frame 0 may be either, and so may an empty one; which, only 8 bytes that follow at once can
tell. The reader that waits for them belongs to the helper.
"""

from __future__ import annotations

import sys
from array import array
from enum import Enum, unique

from colo_helper.stream.libxc import (
    MAX_RECORD_BYTES,
    RecordType,
    StreamError,
    record_header,
)

ENTRY_BYTES = 8


@unique
class ListForm(Enum):
    """How the peer writes its lists: not known yet, as the format says, or shifted as stock 4.18 and later do."""

    UNKNOWN = "unknown"
    SOUND = "sound"
    SHIFTED = "shifted"


def max_list_bytes(size_frames: int) -> int:
    """Return the most that the body of a list for a guest of ``size_frames`` may have: each frame once."""
    return min(ENTRY_BYTES * size_frames, MAX_RECORD_BYTES)


def check_list_length(length: int, size_frames: int) -> None:
    """Raise StreamError when the body of a list for a guest of ``size_frames`` cannot have ``length`` bytes."""
    if length % ENTRY_BYTES:
        raise StreamError(f"The list of dirty frames has {length} bytes, not a multiple of {ENTRY_BYTES}.")
    if length > max_list_bytes(size_frames):
        raise StreamError(
            f"The list of dirty frames has {length // ENTRY_BYTES} entries; the guest has {size_frames} frames."
        )


def pack_dirty_list(gfns: array[int]) -> bytes:
    """Return the whole record. Raises StreamError beyond 128 MiB, which is all of a guest of 64 GiB."""
    return (
        record_header(RecordType.CHECKPOINT_DIRTY_PFN_LIST, ENTRY_BYTES * len(gfns))
        + _swapped(gfns).tobytes()
    )


def parse_dirty_list(body: bytes | memoryview, size_frames: int) -> array[int]:
    """Return the frames of a list; raises StreamError when one is not below ``size_frames`` or bytes are left over."""
    check_list_length(len(body), size_frames)
    gfns = array("Q")
    gfns.frombytes(body)
    gfns = _swapped(gfns)
    if gfns and max(gfns) >= size_frames:
        raise StreamError(
            f"The list of dirty frames names frame {max(gfns):#x}; the guest ends at {size_frames:#x}."
        )
    return gfns


def first_list_is_suspicious(entries: array[int]) -> bool:
    """Tell whether a list may be a shifted one: only then can 8 bytes of it still be under way."""
    return not entries or entries[0] == 0


def mend_shifted(entries: array[int], tail: int) -> array[int]:
    """Return what a shifted list means: the entries without the zero before them, and ``tail`` at their end.

    ``tail`` is what the 8 bytes behind the record say; nobody has held it against the guest's size yet. Raises
    StreamError when the two do not belong together: then the list was sound, or the stream is broken.
    """
    if not entries:
        if tail == 0:
            return array("Q")
        raise StreamError(f"An empty list of dirty frames is followed by {tail:#x}, which is no part of it.")
    if entries[0] != 0:
        raise StreamError(f"A list of dirty frames beginning with {entries[0]:#x} is not shifted.")
    if len(entries) > 1 and tail <= entries[-1]:
        raise StreamError(
            f"A shifted list of dirty frames goes back from {entries[-1]:#x} to {tail:#x}: it is something else."
        )
    mended = entries[1:]
    mended.append(tail)
    return mended


def _swapped(gfns: array[int]) -> array[int]:
    """Return the numbers between this host's byte order and the wire's."""
    if sys.byteorder == "little":
        return gfns
    other = gfns[:]
    other.byteswap()
    return other
