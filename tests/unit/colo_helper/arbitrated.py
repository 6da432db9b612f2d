"""A protected VM with an arbiter, of which tests hold the clock and the ways to it; shared by tests of who may run."""

import select

from colo_helper.arbiter.emulated import EmulatedArbiter, EmulatedStore
from colo_helper.traffic.framing import FrameReader, RawFrame, pack
from tests.unit.colo_helper.proxy.frames import tcp
from tests.unit.colo_helper.replication_pair import VM


class World:
    """One arbiter, two ways to it, and a clock."""

    def __init__(self):
        self.now = 1000.0
        self.store = EmulatedStore(lambda: self.now)
        self.ways = {host: EmulatedArbiter(self.store) for host in ("xa", "xb")}

    @property
    def kept(self):
        record = self.store.read(VM).record
        return record and (record.owner, record.mode)

    def cut(self, *hosts):
        for host in hosts or self.ways:
            self.ways[host].cut = True

    def mend(self):
        for way in self.ways.values():
            way.cut = False


def nic(host):
    return host.filters[host.find(VM)].ends[0]


def says(end, word):
    """The guest behind a device model's ends says a word."""
    end.from_guest.sendall(pack(RawFrame(tcp(1, payload=word), 0)))


def heard(network):
    """The last bytes that reach the network soon."""
    if not select.select([network], [], [], 0.3)[0]:
        return b""
    frames = FrameReader().feed(network.recv(1 << 16))
    return frames[-1].data[-5:] if frames else b""


def on_network(host):
    return {tap.bridge for tap in host.nics[host.find(VM)].taps()} == {"xenbr0"}


def events(both, role, name):
    return [event["sentence"] for event in both.events(role) if event["event"] == name]


def asks_in_vain(both, world, *hosts):
    """The two lose each other, and those hosts (all of them) the arbiter; the primary's is one of them."""
    world.cut(*hosts)
    both.cut_line()
    return both.phase("primary", "asking")


def taken_over_although_the_owner_goes_on(both, world):
    """An operator's word, while the secondary's host cannot ask."""
    world.cut("xb")
    both.cut_line()
    both.phase("primary", "unprotected")
    both.phase("secondary", "peer_lost")
    assert both.ask("secondary", "takeover")["ok"] is True


def lose_the_device_model(both):
    """QEMU of the primary's guest dies, with what it had said last still held."""
    end = nic(both.primary_host)
    network = end.to_network.dup()
    says(end, b"held.")
    both.primary_host.devices[both.primary_host.find(VM)].dead = True
    end.close()
    return network
