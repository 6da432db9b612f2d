"""Network filters in a real QEMU, put there and taken away while it runs."""

import select

import pytest

from colo_helper.devices.filters import QmpFilters, wait_until_taken
from colo_helper.devices.interface import DeviceError
from colo_helper.traffic.framing import FrameReader, FramingError, RawFrame, pack
from tests.unit.colo_helper.qemu import PROGRAM, machine

MODELS = ["virtio-net-pci", "e1000"]
FRAME = b"\xff" * 6 + b"\x00\x16\x3e\x00\x00\x99" + b"\x08\x06" + b"who is it?".ljust(46, b"\0")
needs_qemu = pytest.mark.skipif(PROGRAM is None, reason="qemu-system-x86_64 is not here")


def frames(end, timeout_s=10.0):
    """Return the frames that come first."""
    reader, found = FrameReader(), []
    while not found or reader.cut:
        assert select.select([end], [], [], timeout_s)[0], "nothing came"
        data = end.recv(1 << 16)
        assert data, "QEMU has closed the socket"
        found += reader.feed(data)
    return found


@pytest.fixture
def two_nics(tmp_path):
    with machine(tmp_path, *MODELS) as running:
        yield running, QmpFilters(running.devices)


def switched_on(filters, nic, *, mirror):
    attached = filters.attach(mirror=mirror)
    filters.switch(on=True)
    return attached[nic]


def names(devices):
    return [one["name"] for one in devices.command("qom-list", path="/objects")] + [
        one["label"] for one in devices.command("query-chardev") if one["label"].startswith("colo-")
    ]


@needs_qemu
def test_every_nic_is_taken_hold_of(two_nics):
    _running, filters = two_nics
    nics = filters.attach(mirror=True)
    assert [(nic.name, nic.to_guest) for nic in nics] == [("net0", None), ("net1", None)]


@needs_qemu
@pytest.mark.parametrize("nic", [0, 1], ids=MODELS)
def test_what_the_guest_sends_comes_to_us_and_leaves_only_by_us(two_nics, nic):
    running, filters = two_nics
    attached = switched_on(filters, nic, mirror=True)
    running.devices.command("cont")
    running.devices.announce()
    announcement = frames(attached.from_guest)[0]
    ethernet = announcement.data[announcement.vnet_bytes :]
    assert ethernet[6:12] == bytes([0x00, 0x16, 0x3E, 0, 0, nic])
    assert select.select([running.networks[nic]], [], [], 0.3)[0] == []
    attached.to_network.sendall(pack(announcement))
    assert running.networks[nic].recv(2048) == ethernet
    assert wait_until_taken(attached.to_network, 5)


@needs_qemu
@pytest.mark.parametrize("mirror", [True, False])
def test_what_the_network_sends_comes_to_us(two_nics, mirror):
    running, filters = two_nics
    attached = switched_on(filters, 1, mirror=mirror)
    running.networks[1].send(FRAME)
    assert frames(attached.from_network) == [RawFrame(FRAME, 0)]
    assert (attached.to_guest is None) == mirror


@needs_qemu
def test_a_filter_that_is_off_lets_packets_pass_and_still_takes_what_we_write(two_nics):
    running, filters = two_nics
    attached = switched_on(filters, 1, mirror=True)
    filters.switch(on=False)
    running.devices.command("cont")
    running.devices.announce()
    assert running.networks[1].recv(2048)[6:12] == bytes([0x00, 0x16, 0x3E, 0, 0, 1])
    assert select.select([attached.from_guest], [], [], 0.1)[0] == []
    attached.to_network.sendall(pack(RawFrame(FRAME, 0)))
    received = {running.networks[1].recv(2048) for _ in range(5)}
    assert FRAME in received or running.networks[1].recv(2048) == FRAME


@needs_qemu
def test_a_device_model_that_waits_for_us_to_read_is_let_go(two_nics):
    """It answers no command then; the filters go nevertheless, and packets flow."""
    running, filters = two_nics
    running.devices._timeout_s = 1.0
    switched_on(filters, 1, mirror=True)
    flood(running.networks[1])
    filters.detach()
    running.devices.command("cont")
    running.devices.announce()
    assert running.networks[1].recv(2048)[6:12] == bytes([0x00, 0x16, 0x3E, 0, 0, 1])


def flood(network):
    """Send until the device model has not read for a while."""
    network.settimeout(0.5)
    with pytest.raises(TimeoutError):
        send_for_ever(network)
    network.settimeout(10)


def send_for_ever(network):
    for _ in range(20_000):
        network.send(bytes(1400))


@needs_qemu
def test_packets_flow_by_themselves_after_the_filters_are_gone(two_nics):
    running, filters = two_nics
    before = names(running.devices)
    attached = filters.attach(mirror=False)
    assert len(names(running.devices)) == len(before) + 2 * (2 + 4)
    filters.detach()
    assert names(running.devices) == before
    assert attached[0].from_guest.fileno() == -1
    running.devices.command("cont")
    running.devices.announce()
    assert running.networks[0].recv(2048)[6:12] == bytes([0x00, 0x16, 0x3E, 0, 0, 0])


@needs_qemu
def test_what_a_program_left_that_crashed_is_taken_away_first(two_nics):
    running, filters = two_nics
    filters.attach(mirror=False)
    after = names(running.devices)
    another = QmpFilters(running.devices)
    another.attach(mirror=False)
    assert names(running.devices) == after


@needs_qemu
def test_a_failure_half_way_leaves_nothing(two_nics, monkeypatch):
    running, filters = two_nics
    before = names(running.devices)
    command = running.devices.command

    def failing(name, **arguments):
        if name == "object-add" and arguments["netdev"] == "net1":
            raise DeviceError("no")
        return command(name, **arguments)

    monkeypatch.setattr(running.devices, "command", failing)
    with pytest.raises(DeviceError, match=r"^no$"):
        filters.attach(mirror=True)
    assert names(running.devices) == before


def test_frames_come_out_however_the_stream_is_cut():
    row = [RawFrame(b"\0" * 12 + FRAME, 12), RawFrame(b"", 0), RawFrame(FRAME, 0)]
    stream = b"".join(map(pack, row))
    for size in (1, 3, 7, len(stream)):
        reader = FrameReader()
        got = [frame for at in range(0, len(stream), size) for frame in reader.feed(stream[at : at + size])]
        assert got == row
        assert not reader.cut


@pytest.mark.parametrize("lengths", [(1 << 20, 0), (10, 11)])
def test_lengths_that_cannot_be_are_refused(lengths):
    with pytest.raises(FramingError, match="cannot be"):
        FrameReader().feed(b"".join(one.to_bytes(4, "big") for one in lengths))
