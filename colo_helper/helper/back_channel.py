"""B on the back channel: the restorer's dirty frames, on their way to the saver.

Between two of ours it is one packed bitmap, if the saver has offered to read that. Otherwise it is upstream's list, which
stock helpers of Xen 4.18 and later write wrongly: 8 zero bytes too many behind the header, so that the last frame number
stands behind the record. The first list of a session tells which of the two the peer writes.
"""

from __future__ import annotations

from colo_helper.helper.errors import HelperError
from colo_helper.helper.fds import Fd
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import EncodingError, max_packed_bytes, pack_bitmap, unpack_bitmap
from colo_helper.stream import libxc
from colo_helper.stream.dirty_list import (
    ENTRY_BYTES,
    ListForm,
    check_list_length,
    first_list_is_suspicious,
    mend_shifted,
    pack_dirty_list,
    parse_dirty_list,
)
from colo_helper.stream.libxc import RECORD_HEADER_BYTES, RecordType, StreamError

#: How long the tail of a suspicious first list may take to come, in seconds: it was written together with the rest.
_TAIL_S = 2.0


class DirtyReader:
    """The saver's end. ``form`` is what the peer's lists were found to be."""

    def __init__(self, fd: Fd) -> None:
        self._fd = fd
        self.form = ListForm.UNKNOWN

    def read(self, frame_limit: int) -> DirtyBitmap:
        """Return B; no frame at or beyond ``frame_limit`` is in it. Raises HelperError with what is wrong."""
        try:
            kind, length = libxc.parse_record_header(self._fd.read_exact(RECORD_HEADER_BYTES))
            if kind == RecordType.COLO_DIRTY_BITMAP:
                return self._bitmap(length, frame_limit)
            if kind == RecordType.CHECKPOINT_DIRTY_PFN_LIST:
                return self._list(length, frame_limit)
        except (StreamError, EncodingError) as error:
            raise HelperError(f"The secondary's dirty frames cannot be used: {error}") from error
        raise HelperError(f"{libxc.name_of(kind)} came on the back channel where the dirty frames were due.")

    def _bitmap(self, length: int, frame_limit: int) -> DirtyBitmap:
        most = max_packed_bytes(frame_limit)
        if length > most:
            raise EncodingError(
                f"{length} bytes were announced, {most} are the most for {frame_limit} frames."
            )
        body = self._fd.read_exact(length + libxc.padding(length))
        return unpack_bitmap(memoryview(body)[:length], frame_limit)

    def _list(self, length: int, frame_limit: int) -> DirtyBitmap:
        check_list_length(length, frame_limit)
        entries = parse_dirty_list(self._fd.read_exact(length), frame_limit)
        if self.form is ListForm.UNKNOWN:
            shifted = first_list_is_suspicious(entries) and self._fd.readable_within(_TAIL_S)
            self.form = ListForm.SHIFTED if shifted else ListForm.SOUND
        if self.form is ListForm.SHIFTED:
            tail = int.from_bytes(self._fd.read_exact(ENTRY_BYTES), "little")
            entries = parse_dirty_list(mend_shifted(entries, tail).tobytes(), frame_limit)
        return DirtyBitmap.from_gfns(entries, frame_limit)


class DirtyWriter:
    """The restorer's end; ``packed`` once the saver has offered to read our bitmap."""

    def __init__(self, fd: Fd) -> None:
        self._fd = fd
        self.packed = False

    def write(self, dirty: DirtyBitmap) -> int:
        """Send B; returns its bytes."""
        if self.packed:
            return self._fd.write(libxc.pack_record(RecordType.COLO_DIRTY_BITMAP, pack_bitmap(dirty)))
        return self._fd.write(pack_dirty_list(dirty.gfns()))
