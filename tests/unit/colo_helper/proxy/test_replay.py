"""Captures: read, refused with a sentence, and replayed."""

from __future__ import annotations

import io
import struct

import pytest

from colo_helper.proxy.packet import ACK, FIN, SYN
from colo_helper.proxy.pcap import MOST_BYTES, Captured, PcapError, read_pcap
from colo_helper.proxy.replay import main
from tests.unit.colo_helper.proxy.frames import tcp, udp

MAGICS = [("<", 0xA1B2C3D4, 1e6), (">", 0xA1B2C3D4, 1e6), ("<", 0xA1B23C4D, 1e9), (">", 0xA1B23C4D, 1e9)]


def pcap(frames, order="<", magic=0xA1B2C3D4, per_s=1e6, link=1):
    """A file of (time, frame)."""
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link)
    for time_s, frame in frames:
        fraction = round(time_s % 1 * per_s)
        data += struct.pack(order + "IIII", int(time_s), fraction, len(frame), len(frame)) + frame
    return data


@pytest.mark.parametrize(("order", "magic", "per_s"), MAGICS)
def test_both_byte_orders_and_both_units(order, magic, per_s):
    data = pcap([(1.5, b"abc"), (2.000001, b"")], order, magic, per_s)
    read = list(read_pcap("x", io.BytesIO(data)))
    assert [captured.frame for captured in read] == [b"abc", b""]
    assert [captured.time_s for captured in read] == pytest.approx([1.5, 2.000001], abs=1e-8)


ONE = pcap([(0, b"abc")])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "x is not a pcap file: it begins with nothing."),
        (b"GIF89a", "x is not a pcap file: it begins with 47494638."),
        (b"\x0a\x0d\x0d\x0a" + bytes(30), "x is a pcapng file; 'editcap -F pcap' makes a pcap file of it."),
        (ONE[:20], "x ends within its header, after 20 bytes."),
        (pcap([], link=113), "x has frames of link type 113; only Ethernet (1) is read."),
        (ONE[:30], "x ends within the header of a record at byte 24."),
        (ONE[:-1], "x ends within a record at byte 24: 2 of 3 bytes."),
        (
            ONE + struct.pack("<IIII", 0, 0, MOST_BYTES + 1, 0),
            f"x has a record of {MOST_BYTES + 1} bytes at byte 43; {MOST_BYTES} are the most.",
        ),
    ],
)
def test_damaged_files(data, reason):
    with pytest.raises(PcapError) as error:
        list(read_pcap("x", io.BytesIO(data)))
    assert str(error.value) == reason


def test_what_stands_before_the_damage_is_read():
    frames = read_pcap("x", io.BytesIO(pcap([(1, b"abc"), (2, b"def")])[:-1]))
    assert next(frames) == Captured(1.0, b"abc")


@pytest.fixture
def captures(tmp_path):
    def write(primary, secondary):
        paths = tmp_path / "primary.pcap", tmp_path / "secondary.pcap"
        for path, frames in zip(paths, (primary, secondary), strict=True):
            path.write_bytes(pcap(frames))
        return list(map(str, paths))

    return write


def test_a_replay_without_a_difference(captures, capsys):
    ours = [
        (1.0, tcp(500, 7, SYN | ACK)),
        (1.1, tcp(501, 9, ACK, b"hello ")),
        (1.2, tcp(507, 9, ACK | FIN, b"you")),
    ]
    theirs = [(1.01, tcp(90, 7, SYN | ACK)), (1.25, tcp(91, 9, ACK | FIN, b"hello you"))]
    assert main(captures(ours, theirs)) == 0
    assert capsys.readouterr().out == (
        "3 packets of the primary, 2 of the secondary\n3 released without a checkpoint, 0 after one\n0 checkpoints\n"
    )


def test_a_replay_names_each_checkpoint(captures, capsys):
    ours = [(1.0, udp(b"a")), (5.0, udp(b"b")), (5.0, udp(b"c"))]
    theirs = [(1.1, udp(b"x")), (5.1, udp(b"b")), (9.0, udp(b"d"))]
    assert main([*captures(ours, theirs), "--secondary-ms", "200"]) == 0
    flow = "On UDP 192.0.2.10:53 to 198.51.100.7:4000"
    assert capsys.readouterr().out.splitlines() == [
        "3 packets of the primary, 3 of the secondary",
        "1 released without a checkpoint, 2 after one",
        "3 checkpoints, divergence 1, primary_silent 1, secondary_silent 1",
        f"    +0.000 s divergence: {flow} the copies differ at offset 0: the primary said 61, the secondary 78.",
        f"    +4.100 s secondary_silent: {flow} the secondary has not said within 200 ms what the primary has: "
        "a packet that begins with 63.",
        f"    +8.900 s primary_silent: {flow} the primary has not said within 1000 ms what the secondary has: "
        "a packet that begins with 64.",
    ]


def test_a_connection_goes_on_after_a_checkpoint(captures, capsys):
    ours = [(1.0, tcp(500, 7, SYN | ACK)), (1.1, tcp(501, 9, ACK, b"one")), (1.3, tcp(504, 9, ACK, b"two"))]
    theirs = [(1.0, tcp(90, 7, SYN | ACK)), (1.2, tcp(91, 9, ACK, b"0ne")), (1.4, tcp(94, 9, ACK, b"two"))]
    assert main(captures(ours, theirs)) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "2 released without a checkpoint, 1 after one",
        "1 checkpoints, divergence 1",
    ]


def test_only_the_guests_own_frames(captures, capsys):
    paths = captures([(1.0, udp(b"a")), (1.1, udp(b"question", outward=False))], [(1.0, udp(b"a"))])
    assert main([*paths, "--guest-mac", "00:16:3e:00:00:0a"]) == 0
    assert capsys.readouterr().out.startswith("1 packets of the primary, 1 of the secondary\n")
    with pytest.raises(SystemExit):
        main([*paths, "--guest-mac", "00:16"])
    assert "00:16 is not a MAC address of six bytes" in capsys.readouterr().err


def test_a_file_that_cannot_be_read(tmp_path, captures, capsys):
    paths = captures([(1.0, udp(b"a"))], [])
    assert main([paths[0], str(tmp_path / "none.pcap")]) == 2
    assert "none.pcap" in capsys.readouterr().err
    (tmp_path / "secondary.pcap").write_bytes(b"abc")
    assert main(paths) == 2
    assert capsys.readouterr().err.endswith("secondary.pcap is not a pcap file: it begins with 616263.\n")
