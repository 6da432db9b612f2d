"""Pages of a checkpoint on their way: chosen, batched, packed; kept back on the secondary until all have come."""

from __future__ import annotations

import struct
import tempfile
from array import array
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import zstandard

from colo_helper.hypervisor.frames import MAP_BATCH, batches, present, read_frames, write_frames
from colo_helper.hypervisor.interface import PAGE_BYTES, Domain
from colo_helper.memory.bitmap import DirtyBitmap

#: Kept in memory up to here; beyond it in an unlinked file under the VM's state directory, because dom0 is small.
SPOOL_MEMORY_BYTES = 32 << 20
_LEVEL = 1
_RECORD = struct.Struct("<II?")


class PagesError(ValueError):
    """Pages from the peer that must not be used; the text says why."""


def chosen(domain: Domain, dirty: DirtyBitmap, host_frames: Container[int]) -> array[int]:
    """Return the dirty frames to send: those that exist and do not belong to the host (rings)."""
    gfns = array("Q", (gfn for gfn in dirty.gfns() if gfn not in host_frames))
    return present(domain, gfns)


def pack(data: bytes) -> tuple[bool, bytes]:
    """Return (packed?, bytes): zstd at its fastest level when that is smaller."""
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return (True, packed) if len(packed) < len(data) else (False, data)


def unpack(packed: bool, data: bytes, length: int) -> bytes:
    """Return exactly ``length`` bytes; raises PagesError. Never takes more memory than that."""
    if packed:
        try:
            if zstandard.frame_content_size(data) != length:
                raise PagesError(f"Packed data do not unpack to {length} bytes.")
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=length)
        except zstandard.ZstdError as error:
            raise PagesError(f"Packed data cannot be unpacked: {error}.") from error
    if len(data) != length:
        raise PagesError(f"{len(data)} bytes came instead of {length}.")
    return data


def outgoing(domain: Domain, gfns: array[int]) -> Iterator[tuple[dict[str, Any], tuple[bytes, bytes]]]:
    """Yield head and parts of one PAGES frame per batch; the guest must stand still."""
    for batch in batches(gfns):
        packed, data = pack(read_frames(domain, batch))
        yield {"packed": packed}, (batch.tobytes(), data)


class Spool:
    """Batches of pages in the order they came. Nothing is applied from here before all are in."""

    def __init__(self, directory: Path, frame_limit: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (close() closes it)
            max_size=SPOOL_MEMORY_BYTES, dir=str(directory)
        )
        self._frame_limit = frame_limit
        self.batches = 0
        self.pages = 0

    def add(self, head: dict[str, Any], parts: tuple[bytes, ...]) -> None:
        """Check one PAGES frame and keep it; raises PagesError."""
        if len(parts) != 2 or not isinstance(head.get("packed"), bool):
            raise PagesError("A batch of pages is not complete.")
        numbers, data = parts
        gfns = _numbers(numbers)
        if not 0 < len(gfns) <= MAP_BATCH:
            raise PagesError(f"A batch has {len(gfns)} pages; 1 to {MAP_BATCH} are allowed.")
        if max(gfns) >= self._frame_limit:
            raise PagesError(f"A batch names frame {max(gfns):#x}, the copy ends at {self._frame_limit:#x}.")
        if len(data) > len(gfns) * PAGE_BYTES:
            raise PagesError(f"A batch of {len(gfns)} pages has {len(data)} bytes.")
        self._file.write(_RECORD.pack(len(gfns), len(data), head["packed"]))
        self._file.write(numbers)
        self._file.write(data)
        self.batches += 1
        self.pages += len(gfns)

    def check_complete(self, batches_sent: object, pages_sent: object) -> None:
        """Raise PagesError unless exactly so many batches and pages have come."""
        if (self.batches, self.pages) != (batches_sent, pages_sent):
            raise PagesError(
                f"{self.batches} batches with {self.pages} pages came, {batches_sent} with {pages_sent} were sent."
            )

    def apply(self, domain: Domain) -> None:
        """Write every page into the domain; raises HypervisorError and PagesError."""
        self._file.seek(0)
        for _ in range(self.batches):
            count, length, packed = _RECORD.unpack(self._file.read(_RECORD.size))
            gfns = _numbers(self._file.read(8 * count))
            write_frames(domain, gfns, unpack(packed, self._file.read(length), count * PAGE_BYTES))

    def close(self) -> None:
        """Forget everything."""
        self._file.close()


def _numbers(data: bytes) -> array[int]:
    gfns = array("Q")
    if len(data) % gfns.itemsize:
        raise PagesError(f"Frame numbers of {len(data)} bytes are not whole.")
    gfns.frombytes(data)
    return gfns
