"""Records of a checkpoint, kept back until all of them have come. Nothing is applied from here before that.

What a checkpoint may take is bounded by the guest: each of its frames once, 9 bytes each in memory and their pages in a
file, and MAX_SMALL_BYTES of other records.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator
from functools import cached_property
from typing import IO

from colo_helper.helper.errors import HelperError
from colo_helper.helper.fds import Fd
from colo_helper.stream.libxc import (
    MAX_BATCH_PAGES,
    MAX_SMALL_RECORD_BYTES,
    PAGE_BYTES,
    PageEntries,
    StreamError,
    name_of,
)

#: Kept in memory up to here; beyond it in an unlinked file, because dom0 is small.
MEMORY_BYTES = 32 << 20
#: A checkpoint has one record each of a few kinds beside its pages, and only the CPUs' state is large.
MAX_SMALL_BYTES = 2 * MAX_SMALL_RECORD_BYTES
MAX_SMALL_RECORDS = 64
_COPY_BYTES = 1 << 20


class Spool:
    """The pages of one checkpoint and its other records, in the order they came; ``most_frames`` is the guest's bound."""

    def __init__(self, directory: str | os.PathLike[str], most_frames: int) -> None:
        self._directory = os.fspath(directory)
        self._most_frames = most_frames
        self._buffer = bytearray(_COPY_BYTES)
        self._gfns = array("Q")
        self._types = bytearray()
        self._content = 0
        self.small: list[tuple[int, bytes]] = []

    @cached_property
    def _file(self) -> IO[bytes]:
        """Where the pages are; made for the first of them, because most restores never keep any."""
        import tempfile  # noqa: PLC0415  (start-up counts in a slow dom0)

        return tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES, dir=self._directory)

    def keep(self, kind: int, body: bytes) -> None:
        """Keep a record that is not pages; raises StreamError when no checkpoint has so many."""
        kept = sum(len(other) for _, other in self.small)
        if len(self.small) >= MAX_SMALL_RECORDS or kept + len(body) > MAX_SMALL_BYTES:
            raise StreamError(
                f"{name_of(kind)} is too much: the checkpoint has {len(self.small)} records of {kept} bytes beside its pages."
            )
        self.small.append((kind, body))

    def take_pages(self, entries: PageEntries, stream: Fd) -> None:
        """Read the pages of a record from the stream and keep them.

        Raises HelperError when there is no room, StreamError when the checkpoint names more frames than the guest has.
        """
        if len(self._gfns) + len(entries.gfns) > self._most_frames:
            raise StreamError(
                f"A checkpoint names more than {self._most_frames} frames, which is all that the domain can have."
            )
        content = len(entries.content_gfns)
        left = content * PAGE_BYTES
        with memoryview(self._buffer) as view:
            while left:
                piece = view[: min(left, _COPY_BYTES)]
                stream.read_into(piece)
                try:
                    self._file.write(piece)
                except OSError as error:
                    raise HelperError(
                        f"A checkpoint of more than {self._content * PAGE_BYTES} bytes cannot be kept in "
                        f"{self._directory}: {error.strerror}; make room there.",
                        error.errno or errno.EIO,
                    ) from error
                left -= len(piece)
        self._content += content
        self._gfns.extend(entries.gfns)
        self._types += entries.types

    def pages(self) -> Iterator[PageEntries]:
        """Yield the frames in order, a batch at a time; ``read_into`` gives the content of the one yielded last."""
        offset = 0
        for start in range(0, len(self._gfns), MAX_BATCH_PAGES):
            end = start + MAX_BATCH_PAGES
            entries = PageEntries(self._gfns[start:end], bytes(self._types[start:end]))
            self._file.seek(offset)
            yield entries
            offset += len(entries.content_gfns) * PAGE_BYTES

    def read_into(self, view: memoryview) -> None:
        """Fill ``view`` with the next bytes of the batch yielded last."""
        done = 0
        while done < len(view):
            try:
                got = self._file.readinto(view[done:])  # type: ignore[attr-defined]
            except OSError as error:
                raise HelperError(
                    f"The checkpoint that was kept in {self._directory} cannot be read back: {error.strerror}.",
                    error.errno or errno.EIO,
                ) from error
            if not got:
                raise HelperError(
                    f"The checkpoint that was kept in {self._directory} is shorter than it was."
                )
            done += got

    def page_count(self) -> int:
        """Return how many pages with content are kept."""
        return self._content

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self.close()
        self._gfns, self._types, self._content = array("Q"), bytearray(), 0
        self.small.clear()

    def close(self) -> None:
        """Forget the pages."""
        if "_file" in self.__dict__:
            self._file.close()
            del self._file
