"""Records of a checkpoint, kept back until all of them have come. Nothing is applied from here before that."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from colo_helper.helper.errors import HelperError
from colo_helper.helper.fds import Fd
from colo_helper.stream.libxc import PAGE_BYTES, PageEntries

#: Kept in memory up to here; beyond it in an unlinked file, because dom0 is small.
MEMORY_BYTES = 32 << 20
_COPY_BYTES = 1 << 20


class SpooledPages(NamedTuple):
    """One PAGE_DATA record: its entries, and where its pages lie in the spool."""

    entries: PageEntries
    offset: int


class Spool:
    """The pages of one checkpoint and its other records, in the order they came."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._buffer = bytearray(_COPY_BYTES)
        self._file = self._new_file()
        self._pages: list[SpooledPages] = []
        self.small: list[tuple[int, bytes]] = []

    def _new_file(self) -> tempfile.SpooledTemporaryFile[bytes]:
        return tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES, dir=str(self._directory))

    def take_pages(self, entries: PageEntries, stream: Fd) -> None:
        """Read the pages of a record from the stream and keep them; raises HelperError when there is no room."""
        offset = self._file.tell()
        left = len(entries.content_gfns) * PAGE_BYTES
        with memoryview(self._buffer) as view:
            while left:
                piece = view[: min(left, _COPY_BYTES)]
                stream.read_into(piece)
                try:
                    self._file.write(piece)
                except OSError as error:
                    raise HelperError(
                        f"A checkpoint of more than {offset} bytes cannot be kept in {self._directory}: "
                        f"{error.strerror}; make room there.",
                        error.errno or errno.EIO,
                    ) from error
                left -= len(piece)
        self._pages.append(SpooledPages(entries, offset))

    def pages(self) -> Iterator[PageEntries]:
        """Yield the records' entries in order; ``read_into`` gives the content of the one yielded last."""
        for spooled in self._pages:
            self._file.seek(spooled.offset)
            yield spooled.entries

    def read_into(self, view: memoryview) -> None:
        """Fill ``view`` with the next bytes of the record yielded last."""
        done = 0
        while done < len(view):
            got = self._file.readinto(view[done:])
            if not got:
                raise HelperError("The kept checkpoint is shorter than it was.")
            done += got

    def page_count(self) -> int:
        """Return how many pages with content are kept."""
        return sum(len(spooled.entries.content_gfns) for spooled in self._pages)

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._file.close()
        self._file = self._new_file()
        self._pages.clear()
        self.small.clear()

    def close(self) -> None:
        """Forget everything for good."""
        self._file.close()
