"""The libxc image's tables: round trips, and every length, count and type that is refused."""

from __future__ import annotations

from array import array
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.stream import libxc
from colo_helper.stream.libxc import (
    MAX_RECORD_BYTES,
    MAX_SMALL_RECORD_BYTES,
    PAGE_BYTES,
    DomainHeader,
    RecordType,
    StreamError,
    TscInfo,
)

u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
pfns = st.integers(0, (1 << 52) - 1)
VALID_TYPES = [0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14, 15]
entries = st.lists(st.tuples(pfns, st.sampled_from(VALID_TYPES)), min_size=1, max_size=50)


def split_page_data(record):
    """Read a PAGE_DATA record as a restorer does: header, count, entries; returns the entries and the pages left."""
    kind, length = libxc.parse_record_header(record[:8])
    assert kind == RecordType.PAGE_DATA
    count = libxc.parse_page_count(record[8:16], length)
    parsed = libxc.parse_page_entries(record[16 : 16 + 8 * count], length)
    return parsed, record[16 + 8 * count :]


def test_the_headers_are_as_xen_writes_them():
    """From an image that Xen 4.17 saved."""
    assert libxc.pack_image_header().hex() == "ffffffffffffffff58454e46000000030000000000000000"
    header = libxc.pack_domain_header(DomainHeader(libxc.TYPE_HVM, 4, 17))
    assert header.hex() == "020000000c0000000400000011000000"
    assert libxc.pack_record(RecordType.STATIC_DATA_END).hex() == "1000000000000000"


@pytest.mark.parametrize("version", libxc.READABLE_VERSIONS)
def test_an_image_header_comes_back(version):
    assert libxc.parse_image_header(libxc.pack_image_header(version)) == version


@given(st.sampled_from([libxc.TYPE_PV, libxc.TYPE_HVM]), u32, u32)
def test_a_domain_header_comes_back(guest_type, major, minor):
    header = DomainHeader(guest_type, major, minor)
    assert libxc.parse_domain_header(libxc.pack_domain_header(header)) == header


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, 0, "its marker is missing"),
        (8, 0, "its marker is missing"),
        (15, 1, "revision 1; 2 and 3 can be read"),
        (15, 4, "revision 4; 2 and 3 can be read"),
        (17, 1, "big endian"),
    ],
)
def test_an_image_header_that_is_none(at, value, reason):
    data = bytearray(libxc.pack_image_header())
    data[at] = value
    with pytest.raises(StreamError, match=reason):
        libxc.parse_image_header(bytes(data))


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [(0, 3, "unknown type 3"), (0, 0, "unknown type 0"), (4, 13, r"pages of 2\^13")],
)
def test_a_domain_header_of_no_x86_guest(at, value, reason):
    data = bytearray(libxc.pack_domain_header(DomainHeader(libxc.TYPE_HVM, 4, 17)))
    data[at] = value
    with pytest.raises(StreamError, match=reason):
        libxc.parse_domain_header(bytes(data))


@given(st.sampled_from(RecordType), st.binary(max_size=100))
def test_a_record_comes_back_and_ends_on_a_multiple_of_8(kind, body):
    record = libxc.pack_record(kind, body)
    assert len(record) % 8 == 0
    assert libxc.parse_record_header(record[:8]) == (kind, len(body))
    assert record[8 : 8 + len(body)] == body
    assert not any(record[8 + len(body) :])


def test_no_record_is_longer_than_its_kind_may_be():
    def header(kind, length):
        return kind.to_bytes(4, "little") + length.to_bytes(4, "little")

    for kind in (RecordType.PAGE_DATA, RecordType.CHECKPOINT_DIRTY_PFN_LIST, RecordType.COLO_DIRTY_BITMAP):
        assert libxc.parse_record_header(header(kind, MAX_RECORD_BYTES)) == (kind, MAX_RECORD_BYTES)
        with pytest.raises(StreamError, match="a record has at most"):
            libxc.parse_record_header(header(kind, MAX_RECORD_BYTES + 1))
    for kind in (RecordType.HVM_CONTEXT, 0x12345, 0x80012345):
        assert libxc.parse_record_header(header(kind, MAX_SMALL_RECORD_BYTES)) == (
            kind,
            MAX_SMALL_RECORD_BYTES,
        )
        with pytest.raises(StreamError, match="more than the"):
            libxc.parse_record_header(header(kind, MAX_SMALL_RECORD_BYTES + 1))
    assert libxc.record_header(RecordType.PAGE_DATA, MAX_RECORD_BYTES)
    with pytest.raises(StreamError, match="more than the 134217728"):
        libxc.record_header(RecordType.PAGE_DATA, MAX_RECORD_BYTES + 1)


@given(entries)
def test_page_data_comes_back(pairs):
    gfns, types = array("Q", (gfn for gfn, _ in pairs)), bytes(kind for _, kind in pairs)
    with_content = [gfn for gfn, kind in pairs if kind not in (13, 14, 15)]
    record = libxc.pack_page_head(gfns, types) + bytes(PAGE_BYTES * len(with_content))
    parsed, pages = split_page_data(record)
    assert (parsed.gfns, parsed.types) == (gfns, types)
    assert list(parsed.content_gfns) == with_content
    assert list(parsed.populated_gfns) == [gfn for gfn, kind in pairs if kind not in (13, 15)]
    assert len(pages) == PAGE_BYTES * len(with_content)


@given(entries, st.integers(-3, 3).filter(bool))
def test_a_length_that_does_not_fit_the_pages(pairs, more):
    gfns, types = array("Q", (gfn for gfn, _ in pairs)), bytes(kind for _, kind in pairs)
    head = libxc.pack_page_head(gfns, types)
    _, length = libxc.parse_record_header(head[:8])
    with pytest.raises(StreamError, match="take"):
        libxc.parse_page_entries(head[16:], length + more * PAGE_BYTES)


@given(pfns, st.sampled_from([5, 6, 7, 8]))
def test_a_reserved_page_type(gfn, kind):
    entry = gfn | kind << 60
    with pytest.raises(StreamError, match=rf"Frame {gfn:#x} .* invalid type {kind:#x}"):
        libxc.parse_page_entries(entry.to_bytes(8, "little"), 16 + PAGE_BYTES)


@given(pfns, st.integers(52, 59), st.sampled_from(VALID_TYPES))
def test_a_reserved_bit_of_an_entry(gfn, bit, kind):
    entry = gfn | 1 << bit | kind << 60
    length = 16 + PAGE_BYTES * (kind in libxc.WITH_CONTENT)
    with pytest.raises(StreamError, match="reserved bits"):
        libxc.parse_page_entries(entry.to_bytes(8, "little"), length)


@pytest.mark.parametrize(
    ("count", "length", "reason"),
    [
        (0, 8, "has no pages"),
        (1, 7, "too few for its count"),
        (2, 23, "claims 2 pages"),
        ((1 << 32) - 1, 4104, "claims"),
    ],
)
def test_a_page_count_that_does_not_fit(count, length, reason):
    with pytest.raises(StreamError, match=reason):
        libxc.parse_page_count(count.to_bytes(8, "little"), length)


@given(u32, u32, u64, u32)
def test_tsc_info_comes_back(mode, khz, elapsed_ns, incarnation):
    tsc = TscInfo(mode, khz, elapsed_ns, incarnation)
    assert libxc.parse_tsc_info(libxc.pack_tsc_info(tsc)) == tsc


@given(st.lists(st.tuples(u64, u64), max_size=20))
def test_params_come_back(params):
    assert libxc.parse_hvm_params(libxc.pack_hvm_params(params)) == params


@given(st.binary(max_size=80))
def test_small_bodies_are_parsed_or_refused(data):
    for parse in (libxc.parse_tsc_info, libxc.parse_hvm_params, libxc.parse_offer):
        with suppress(StreamError):
            parse(data)
    for kind, entry in ((RecordType.X86_CPUID_POLICY, 24), (RecordType.X86_MSR_POLICY, 16)):
        if len(data) % entry or not data:
            with pytest.raises(StreamError, match=f"not a multiple of {entry}"):
                libxc.check_policy(kind, len(data))
        else:
            libxc.check_policy(kind, len(data))


@given(u32)
def test_an_offer_comes_back_with_what_is_known_of_it(features):
    assert libxc.parse_offer(libxc.pack_offer(features)) == features & (
        libxc.FEATURE_DIRTY_BITMAP | libxc.FEATURE_BASELINE
    )


def test_an_offer_of_another_version_offers_nothing():
    later = (libxc.OFFER_VERSION + 1).to_bytes(4, "little") + (1).to_bytes(4, "little")
    assert libxc.parse_offer(later) == 0
