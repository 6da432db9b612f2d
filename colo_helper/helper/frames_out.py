"""Frames on their way out: typed, mapped and written to the stream straight from the guest's memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from time import perf_counter

from colo_helper.helper.errors import HelperError
from colo_helper.helper.fds import Fd
from colo_helper.hypervisor.frames import search_order
from colo_helper.hypervisor.interface import Domain
from colo_helper.stream.libxc import MAX_BATCH_PAGES, NORMAL, NOT_PRESENT, pack_page_head

#: Frames asked about at a time in the walk over everything; a multiple of a superpage, so that the other side sees
#: whole ones, and of what Xen answers at once.
_WINDOW_FRAMES = 16 * MAX_BATCH_PAGES


class FrameWriter:
    """Sends frames of a domain; counts them and their bytes, and where the time goes."""

    def __init__(self, domain: Domain, stream: Fd) -> None:
        self._domain = domain
        self._stream = stream
        self.pages = 0
        self.bytes = 0
        #: Seconds in the hypervisor (frame types, mapping) and in writes to the stream.
        self.types_s = self.map_s = self.write_s = 0.0

    def summary(self) -> str:
        """Say what was sent and where the time went."""
        return (
            f"{self.pages} pages, {self.bytes} bytes sent: {self.types_s:.2f} s for frame types, {self.map_s:.2f} s for "
            f"mapping, {self.write_s:.2f} s for writing."
        )

    def send_all(self, on_progress: Callable[[int, int], None]) -> None:
        """Send every frame there is, by a walk that ends when as many were met as the hypervisor counts.

        ``on_progress`` gets (pages sent, pages of the domain). Holes are nearly all of a small guest's frames; they are
        neither sent nor, mostly, asked for.
        """
        domain = self._domain
        found = 0
        for window in search_order(domain.nr_frames(), domain.info().pages, _WINDOW_FRAMES):
            for start in range(window.start, window.start + window.length, MAX_BATCH_PAGES):
                end = min(start + MAX_BATCH_PAGES, window.start + window.length)
                found += self._send_batch(array("Q", range(start, end)), tell_absent=False)
            pages = domain.info().pages
            on_progress(found, pages)
            if found >= pages:
                return

    def send(self, gfns: array[int]) -> None:
        """Send these frames, and of those that are not there that they are not."""
        for start in range(0, len(gfns), MAX_BATCH_PAGES):
            self._send_batch(gfns[start : start + MAX_BATCH_PAGES], tell_absent=True)

    def _send_batch(self, gfns: array[int], *, tell_absent: bool) -> int:
        """Send one batch; returns how many of its frames have content."""
        types = self._types(gfns)
        while True:
            content = types.count(NORMAL)
            if content == 0 and not tell_absent:
                return 0
            named, named_types = (gfns, types) if tell_absent else _present(gfns, types)
            with_content = gfns if content == len(gfns) else _normal(gfns, types)
            failed = self._write(named, named_types, with_content)
            if not failed:
                return content
            types = self._look_again(gfns, failed)

    def _write(self, named: array[int], types: bytes, with_content: array[int]) -> list[int]:
        """Write one record; returns the frames that could not be mapped, and then nothing was written."""
        if not with_content:
            self.bytes += self._stream.write(pack_page_head(named, types))
            return []
        started = perf_counter()
        written_s = 0.0
        with self._domain.map_frames(with_content, writable=False) as mapped:
            if mapped.failed:
                return mapped.failed
            before = perf_counter()
            self.bytes += self._stream.write(pack_page_head(named, types), mapped.view)
            written_s = perf_counter() - before
        self.write_s += written_s
        self.map_s += perf_counter() - started - written_s
        self.pages += len(with_content)
        return []

    def _types(self, gfns: array[int]) -> bytes:
        started = perf_counter()
        types = self._domain.frame_types(gfns)
        self.types_s += perf_counter() - started
        return types

    def _look_again(self, gfns: array[int], failed: list[int]) -> bytes:
        """A running guest may give a frame back between our look and our map; anything else is an error."""
        again = self._types(gfns)
        lost = set(failed)
        for gfn, kind in zip(gfns, again, strict=True):
            if gfn in lost and kind == NORMAL:
                raise HelperError(
                    f"Frame {gfn:#x} of domain {self._domain.domid} is there but cannot be mapped."
                )
        return again


def _present(gfns: array[int], types: bytes) -> tuple[array[int], bytes]:
    if NOT_PRESENT not in types:
        return gfns, types
    kept = [(gfn, kind) for gfn, kind in zip(gfns, types, strict=True) if kind != NOT_PRESENT]
    return array("Q", (gfn for gfn, _ in kept)), bytes(kind for _, kind in kept)


def _normal(gfns: array[int], types: bytes) -> array[int]:
    return array("Q", _normals(gfns, types))


def _normals(gfns: array[int], types: bytes) -> Iterator[int]:
    return (gfn for gfn, kind in zip(gfns, types, strict=True) if kind == NORMAL)
