"""libxl's records, xl's preamble, and the walk through whole streams: order, truncation, damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.stream import libxc, libxl
from colo_helper.stream.libxc import RecordType, StreamError
from colo_helper.stream.libxl import CheckpointState, Emulator, EmulatorKind, LibxlRecordType
from colo_helper.stream.walk import (
    HEADER,
    LARGEST_READ_BYTES,
    Event,
    Level,
    Pages,
    walk_image,
    walk_libxl,
    walk_xl,
)
from tests.fuzz import seeds

emulators = st.builds(Emulator, st.sampled_from(EmulatorKind), st.integers(0, (1 << 32) - 1))
words = st.binary(max_size=12).map(lambda text: text.replace(b"\0", b"."))
keys = words.filter(lambda key: key and not key.startswith(b"/"))


class Source:
    """Bytes that are read exactly; remembers how many, and how many at once."""

    def __init__(self, data):
        self.data = memoryview(data)
        self.at = 0
        self.largest = 0

    def __call__(self, length):
        self.largest = max(self.largest, length)
        if length > len(self.data) - self.at:
            raise EOFError
        self.at += length
        return bytes(self.data[self.at - length : self.at])


def kinds(events, level):
    return [event.kind for event in events if isinstance(event, Event) and event.level is level]


# ------------------------------------------------------------------------------------------------- single records


def test_the_bytes_are_libxls():
    assert libxl.pack_header().hex(" ", 8) == "4c6962786c466d74 0000000200000000"
    new = libxl.pack_record(
        LibxlRecordType.CHECKPOINT_STATE, libxl.pack_checkpoint_state(CheckpointState.SVM_READY)
    )
    assert new.hex(" ", 4) == "05000000 04000000 02000000 00000000"
    preamble = libxl.pack_preamble(b"{}")
    assert preamble[:32] == b"Xen saved domain, xl format\n \0 \r"
    assert preamble[32:].hex() == "0403020103000000000000000700000003000000" + b"{}".hex() + "00"


@given(st.binary(max_size=60).filter(lambda config: not config.endswith(b"\0")))
def test_the_configuration_comes_back(config):
    data = libxl.pack_preamble(config)
    preamble = libxl.parse_preamble(data[: libxl.PREAMBLE_BYTES])
    assert preamble.optional_bytes == len(data) - libxl.PREAMBLE_BYTES
    assert libxl.parse_optional_data(data[libxl.PREAMBLE_BYTES :]) == config


@given(emulators, st.lists(st.tuples(keys, words), max_size=5))
def test_xenstore_data_comes_back(emulator, pairs):
    assert libxl.parse_xenstore_data(libxl.pack_xenstore_data(emulator, pairs)) == (emulator, tuple(pairs))


@given(emulators, st.binary(max_size=30))
def test_an_emulator_context_comes_back(emulator, state):
    assert libxl.parse_emulator_context(libxl.pack_emulator_context(emulator, state)) == (emulator, state)


@pytest.mark.parametrize("state", CheckpointState)
def test_a_checkpoint_state_comes_back(state):
    assert libxl.parse_checkpoint_state(libxl.pack_checkpoint_state(state)) is state


@given(st.binary(max_size=40))
def test_bodies_are_parsed_or_refused(body):
    for parse in (
        libxl.parse_checkpoint_state,
        libxl.parse_emulator_context,
        libxl.parse_xenstore_data,
        libxl.parse_optional_data,
    ):
        try:
            parse(body)
        except StreamError as error:
            assert str(error).endswith(".")  # noqa: PT017 - any other error is the failure here


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (bytes(8) + b"key\0", "does not end after a value"),
        (bytes(8) + b"key\0value", "does not end after a value"),
        (bytes(8) + b"/local\0value\0", "where a relative key should be"),
        (bytes(8) + b"\0value\0", "where a relative key should be"),
        (b"\7" + bytes(7), "unknown kind 7"),
        (bytes(7), "does not say which device model"),
    ],
)
def test_xenstore_data_that_is_none(body, reason):
    with pytest.raises(StreamError, match=reason):
        libxl.parse_xenstore_data(body)


@pytest.mark.parametrize(
    ("kind", "length", "reason"),
    [
        (0, 1, "END claims 1 bytes; it has 0"),
        (2, 7, "EMULATOR_XENSTORE_DATA claims 7 bytes"),
        (2, libxl.MAX_XENSTORE_DATA_BYTES + 1, "EMULATOR_XENSTORE_DATA claims"),
        (3, libxl.MAX_EMULATOR_CONTEXT_BYTES + 1, "EMULATOR_CONTEXT claims"),
        (3, 0xFFFFFFFF, "EMULATOR_CONTEXT claims"),
        (5, 8, "CHECKPOINT_STATE claims 8 bytes; it has 4"),
        (6, 0, "unknown type 0x6 cannot be read"),
        (0x80000000, 8, "unknown type 0x80000000 claims 8 bytes"),
    ],
)
def test_a_record_header_that_cannot_be(kind, length, reason):
    with pytest.raises(StreamError, match=reason):
        libxl.parse_record_header(kind.to_bytes(4, "little") + length.to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, 0, "its magic string is missing"),
        (32, 1, "another byte order"),
        (36, 7, "mandatory flags that nobody knows here: 0x7"),
        (36, 1, "the legacy format"),
        (47, 1, "announces 16777223 bytes"),
    ],
)
def test_a_preamble_that_is_none(at, value, reason):
    data = bytearray(libxl.pack_preamble(b"{}")[: libxl.PREAMBLE_BYTES])
    data[at] = value
    with pytest.raises(StreamError, match=reason):
        libxl.parse_preamble(bytes(data))


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [(0, 0, "its identifier is missing"), (11, 3, "of version 3"), (15, 1, "big endian"), (15, 4, "options")],
)
def test_a_libxl_header_that_is_none(at, value, reason):
    data = bytearray(libxl.pack_header())
    data[at] = value
    with pytest.raises(StreamError, match=reason):
        libxl.parse_header(bytes(data))


def test_a_converted_stream_is_read():
    libxl.parse_header(libxl.pack_header()[:-1] + b"\2")


# ----------------------------------------------------------------------------------------------------- whole walks


@pytest.mark.parametrize("emulator", [True, False])
def test_a_saved_file_is_walked_to_its_end_and_not_further(emulator):
    data = seeds.in_xl(seeds.plain_image(), emulator=emulator)
    source = Source(data + b"what follows")
    events = list(walk_xl(source))
    assert source.at == len(data)
    assert events[0] == Event(Level.XL, HEADER, b'{"c_info": {"type": "hvm"}}')
    assert kinds(events, Level.LIBXL) == [HEADER, 1, *([2, 3] if emulator else []), 0]
    assert kinds(events, Level.LIBXC) == [HEADER, 0x11, 0x12, 0x10, 1, 1, 8, 9, 0xA, 0]
    pages = [event for event in events if isinstance(event, Pages)]
    assert [gfn for piece in pages for gfn in piece.gfns] == [0, 1, 2, 5]
    assert b"".join(piece.data for piece in pages) == b"".join(map(seeds.page, [0, 1, 2, 5]))


def test_an_image_of_version_2_has_no_static_data():
    events = list(walk_image(Source(seeds.plain_image(2))))
    assert kinds(events, Level.LIBXC) == [HEADER, 1, 1, 8, 9, 0xA, 0]


@pytest.mark.parametrize("colo", [False, True])
def test_checkpoints_alternate_between_the_two_levels(colo):
    source = Source(seeds.checkpoints(3, colo=colo) + libxc.pack_record(RecordType.END))
    events = list(walk_image(source, colo=colo))
    levels = [(event.level, event.kind) for event in events if isinstance(event, Event)]
    part = [(Level.LIBXC, kind) for kind in (1, 8, 9, 0xA, 0xE)]
    part += [(Level.LIBXL, kind) for kind in ([2, 3, 4, 5] if colo else [2, 3, 4])]
    start = 5 if colo else 4
    assert levels[start:] == [*part * 3, (Level.LIBXC, 0)]


def test_a_series_that_ended_in_the_middle_ends_with_eof():
    walk = walk_image(Source(seeds.checkpoints(2, colo=False)))
    with pytest.raises(EOFError):
        list(walk)


def test_pages_come_in_pieces():
    gfns = list(range(1000))
    image = seeds.image_head() + seeds.page_data(gfns) + seeds.state() + libxc.pack_record(RecordType.END)
    source = Source(image)
    pieces = [event for event in walk_image(source) if isinstance(event, Pages)]
    assert [gfn for piece in pieces for gfn in piece.gfns] == gfns
    assert source.largest == 1 << 20


END, CHECKPOINT = libxc.pack_record(RecordType.END), libxc.pack_record(RecordType.CHECKPOINT)
STATIC_END = libxc.pack_record(RecordType.STATIC_DATA_END)
LIBXL_END = libxl.pack_record(LibxlRecordType.END)
CHECKPOINT_END = libxl.pack_record(LibxlRecordType.CHECKPOINT_END)
STATE_NEW = libxl.pack_record(LibxlRecordType.CHECKPOINT_STATE, bytes(4))
BODY = seeds.page_data([1]) + seeds.state()


@pytest.mark.parametrize(
    ("after_head", "reason"),
    [
        (STATIC_END, "STATIC_DATA_END came after the static data"),
        (BODY + libxc.pack_record(RecordType.X86_CPUID_POLICY, bytes(24)), "came after the static data"),
        (libxc.pack_record(RecordType.CHECKPOINT_DIRTY_PFN_LIST), "belongs on the back channel"),
        (libxc.pack_record(RecordType.COLO_DIRTY_BITMAP), "belongs on the back channel"),
        (libxc.pack_record(0x1234), "unknown type 0x1234 is mandatory"),
        (libxc.pack_record(RecordType.VERIFY, b"x"), "VERIFY has 1 bytes; it has none"),
        (seeds.page_data([1]) + END, "END came before the state of the CPUs"),
        (END, "END came before the state of the CPUs"),
        (seeds.page_data([1]) + CHECKPOINT, "CHECKPOINT came before the state of the CPUs"),
        (BODY + CHECKPOINT + CHECKPOINT_END + CHECKPOINT, "CHECKPOINT came before the state of the CPUs"),
        (BODY + CHECKPOINT + CHECKPOINT_END + seeds.page_data([1]) + END, "END came before the state"),
        (BODY + CHECKPOINT + LIBXL_END, "END came in the middle of a checkpoint"),
        (BODY + CHECKPOINT + STATE_NEW, "CHECKPOINT_STATE came in the middle of a checkpoint"),
        (BODY + CHECKPOINT + CHECKPOINT_END + STATE_NEW, "unknown type 0x5 is mandatory"),
        (b"\x09\0\0\0\1\0\0\0" + b"c\0\0\1\0\0\0\0", "is not padded with zeros"),
    ],
)
def test_an_image_out_of_order(after_head, reason):
    with pytest.raises(StreamError, match=reason):
        list(walk_image(Source(seeds.image_head() + after_head)))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (CHECKPOINT_END, "came where the next COLO checkpoint should be announced"),
        (
            libxl.pack_record(LibxlRecordType.CHECKPOINT_STATE, b"\2\0\0\0"),
            "a state that only a secondary has",
        ),
        (libxl.pack_record(LibxlRecordType.CHECKPOINT_STATE, b"\4\0\0\0"), "unknown state 4"),
    ],
)
def test_a_colo_checkpoint_must_be_announced(record, reason):
    with pytest.raises(StreamError, match=reason):
        list(walk_image(Source(seeds.image_head() + BODY + CHECKPOINT + CHECKPOINT_END + record), colo=True))


def test_static_data_must_come_first():
    head = libxc.pack_image_header() + libxc.pack_domain_header(libxc.DomainHeader(libxc.TYPE_HVM, 4, 17))
    with pytest.raises(StreamError, match="PAGE_DATA came before the end of the static data"):
        list(walk_image(Source(head + BODY)))


def test_a_pv_image_is_refused():
    head = libxc.pack_image_header() + libxc.pack_domain_header(libxc.DomainHeader(libxc.TYPE_PV, 4, 17))
    with pytest.raises(StreamError, match="of a PV guest"):
        list(walk_image(Source(head)))


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (LIBXL_END, "ends without an image"),
        (seeds.device_model(), "came before the image"),
        (CHECKPOINT_END, "came outside of a checkpoint"),
    ],
)
def test_a_libxl_stream_out_of_order(records, reason):
    with pytest.raises(StreamError, match=reason):
        list(walk_libxl(Source(libxl.pack_header() + records)))


def test_a_second_image_is_refused():
    again = libxl.pack_record(LibxlRecordType.LIBXC_CONTEXT)
    whole = libxl.pack_header() + again + seeds.plain_image() + again
    with pytest.raises(StreamError, match="second image"):
        list(walk_libxl(Source(whole)))


def test_a_record_of_no_pages_at_all_takes_little_memory():
    """16 million frames without content would fit into a record; nobody reads so many entries at once."""
    count = libxc.MAX_RECORD_BYTES // 8 - 1
    head = libxc.record_header(RecordType.PAGE_DATA, 8 + 8 * count) + count.to_bytes(8, "little")
    source = Source(seeds.image_head() + head)
    with pytest.raises(StreamError, match=f"claims {count} pages"):
        list(walk_image(source))
    assert source.largest < 100


WHOLE = seeds.in_xl(seeds.plain_image())


@given(st.integers(0, len(WHOLE) - 1))
def test_every_truncation_ends_with_eof(length):
    walk = walk_xl(Source(WHOLE[:length]))
    with pytest.raises(EOFError):
        list(walk)


@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_a_flipped_bit_is_an_error_or_changes_a_value_but_never_where_records_begin(bit):
    """The formats have no checksum: what cannot be noticed must at least do no harm to what follows it."""
    damaged = bytearray(WHOLE)
    damaged[bit // 8] ^= 1 << bit % 8
    source = Source(damaged)
    try:
        list(walk_xl(source))
    except (StreamError, EOFError):
        assert source.largest <= LARGEST_READ_BYTES
    else:
        assert source.at == len(WHOLE)
