"""pcapng: written, read in both byte orders, and refused with a sentence."""

from __future__ import annotations

import io
import struct

import pytest

from colo_helper.proxy.pcapng import MOST_BYTES, Captured, Interface, PcapngError, read_pcapng, write_pcapng

WIRE, NOTES = Interface("wire", 1), Interface("notes", 147)


def written(*captured):
    file = io.BytesIO()
    write_pcapng(file, [WIRE, NOTES], captured)
    return file.getvalue()


def block(kind, body, order="<"):
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order="<"):
    return block(0x0A0D0D0A, struct.pack(order + "IHHQ", 0x1A2B3C4D, 1, 0, 2**64 - 1), order)


def read(data):
    return list(read_pcapng("x", io.BytesIO(data)))


def test_what_is_written_is_read():
    captured = [
        Captured(1.5, WIRE, b"abc"),
        Captured(1_800_000_000.25, NOTES, b""),
        Captured(2.0, WIRE, b"d"),
    ]
    assert read(written(*captured)) == captured


def test_a_section_of_the_other_byte_order():
    interface = block(1, struct.pack(">HHI", 1, 0, 0), ">")
    packet = block(6, struct.pack(">IIIII", 0, 0, 1_500_000, 2, 2) + b"ab\0\0", ">")
    assert read(section(">") + interface + packet) == [Captured(1.5, Interface("interface 0", 1), b"ab")]


def test_a_resolution_in_powers_of_two_and_blocks_of_other_types():
    options = struct.pack("<HHB3xHH", 9, 1, 0x80 | 10, 0, 0)
    interface = block(1, struct.pack("<HHI", 1, 0, 0) + options)
    packet = block(6, struct.pack("<IIIII", 0, 0, 1536, 1, 1) + b"a\0\0\0")
    read_back = read(section() + interface + block(0x80001234, b"what") + packet)
    assert [one.time_s for one in read_back] == [1.5]


def test_every_section_has_its_own_interfaces():
    assert read(written(Captured(1.0, WIRE, b"a")) + written(Captured(2.0, NOTES, b"b"))) == [
        Captured(1.0, WIRE, b"a"),
        Captured(2.0, NOTES, b"b"),
    ]


ONE = written(Captured(1.0, WIRE, b"abc"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "x is not a pcapng file: it begins with nothing."),
        (b"GIF89a__", "x is not a pcapng file: it begins with 47494638."),
        (b"GIF", "x ends within the header of a block, after 3 bytes."),
        (ONE[:10], "x ends within the header of a section, after 10 bytes."),
        (ONE[:-1], f"x ends within a block, after {len(ONE) - 1} bytes."),
        (ONE[:8] + b"what" + ONE[12:], "x has a section without its magic at byte 8."),
        (
            section() + struct.pack("<II", 6, 2 * MOST_BYTES + 16),
            f"x has a block of {2 * MOST_BYTES + 16} bytes at byte 28, which cannot be.",
        ),
        (section() + struct.pack("<II", 6, 13), "x has a block of 13 bytes at byte 28, which cannot be."),
        (ONE[:-4] + bytes(4), f"x has a block at byte {len(ONE) - 36} that ends with another length."),
        (section() + block(1, b"abcd"), "x has an interface that is too short, before byte 44."),
        (section() + block(6, b"abcd"), "x has a packet that is too short, before byte 44."),
        (
            section() + block(6, struct.pack("<IIIII", 0, 0, 0, 0, 0)),
            "x has a packet of 0 bytes of interface 0, before byte 60, in a block of 20; it has 0 interfaces.",
        ),
    ],
)
def test_damaged_files(data, reason):
    with pytest.raises(PcapngError) as error:
        read(data)
    assert str(error.value) == reason


def test_what_stands_before_the_damage_is_read():
    packets = read_pcapng(
        "x", io.BytesIO(written(Captured(1.0, WIRE, b"abc"), Captured(2.0, WIRE, b"d"))[:-1])
    )
    assert next(packets) == Captured(1.0, WIRE, b"abc")
