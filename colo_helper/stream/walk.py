"""A walk through a whole stream, record by record, over any source of bytes: for looking at streams and for tests.

The walker asks for exactly the bytes that it has seen announced, never for more, so that whatever follows stays where
it is. It keeps the order that Xen's own writers keep and its own readers rely on::

    image        header, policies, STATIC_DATA_END (version 3), then parts
    part         PAGE_DATA*, TSC, HVM_CONTEXT, HVM_PARAMS, and CHECKPOINT or END
    CHECKPOINT   libxl's records up to CHECKPOINT_END (in COLO then CHECKPOINT_STATE), and the next part of the image
    END          libxl's records up to its END

The largest single read is LARGEST_READ_BYTES, whatever a stream claims.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from enum import Enum, unique
from typing import NamedTuple

from colo_helper.stream import libxc, libxl
from colo_helper.stream.libxc import PAGE_BYTES, RECORD_HEADER_BYTES, RecordType, StreamError
from colo_helper.stream.libxl import CheckpointState, LibxlRecordType

#: Returns exactly so many bytes, or raises EOFError.
ReadExact = Callable[[int], bytes]

_PIECE_PAGES = 256
LARGEST_READ_BYTES = libxl.MAX_EMULATOR_CONTEXT_BYTES + RECORD_HEADER_BYTES

_KNOWN = frozenset(RecordType)
_EMPTY = frozenset((RecordType.END, RecordType.VERIFY, RecordType.CHECKPOINT, RecordType.STATIC_DATA_END))
_STATIC = frozenset((RecordType.X86_CPUID_POLICY, RecordType.X86_MSR_POLICY))
_BACK_CHANNEL = frozenset((RecordType.CHECKPOINT_DIRTY_PFN_LIST, RecordType.COLO_DIRTY_BITMAP))


@unique
class Level(Enum):
    """Who wrote something."""

    XL = "xl"
    LIBXL = "libxl"
    LIBXC = "libxc"


class Event(NamedTuple):
    """One header or record. ``kind`` is -1 for a header; PAGE_DATA has ``gfns`` and ``types`` instead of a body."""

    level: Level
    kind: int
    body: bytes = b""
    gfns: array[int] = array("Q")
    types: bytes = b""


class Pages(NamedTuple):
    """Some of the pages of the PAGE_DATA before: frame numbers, and 4,096 bytes for each."""

    gfns: array[int]
    data: bytes


HEADER = -1


def walk_xl(read_exact: ReadExact, *, colo: bool = False) -> Iterator[Event | Pages]:
    """Walk through what xl writes: its preamble, then libxl's stream. Raises StreamError, EOFError."""
    preamble = libxl.parse_preamble(read_exact(libxl.PREAMBLE_BYTES))
    config = libxl.parse_optional_data(read_exact(preamble.optional_bytes))
    yield Event(Level.XL, HEADER, config)
    yield from walk_libxl(read_exact, colo=colo)


def walk_libxl(read_exact: ReadExact, *, colo: bool = False) -> Iterator[Event | Pages]:
    """Walk through libxl's stream and the image in it. Raises StreamError, EOFError."""
    libxl.parse_header(read_exact(libxl.HEADER_BYTES))
    yield Event(Level.LIBXL, HEADER)
    had_image = False
    while True:
        event = _libxl_record(read_exact)
        yield event
        if event.kind == LibxlRecordType.END:
            if not had_image:
                raise StreamError("libxl's stream ends without an image.")
            return
        if event.kind == LibxlRecordType.LIBXC_CONTEXT:
            if had_image:
                raise StreamError("libxl's stream has a second image.")
            had_image = True
            yield from walk_image(read_exact, colo=colo)
        elif event.kind in (LibxlRecordType.CHECKPOINT_END, LibxlRecordType.CHECKPOINT_STATE):
            raise StreamError(f"{libxl.name_of(event.kind)} came outside of a checkpoint.")
        elif not had_image:
            raise StreamError(f"{libxl.name_of(event.kind)} came before the image.")


def walk_image(read_exact: ReadExact, *, colo: bool = False) -> Iterator[Event | Pages]:
    """Walk through an image up to its END, with libxl's records between its checkpoints. Raises StreamError, EOFError."""
    version = libxc.parse_image_header(read_exact(libxc.IMAGE_HEADER_BYTES))
    domain = libxc.parse_domain_header(read_exact(libxc.DOMAIN_HEADER_BYTES))
    if domain.guest_type != libxc.TYPE_HVM:
        raise StreamError("The image is of a PV guest, whose records are not read here.")
    yield Event(Level.LIBXC, HEADER)
    order = _Order(version)
    while True:
        kind, length = libxc.parse_record_header(read_exact(RECORD_HEADER_BYTES))
        order.check(kind, length)
        if kind == RecordType.PAGE_DATA:
            yield from _pages(read_exact, length)
            continue
        yield Event(Level.LIBXC, kind, _body(read_exact, length, libxc.name_of(kind)))
        if kind == RecordType.END:
            return
        if kind == RecordType.CHECKPOINT:
            yield from _between_checkpoints(read_exact, colo)


def _between_checkpoints(read_exact: ReadExact, colo: bool) -> Iterator[Event]:
    while True:
        event = _libxl_record(read_exact)
        if event.kind in (
            LibxlRecordType.END,
            LibxlRecordType.LIBXC_CONTEXT,
            LibxlRecordType.CHECKPOINT_STATE,
        ):
            raise StreamError(f"{libxl.name_of(event.kind)} came in the middle of a checkpoint.")
        yield event
        if event.kind == LibxlRecordType.CHECKPOINT_END:
            break
    if colo:
        event = _libxl_record(read_exact)
        if event.kind != LibxlRecordType.CHECKPOINT_STATE:
            raise StreamError(
                f"{libxl.name_of(event.kind)} came where the next COLO checkpoint should be announced."
            )
        if libxl.parse_checkpoint_state(event.body) is not CheckpointState.NEW:
            raise StreamError("The primary announced a state that only a secondary has.")
        yield event


def _libxl_record(read_exact: ReadExact) -> Event:
    kind, length = libxl.parse_record_header(read_exact(RECORD_HEADER_BYTES))
    body = _body(read_exact, length, libxl.name_of(kind))
    if kind == LibxlRecordType.EMULATOR_XENSTORE_DATA:
        libxl.parse_xenstore_data(body)
    elif kind == LibxlRecordType.EMULATOR_CONTEXT:
        libxl.parse_emulator_context(body)
    return Event(Level.LIBXL, kind, body)


def _body(read_exact: ReadExact, length: int, name: str) -> bytes:
    body = read_exact(length + libxc.padding(length))
    if any(body[length:]):
        raise StreamError(f"{name} is not padded with zeros: the next record cannot be where it should.")
    return body[:length]


def _pages(read_exact: ReadExact, length: int) -> Iterator[Event | Pages]:
    count = libxc.parse_page_count(read_exact(8), length)
    entries = libxc.parse_page_entries(read_exact(8 * count), length)
    yield Event(Level.LIBXC, RecordType.PAGE_DATA, gfns=entries.gfns, types=entries.types)
    content = entries.content_gfns
    for start in range(0, len(content), _PIECE_PAGES):
        piece = content[start : start + _PIECE_PAGES]
        yield Pages(piece, read_exact(PAGE_BYTES * len(piece)))


class _Order:
    """What an image has had so far, and so what may come."""

    def __init__(self, version: int) -> None:
        self._static = version >= libxc.VERSION  # until STATIC_DATA_END
        self._in_part = False
        self._had_context = False
        self._parts = 0

    def check(self, kind: int, length: int) -> None:
        """Raise StreamError when a record may not come here, or cannot have this length."""
        name = libxc.name_of(kind)
        if kind in _BACK_CHANNEL:
            raise StreamError(f"{name} belongs on the back channel.")
        if libxc.is_optional(kind):
            return
        if kind not in _KNOWN:
            raise StreamError(f"{name} is mandatory and unknown.")
        if kind in _EMPTY and length:
            raise StreamError(f"{name} has {length} bytes; it has none.")
        if kind in _STATIC:
            libxc.check_policy(kind, length)
        if self._static:
            if kind == RecordType.STATIC_DATA_END:
                self._static = False
            elif kind not in _STATIC:
                raise StreamError(f"{name} came before the end of the static data.")
            return
        if kind == RecordType.STATIC_DATA_END or (kind in _STATIC and self._in_part):
            raise StreamError(f"{name} came after the static data.")
        self._follow(kind, name)

    def _follow(self, kind: int, name: str) -> None:
        if kind not in (RecordType.CHECKPOINT, RecordType.END):
            self._in_part = True
            self._had_context |= kind == RecordType.HVM_CONTEXT
            return
        ends_the_series = kind == RecordType.END and self._parts > 0 and not self._in_part
        if not self._had_context and not ends_the_series:
            raise StreamError(f"{name} came before the state of the CPUs.")
        self._in_part = self._had_context = False
        self._parts += 1
