"""The libxc image: headers and records of a guest's memory and CPU state.

Source of the format: Xen's docs/specs/libxc-migration-stream.pandoc, revision 3, and the order that Xen 4.17's own
writer keeps. The image header is big endian, everything after it is in the order that the header names; only little
endian is written and read here, as on every x86 host.

Nothing in this module does I/O. A reader takes exactly as many bytes as a header says and hands them in; every length,
count and type is checked here before memory is taken for it.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from enum import IntEnum, unique
from functools import cache
from itertools import compress
from typing import NamedTuple

PAGE_SHIFT = 12
PAGE_BYTES = 1 << PAGE_SHIFT

MARKER = (1 << 64) - 1
IDENT = 0x58454E46  # "XENF"
VERSION = 3
#: Revision 2 differs by having no STATIC_DATA_END; Xen 4.6 to 4.13 wrote it.
READABLE_VERSIONS = (2, 3)
OPTION_BIG_ENDIAN = 1 << 0

TYPE_PV = 1
#: HVM guests, and PVH guests, whose domain has the hvm flag.
TYPE_HVM = 2

IMAGE_HEADER_BYTES = 24
DOMAIN_HEADER_BYTES = 16
RECORD_HEADER_BYTES = 8
#: What a record's body may have (REC_LENGTH_MAX).
MAX_RECORD_BYTES = 128 << 20
#: Pages in one PAGE_DATA record of ours; Xen's own writer keeps the same limit.
MAX_BATCH_PAGES = 1024
#: Entries that a reader takes: every writer known stays at MAX_BATCH_PAGES, a record's length allows half of this.
MAX_RECORD_ENTRIES = 1 << 16
#: Bodies that are not pages are small: the HVM context of 128 vCPUs has less than a quarter of this.
MAX_SMALL_RECORD_BYTES = 4 << 20

#: Set in the types that a reader may skip when it does not know them.
OPTIONAL = 1 << 31

#: Frame types of a PAGE_DATA entry, bits 63..60 (XEN_DOMCTL_PFINFO_*).
NORMAL = 0x0
BROKEN = 0xD
ALLOCATE_ONLY = 0xE
NOT_PRESENT = 0xF
#: L1 to L4 page tables, and the same pinned: only PV guests have them, but they are pages with content.
_TABLES = frozenset((0x1, 0x2, 0x3, 0x4, 0x9, 0xA, 0xB, 0xC))
WITH_CONTENT = _TABLES | {NORMAL}
POPULATED = WITH_CONTENT | {ALLOCATE_ONLY}
_VALID = POPULATED | {BROKEN, NOT_PRESENT}
_TYPE_SHIFT = 60
_PFN_MASK = (1 << 52) - 1
_RESERVED_MASK = ((1 << 60) - 1) ^ _PFN_MASK

_IMAGE_HEADER = struct.Struct(">QIIHHI")
_DOMAIN_HEADER = struct.Struct("<IHHII")
_RECORD_HEADER = struct.Struct("<II")
_COUNT = struct.Struct("<II")
_TSC = struct.Struct("<IIQII")
_PARAM = struct.Struct("<QQ")
_OFFER = struct.Struct("<II")

CPUID_LEAF_BYTES = 24
MSR_ENTRY_BYTES = 16


class StreamError(ValueError):
    """What came is not a stream we can use; the text says where and why."""


@unique
class RecordType(IntEnum):
    """Records of an HVM or PVH guest, and ours. PV records have numbers of their own and are not read here."""

    END = 0x00
    PAGE_DATA = 0x01
    X86_TSC_INFO = 0x08
    HVM_CONTEXT = 0x09
    HVM_PARAMS = 0x0A
    TOOLSTACK = 0x0B
    VERIFY = 0x0D
    CHECKPOINT = 0x0E
    #: On the back channel only.
    CHECKPOINT_DIRTY_PFN_LIST = 0x0F
    STATIC_DATA_END = 0x10
    X86_CPUID_POLICY = 0x11
    X86_MSR_POLICY = 0x12
    #: Ours, optional: what the writer of a checkpointed stream understands on the back channel ("COL" and a number).
    COLO_OFFER = OPTIONAL | 0x434F4C
    #: Ours, on the back channel only, to a writer that offered it: a packed dirty bitmap (memory.encoding).
    COLO_DIRTY_BITMAP = OPTIONAL | 0x434F44


#: Records whose length follows from the guest's size; who reads them bounds them by it.
_LARGE = (RecordType.PAGE_DATA, RecordType.CHECKPOINT_DIRTY_PFN_LIST, RecordType.COLO_DIRTY_BITMAP)


class DomainHeader(NamedTuple):
    """What kind of guest follows, and the release of the Xen that saved it."""

    guest_type: int
    xen_major: int
    xen_minor: int


class TscInfo(NamedTuple):
    """How the guest's time stamp counter goes on: mode, frequency in kHz, ``elapsed_ns`` and how often it moved."""

    mode: int
    khz: int
    elapsed_ns: int
    incarnation: int


@cache
def _selector(kinds: frozenset[int]) -> bytes:
    """Return the table for bytes.translate that makes 1 of these types and 0 of the others."""
    return bytes(kind in kinds for kind in range(256))


class PageEntries(NamedTuple):
    """The checked entries of one PAGE_DATA record: frame numbers and their types (a byte each), in order."""

    gfns: array[int]
    types: bytes

    @property
    def content_gfns(self) -> array[int]:
        """The frames whose 4,096 bytes follow the entries, in order."""
        return self.of_types(WITH_CONTENT)

    @property
    def populated_gfns(self) -> array[int]:
        """The frames that must exist in the guest."""
        return self.of_types(POPULATED)

    def of_types(self, kinds: frozenset[int]) -> array[int]:
        """The frames of these types, in order."""
        wanted = self.types.translate(_selector(kinds))
        count = wanted.count(1)
        if count == len(wanted):  # all ordinary memory: nearly always
            return self.gfns
        return array("Q", compress(self.gfns, wanted) if count else ())


# ------------------------------------------------------------------------------------------------------- headers


def pack_image_header(version: int = VERSION) -> bytes:
    """Return the IMAGE_HEADER_BYTES that every image begins with."""
    return _IMAGE_HEADER.pack(MARKER, IDENT, version, 0, 0, 0)


def parse_image_header(data: bytes) -> int:
    """Return the revision of the image; raises StreamError."""
    marker, ident, version, options, _, _ = _IMAGE_HEADER.unpack(data)
    if marker != MARKER or ident != IDENT:
        raise StreamError("This is no libxc image: its marker is missing.")
    if version not in READABLE_VERSIONS:
        raise StreamError(f"The image is of revision {version}; 2 and 3 can be read.")
    if options & OPTION_BIG_ENDIAN:
        raise StreamError("The image is big endian; it cannot be of an x86 guest.")
    return int(version)


def pack_domain_header(header: DomainHeader) -> bytes:
    """Return the DOMAIN_HEADER_BYTES that follow the image header."""
    return _DOMAIN_HEADER.pack(header.guest_type, PAGE_SHIFT, 0, header.xen_major, header.xen_minor)


def parse_domain_header(data: bytes) -> DomainHeader:
    """Read the domain header; raises StreamError."""
    guest_type, page_shift, _, major, minor = _DOMAIN_HEADER.unpack(data)
    if page_shift != PAGE_SHIFT:
        raise StreamError(f"The image has pages of 2^{page_shift} bytes; an x86 guest's have 2^{PAGE_SHIFT}.")
    if guest_type not in (TYPE_PV, TYPE_HVM):
        raise StreamError(f"The image is of a guest of the unknown type {guest_type}.")
    return DomainHeader(guest_type, major, minor)


# ------------------------------------------------------------------------------------------------------- records


def padding(length: int) -> int:
    """Return how many zero bytes follow a body of ``length``: records are padded to 8."""
    return -length % 8


def record_header(kind: int, length: int) -> bytes:
    """Return the RECORD_HEADER_BYTES of a record; raises StreamError when the body is too long for one."""
    if length + padding(length) > MAX_RECORD_BYTES:
        raise StreamError(
            f"A record of {length} bytes is more than the {MAX_RECORD_BYTES} a record may have."
        )
    return _RECORD_HEADER.pack(kind, length)


def pack_record(kind: int, body: bytes = b"") -> bytes:
    """Return a whole record, padded."""
    return record_header(kind, len(body)) + body + bytes(padding(len(body)))


def parse_record_header(data: bytes) -> tuple[int, int]:
    """Return (type, bytes of the body); raises StreamError when the body is longer than a record's may be."""
    kind, length = _RECORD_HEADER.unpack(data)
    if length > MAX_RECORD_BYTES:
        raise StreamError(f"{name_of(kind)} claims {length} bytes; a record has at most {MAX_RECORD_BYTES}.")
    if length > MAX_SMALL_RECORD_BYTES and kind not in _LARGE:
        raise StreamError(
            f"{name_of(kind)} claims {length} bytes, more than the {MAX_SMALL_RECORD_BYTES} it may have."
        )
    return kind, length


def name_of(kind: int) -> str:
    """Return a record type for a sentence."""
    try:
        return f"The record {RecordType(kind).name}"
    except ValueError:
        return f"A record of the unknown type {kind:#x}"


def is_optional(kind: int) -> bool:
    """Tell whether a reader that does not know a record may skip it."""
    return bool(kind & OPTIONAL)


# ------------------------------------------------------------------------------------------------------- PAGE_DATA


def pack_page_head(gfns: array[int], types: bytes = b"") -> bytes:
    """Return everything of a PAGE_DATA record before the pages: its header, the count and the entries.

    ``types`` has a byte for each frame; empty means that all are ordinary memory. 4,096 bytes for each frame with
    content must follow; the record needs no padding.
    """
    content = len(gfns)
    entries = gfns
    if any(types):
        content = sum(kind in WITH_CONTENT for kind in types)
        entries = array("Q", (gfn | kind << _TYPE_SHIFT for gfn, kind in zip(gfns, types, strict=True)))
    length = _COUNT.size + 8 * len(gfns) + PAGE_BYTES * content
    return record_header(RecordType.PAGE_DATA, length) + _COUNT.pack(len(gfns), 0) + entries.tobytes()


def parse_page_count(data: bytes, length: int) -> int:
    """Return the number of entries of a PAGE_DATA record from the first 8 bytes of its body of ``length``."""
    if length < _COUNT.size:
        raise StreamError(f"A PAGE_DATA record has {length} bytes, too few for its count.")
    count, _ = _COUNT.unpack(data)
    if count == 0:
        raise StreamError("A PAGE_DATA record has no pages.")
    if count > MAX_RECORD_ENTRIES or _COUNT.size + 8 * count > length:
        raise StreamError(f"A PAGE_DATA record of {length} bytes claims {count} pages.")
    return int(count)


def parse_page_entries(data: bytes, length: int) -> PageEntries:
    """Check the entries of a PAGE_DATA record with a body of ``length``; raises StreamError.

    After this exactly ``len(content_gfns)`` pages follow.
    """
    types = bytes(data)[7::8].translate(_UPPER_HALF)
    gfns = array("Q")
    if types.count(0) == len(types):
        content = len(types)
        gfns.frombytes(data)
    else:
        # By the byte that holds the type: holes of a guest come by the million from a stock saver.
        invalid = types.translate(None, _VALID_BYTES)
        if invalid:
            at = types.index(invalid[0])
            (entry,) = struct.unpack_from("<Q", data, 8 * at)
            raise StreamError(
                f"Frame {entry & _PFN_MASK:#x} in a PAGE_DATA record has the invalid type {types[at]:#x}."
            )
        content = sum(types.count(kind) for kind in WITH_CONTENT)
        numbers = bytearray(data)
        numbers[7::8] = numbers[7::8].translate(_LOWER_HALF)
        gfns.frombytes(numbers)
    if max(gfns) & _RESERVED_MASK:
        raise StreamError(f"An entry of a PAGE_DATA record has reserved bits: {max(gfns):#x}.")
    expected = _COUNT.size + len(data) + PAGE_BYTES * content
    if expected != length:
        raise StreamError(
            f"A PAGE_DATA record has {length} bytes; {len(gfns)} frames, {content} of them with content, take {expected}."
        )
    return PageEntries(gfns, types)


#: bytes.translate tables for the highest byte of an entry, and for types.
_UPPER_HALF = bytes(byte >> 4 for byte in range(256))
_LOWER_HALF = bytes(byte & 0xF for byte in range(256))
_VALID_BYTES = bytes(sorted(_VALID))


# ------------------------------------------------------------------------------------------------- smaller records


def pack_tsc_info(tsc: TscInfo) -> bytes:
    """Return the body of X86_TSC_INFO."""
    return _TSC.pack(tsc.mode, tsc.khz, tsc.elapsed_ns, tsc.incarnation, 0)


def parse_tsc_info(body: bytes) -> TscInfo:
    """Read the body of X86_TSC_INFO; raises StreamError."""
    if len(body) != _TSC.size:
        raise StreamError(f"A TSC record has {len(body)} bytes instead of {_TSC.size}.")
    mode, khz, elapsed_ns, incarnation, _ = _TSC.unpack(body)
    return TscInfo(mode, khz, elapsed_ns, incarnation)


def pack_hvm_params(params: Iterable[tuple[int, int]]) -> bytes:
    """Return the body of HVM_PARAMS: pairs of index and value."""
    pairs = [_PARAM.pack(index, value) for index, value in params]
    return _COUNT.pack(len(pairs), 0) + b"".join(pairs)


def parse_hvm_params(body: bytes) -> list[tuple[int, int]]:
    """Read the body of HVM_PARAMS; raises StreamError."""
    if len(body) < _COUNT.size:
        raise StreamError(f"An HVM_PARAMS record has {len(body)} bytes, too few for its count.")
    count, _ = _COUNT.unpack_from(body)
    if len(body) != _COUNT.size + count * _PARAM.size:
        raise StreamError(f"An HVM_PARAMS record of {len(body)} bytes claims {count} parameters.")
    return [(index, value) for index, value in _PARAM.iter_unpack(body[_COUNT.size :])]


def check_policy(kind: int, length: int) -> None:
    """Raise StreamError unless a CPUID or MSR policy record has a whole, positive number of entries."""
    entry = CPUID_LEAF_BYTES if kind == RecordType.X86_CPUID_POLICY else MSR_ENTRY_BYTES
    if length == 0 or length % entry:
        raise StreamError(f"{name_of(kind)} has {length} bytes, not a multiple of {entry}.")


# ---------------------------------------------------------------------------------------------------------- offer

#: Version of our own records, and what a writer may say that it understands.
OFFER_VERSION = 1
FEATURE_DIRTY_BITMAP = 1 << 0
#: The copy was made equal before and stands still: it has memory, rings in use and a CPU policy already.
FEATURE_BASELINE = 1 << 1
_FEATURES = FEATURE_DIRTY_BITMAP | FEATURE_BASELINE


def pack_offer(features: int) -> bytes:
    """Return the body of COLO_OFFER."""
    return _OFFER.pack(OFFER_VERSION, features)


def parse_offer(body: bytes) -> int:
    """Return the features of a COLO_OFFER that we know; 0 when it is of another version. Raises StreamError."""
    if len(body) != _OFFER.size:
        raise StreamError(f"An offer has {len(body)} bytes instead of {_OFFER.size}.")
    version, features = _OFFER.unpack(body)
    return features & _FEATURES if version == OFFER_VERSION else 0
