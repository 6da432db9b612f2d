"""Captures: kept within their limit, read, refused with a sentence, and replayed."""

from __future__ import annotations

import io

import pytest

from colo_helper.commands import dispatch
from colo_helper.proxy.capture import Capture, Mark, Patience, Reached, Sent, Whose, read_capture
from colo_helper.proxy.packet import ACK, FIN, SYN
from colo_helper.proxy.pcapng import Captured, Interface, PcapngError, write_pcapng
from tests.unit.colo_helper.proxy.frames import tcp, udp

OURS, THEIRS, NETWORK = Whose.PRIMARY, Whose.SECONDARY, Whose.NETWORK


def captured(kept, most_bytes=1 << 20):
    """A capture of rows (time, whose, frame), or (time, mark, epoch)."""
    capture = Capture(2, most_bytes, Patience(500, 1000))
    for time_s, what, value in kept:
        if isinstance(what, Mark):
            capture.reached(what, value, time_s)
        else:
            capture.sent(what, 1, value, time_s)
    return capture


@pytest.fixture
def replayed(tmp_path, capsys):
    def run(kept, *options):
        kept = [(0.1, Mark.CUT, 0), (0.2, Mark.RUN, 0), (0.9, Mark.CUT, 1), (1.0, Mark.RUN, 1), *kept]
        path = tmp_path / "capture.pcapng"
        with path.open("wb") as file:
            captured(kept).write(file)
        assert dispatch(["replay", str(path), *options]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_what_was_kept_is_read():
    file = io.BytesIO()
    captured([(1.0, Mark.CUT, 7), (1.5, OURS, b"abc"), (2.0, NETWORK, b"")]).write(file)
    file.seek(0)
    assert list(read_capture("x", file)) == [
        Patience(500, 1000),
        Reached(1.0, Mark.CUT, 7),
        Sent(1.5, OURS, 1, b"abc"),
        Sent(2.0, NETWORK, 1, b""),
    ]


def test_nothing_is_kept_beyond_the_limit_and_nothing_with_a_hole():
    capture = captured([(1.0, OURS, bytes(700)), (2.0, OURS, bytes(700)), (3.0, OURS, b"")], most_bytes=1000)
    assert (capture.full, capture.packets) == (True, 1)


@pytest.mark.parametrize(
    ("interface", "data"),
    [("eth0", b"frame"), ("nic0 nobody", b"frame"), ("checkpoints", b"cut now"), ("checkpoints", b"\xff 1")],
)
def test_a_capture_of_another_program(interface, data):
    file = io.BytesIO()
    where = Interface(interface, 147 if interface == "checkpoints" else 1)
    write_pcapng(file, [where], [Captured(1.0, where, data)])
    file.seek(0)
    with pytest.raises(PcapngError) as error:
        list(read_capture("x", file))
    assert str(error.value) == (
        "x is no capture of a comparator: 'colo-helper ctl VM capture' writes those. "
        f"It has {data!r} on the interface '{interface}'."
    )


def test_a_replay_without_a_difference(replayed):
    assert replayed(
        [
            (1.0, OURS, tcp(500, 7, SYN | ACK)),
            (1.01, THEIRS, tcp(90, 7, SYN | ACK)),
            (1.1, OURS, tcp(501, 9, ACK, b"hello ")),
            (1.15, NETWORK, tcp(501, 9, ACK, b"another's")),
            (1.2, OURS, tcp(507, 9, ACK | FIN, b"you")),
            (1.25, THEIRS, tcp(91, 9, ACK | FIN, b"hello you")),
            (1.3, Mark.CUT, 2),
        ]
    ) == [
        "3 packets of the primary, 2 of the secondary, 1 checkpoints made, in 0.4 s",
        "3 left without a checkpoint, 0 needed one",
        "0 checkpoints asked for",
    ]


def test_a_replay_names_each_checkpoint(replayed):
    flow = "On UDP 192.0.2.10:53 to 198.51.100.7:4000"
    kept = [
        (1.0, OURS, udp(b"a")),
        (1.1, THEIRS, udp(b"x")),
        (1.2, OURS, udp(b"not asked for twice")),
        (2.0, Mark.CUT, 2),
        (2.1, Mark.RUN, 2),
        (5.0, OURS, udp(b"b")),
        (5.0, OURS, udp(b"c")),
        (5.1, THEIRS, udp(b"b")),
        (6.0, Mark.CUT, 3),
        (6.1, Mark.RUN, 3),
        (9.0, THEIRS, udp(b"d")),
        (11.0, Mark.CUT, 4),
    ]
    assert replayed(kept, "--secondary-ms", "200") == [
        "4 packets of the primary, 3 of the secondary, 3 checkpoints made, in 10.1 s",
        "1 left without a checkpoint, 3 needed one",
        "3 checkpoints asked for",
        f"    +0.200 s divergence: {flow} the copies differ at offset 0: the primary said 61, the secondary 78.",
        f"    +4.300 s secondary_silent: {flow} the secondary has not said within 200 ms what the primary has: "
        "a packet that begins with 63.",
        f"    +9.100 s primary_silent: {flow} the primary has not said within 1000 ms what the secondary has: "
        "a packet that begins with 64.",
    ]


def test_a_connection_goes_on_after_a_checkpoint_with_what_came_meanwhile(replayed):
    kept = [
        (1.0, OURS, tcp(500, 7, SYN | ACK)),
        (1.0, THEIRS, tcp(90, 7, SYN | ACK)),
        (1.1, OURS, tcp(501, 9, ACK, b"one")),
        (1.2, THEIRS, tcp(91, 9, ACK, b"0ne")),
        (1.5, Mark.CUT, 8),
        (1.6, THEIRS, tcp(504, 9, ACK, b"two")),  # the primary's numbers, and before the primary itself
        (1.7, OURS, tcp(504, 9, ACK, b"two")),
        (1.8, Mark.RUN, 8),
    ]
    assert replayed(kept)[:3] == [
        "3 packets of the primary, 3 of the secondary, 1 checkpoints made, in 0.9 s",
        "2 left without a checkpoint, 1 needed one",
        "1 checkpoints asked for",
    ]


def test_the_first_epoch_is_only_learned_from(tmp_path, capsys):
    kept = [
        (1.0, Mark.CUT, 1),
        (1.1, Mark.RUN, 1),
        (1.2, OURS, udp(b"a")),
        (1.3, THEIRS, udp(b"x")),
        (2.0, Mark.CUT, 2),
    ]
    path = tmp_path / "capture.pcapng"
    with path.open("wb") as file:
        captured(kept).write(file)
    assert dispatch(["replay", str(path)]) == 0
    assert capsys.readouterr().out == (
        "It has one epoch only, from which a comparator learns what there is: capture for longer.\n"
    )


def test_a_file_that_cannot_be_read(tmp_path, capsys):
    assert dispatch(["replay", str(tmp_path / "none.pcapng")]) == 2
    assert "none.pcapng" in capsys.readouterr().err
    (tmp_path / "bad.pcapng").write_bytes(b"abcdefgh")
    assert dispatch(["replay", str(tmp_path / "bad.pcapng")]) == 2
    assert capsys.readouterr().err.endswith("bad.pcapng is not a pcapng file: it begins with 61626364.\n")
