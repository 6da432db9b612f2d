"""Contexts and device states cut into pieces, and what is said about their differences."""

from __future__ import annotations

import struct

import pytest

from colo_helper.stream import device_state, hvm_context
from colo_helper.stream.device_state import DeviceStateError
from colo_helper.stream.hvm_context import ContextError
from colo_helper.stream.pieces import MAX_RUNS, Clock, Layout, Piece, compare_pieces, fields
from tests.fuzz import seeds


def differing(name, **changes):
    """Compare two records of a kind; ``changes`` maps offsets, as ``at8``, to the bytes the second one has there."""
    length = max((field.offset + field.length for field in hvm_context._FIELDS[name]), default=0)
    ours, theirs = bytearray(length), bytearray(length)
    for key, (mine, its) in changes.items():
        at = int(key.removeprefix("at"))
        ours[at : at + len(mine)], theirs[at : at + len(its)] = mine, its
    layout = hvm_context._layout(name, bytes(ours))
    found = compare_pieces([Piece(name, 0, bytes(ours), layout)], [Piece(name, 0, bytes(theirs))])
    return [(one.field, one.explained) for one in found]


def test_the_layouts_are_as_long_as_xens_structures():
    """The sizes are those that a compiler gives for RELEASE-4.17.7's save.h, less padding and arrays at the end."""
    ends = {name: max(f.offset + f.length for f in known) for name, known in hvm_context._FIELDS.items()}
    assert ends["CPU"] == 1032
    assert ends["HPET"] == 1048
    assert ends["MTRR"] == 240
    assert ends["IOAPIC"] == 400
    assert ends["VIRIDIAN_VCPU"] == 216
    assert ends["CPU_XSAVE"] == 552
    assert next(f.offset for f in hvm_context._FIELDS["CPU"] if f.name == "tsc") == 1008


def test_every_clock_is_a_field():
    for name, clocks in hvm_context._CLOCKS.items():
        assert clocks.keys() <= {field.name for field in hvm_context._FIELDS[name]}
    for layout in device_state._LAYOUTS.values():
        assert (layout.clocks or {}).keys() <= {field.name for field in layout.fields}


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("PMTIMER", {"at0": (b"\1", b"\2")}, [("tmr_val", True)]),
        ("PMTIMER", {"at4": (b"\1", b"\0")}, [("pm1a_sts", True)]),
        ("PMTIMER", {"at4": (b"\1\1", b"\0\0")}, [("pm1a_sts", False)]),  # the power button as well
        ("HPET", {"at240": (b"\1", b"\2")}, [("mc64", True)]),
        ("HPET", {"at264": (b"\1", b"\2")}, [("timer0.cmp", False)]),
        ("HPET", {"at256": (b"\x08", b"\x08"), "at264": (b"\1", b"\2")}, [("timer0.cmp", True)]),
        ("LAPIC", {"at16": (b"\1", b"\0")}, [("tdt_msr", True)]),
        ("LAPIC", {"at16": (b"\1", b"\2")}, [("tdt_msr", False)]),
        (
            "RTC",
            {"at0": (b"\1", b"\2"), "at1": (b"\1", b"\2")},
            [("seconds", True), ("seconds_alarm", False)],
        ),
        ("PIT", {"at29": (b"\x07", b"\x03")}, [("mode1", True)]),
        (
            "PIT",
            {"at29": (b"\xff", b"\x03")},
            [("mode1", True)],
        ),  # a Xen before 4.19 had that until it was programmed
        ("PIT", {"at29": (b"\x03", b"\x02")}, [("mode1", False)]),
        ("PIT", {"at29": (b"\x03", b"\x07")}, [("mode1", False)]),
        ("LAPIC_REGS", {"at512": (b"\1", b"\2")}, [("IRR[0]", False)]),
    ],
)
def test_only_clocks_may_differ(name, changes, found):
    assert differing(name, **changes) == found


def test_a_register_of_the_model_is_named_by_its_number():
    ours, theirs = bytearray(seeds.hvm_context()), bytearray(seeds.hvm_context())
    theirs[theirs.rindex(b"\5")] = 6
    (found,) = compare_pieces(*map(hvm_context.split, (bytes(ours), bytes(theirs))))
    assert (found.record, found.field, found.offset) == ("CPU_MSR", "MSR 0xc0000103", 16)


@pytest.mark.parametrize(
    ("context", "why"),
    [
        (b"", "stops at byte 0"),
        (seeds.hvm_context()[:-1], "before a record END"),
        (seeds.hvm_context()[32:], "does not begin with a record HEADER"),
        (seeds.hvm_context() + b"\0", "1 bytes follow"),
        (seeds.hvm_context()[:36] + b"\xff\xff\xff\xff" + seeds.hvm_context()[40:], "more than the context"),
        (seeds.hvm_context()[:32] * 2 + seeds.hvm_context()[32:], "HEADER 0 is there twice"),
    ],
)
def test_a_damaged_context_is_refused(context, why):
    with pytest.raises(ContextError, match=why):
        hvm_context.split(context)


@pytest.mark.parametrize("footers", [False, True])
def test_sections_are_found_with_footers_and_without(footers):
    nic = b"\x04\0\0\0\x02\x05e1000\0\0\0\0\0\0\0\3 its own start, and \x04\0\0\0\x01\x05other in vain"
    pieces = device_state.split(seeds.device_state(footers=footers, nic=nic))
    assert [(piece.name, piece.instance) for piece in pieces] == [
        ("timer", 0),
        ("mc146818rtc", 0),
        ("e1000", 0),
    ]
    assert [piece.body for piece in pieces] == [bytes(24), bytes(245), nic]


def test_a_last_byte_that_looks_like_a_footer_is_none():
    nic = bytes(20) + struct.pack(">BI", 0x7E, 1)
    assert device_state.split(seeds.device_state(nic=nic))[-1].body == nic


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (b"", "does not begin with QEVM"),
        (b"QEVM\0\0\0\2\0", "does not begin with QEVM"),
        (seeds.device_state() + b"\1", "does not end"),
        (b"QEVM\0\0\0\3\0", "does not go on with a section"),
        (b"QEVM\0\0\0\3!" + seeds.device_state()[8:], "does not go on with a section"),
    ],
)
def test_a_damaged_device_state_is_refused(state, why):
    with pytest.raises(DeviceStateError, match=why):
        device_state.split(state)


def test_a_piece_that_one_side_has_and_lengths_that_differ():
    one, other, long = Piece("one", 0, b"1"), Piece("other", 0, b"12"), Piece("long", 1, b"123")
    found = compare_pieces([one, long], [other, Piece("long", 1, b"x2345")])
    assert [(d.record, d.field, d.offset, d.length, d.explained) for d in found] == [
        ("one", "all of it", 0, 1, False),
        ("long", "length", 3, 2, False),
        ("long", "", 0, 1, False),
        ("other", "all of it", 0, 2, False),
    ]
    assert found[0].reason.startswith("Only the primary has it.")
    assert found[1].reason.startswith("It has 3 bytes on the primary, 5 on the secondary.")
    assert found[3].reason.startswith("Only the secondary has it.")


def test_what_device_models_of_two_releases_lay_out_in_different_ways_is_not_compared_and_said_so():
    ours = [Piece("fw_cfg", 0, b"1"), Piece("rtc", 0, b"12"), Piece("gone", 0, b"1")]
    found = compare_pieces(ours, [Piece("fw_cfg", 0, b"234"), Piece("rtc", 0, b"13")], "Not compared.")
    assert [(d.record, d.field, d.explained) for d in found] == [
        ("fw_cfg", "all of it", True),
        ("rtc", "", False),
        ("gone", "all of it", False),
    ]
    assert found[0].reason == "It has 1 bytes on the primary, 3 on the secondary. Not compared."


@pytest.mark.parametrize(
    ("name", "more", "explained"), [("LAPIC", 0, True), ("LAPIC", 1, False), ("PIC", 0, False)]
)
def test_what_a_later_xen_keeps_in_addition_may_be_there_if_it_is_0(name, more, explained):
    ours = Piece(name, 0, bytes(24), hvm_context._layout(name, b""))
    (found,) = compare_pieces([ours], [Piece(name, 0, bytes(24) + bytes((more,)) + bytes(7))])
    assert (found.field, found.offset, found.length, found.explained) == ("length", 24, 8, explained)


def test_what_both_have_of_pieces_of_different_lengths_is_compared():
    ours = Piece("LAPIC", 0, b"\1" + bytes(23), hvm_context._layout("LAPIC", b""))
    found = compare_pieces([ours], [Piece("LAPIC", 0, bytes(32))])
    assert [(one.field, one.explained) for one in found] == [("length", True), ("apic_base_msr", False)]


def test_bytes_outside_the_fields_are_told_as_few_runs():
    layout = Layout(fields("-:4 clock:4"), {"clock": Clock("It goes on.")})
    ours = bytes(4000)
    theirs = bytes(at % 16 == 0 or at == 5 for at in range(4000))
    found = compare_pieces([Piece("x", 0, ours, layout)], [Piece("x", 0, theirs)])
    assert (found[0].field, found[0].offset, found[0].explained) == ("clock", 4, True)
    assert 0 < len(found) - 1 <= MAX_RUNS
    assert (found[1].offset, found[-1].offset + found[-1].length) == (0, 3985)
    assert not any(one.explained for one in found[1:])
