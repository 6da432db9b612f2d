"""Our comparator and QEMU's colo-compare on what two copies of a real guest say, on the lab, while a client talks with it.

The guest is protected, and for some seconds of each kind of traffic all that both copies send is captured on the primary's
host (`colo-helper ctl VM capture`). Then both get the same packets at the same moments as then, one after the other: every
checkpoint that was made is made again, and one that either asks for comes half a second later. What filter-rewriter does on the
secondary our rewriter does for colo-compare. Needs QEMU 7.2 (Debian 12) where this runs.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.comparators import Ours, Side, colo_compare
from bench.protection import protected
from bench.tables import machine, table
from colo_helper.proxy.capture import Mark, Patience, Reached, Sent, Whose, read_capture
from colo_helper.proxy.packet import parse
from colo_helper.proxy.rewrite import Rewriter
from colo_helper.quantiles import nearest_rank
from lab import network, redis
from lab.guests import Client
from lab.inventory import vms
from lab.lab import Lab
from lab.playbooks import play_well
from lab.settings import HOSTS, Settings, here
from tests.lab.protected_vm import HELPER, ProtectedVm

_TIMEOUT_S = 60.0
#: For how much longer than the capture a client talks: it begins with the next checkpoint.
_LONGER_S = 4.0
_VALUE = bytes(64 << 10)
#: What happens to the client's packets on their way into the guest, where that is tried (netem).
_DISTURBED = "loss 3% delay 4ms reorder 25%"
#: The cut at which what is counted begins: a comparator remembers what was before the first, and a capture does not have it.
_LEARNS = 2
#: What a checkpoint takes that was asked for, about.
_CHECKPOINT_S = 0.5
_LOOK_S = 0.01
#: What an answer begins with that no two copies give alike.
_UNLIKE = b"clock="

Kept = Sent | Reached
#: Talks with the guest until a monotonic second.
Talk = Callable[[Settings, float], None]
Way = Callable[[Settings, ProtectedVm], AbstractContextManager[None]]


# ----------------------------------------------------------------------------------------------- what clients do


def questions(line: str, *, anew: bool = False) -> Talk:
    """Ask the counting service one question after the other, over one connection or each over its own."""

    def talk(settings: Settings, until_s: float) -> None:
        client = Client(settings, redis.GUEST, timeout_s=_TIMEOUT_S)
        while time.monotonic() < until_s:
            client.ask(line)
            if anew:
                client.close()
        client.close()

    return talk


def to_guest(settings: Settings, until_s: float) -> None:
    """Give Redis one value after the other."""
    connection = redis.Connection(settings, _TIMEOUT_S)
    while time.monotonic() < until_s:
        connection.set("bulk", _VALUE)
    connection.close()


def from_guest(settings: Settings, until_s: float) -> None:
    """Get a value of Redis again and again."""
    connection = redis.Connection(settings, _TIMEOUT_S)
    connection.set("bulk", _VALUE)
    while time.monotonic() < until_s:
        if connection.get("bulk") != _VALUE:
            raise SystemExit("Redis gave another value than it was given")
    connection.close()


@contextmanager
def without_timestamps(settings: Settings, _vm: ProtectedVm) -> Iterator[None]:
    """Connections of the client have no TCP timestamps."""
    where = Path("/proc/sys/net/ipv4/tcp_timestamps")
    before = network.in_namespace(settings, where.read_text)
    network.in_namespace(settings, lambda: where.write_text("0"))
    try:
        yield
    finally:
        network.in_namespace(settings, lambda: where.write_text(before))


@contextmanager
def disturbed(_settings: Settings, vm: ProtectedVm) -> Iterator[None]:
    """The client's packets are lost and overtake one another."""
    tap = f"vif{vm.on(vm.home, f'xl domid {vm.name}').strip()}.0-emu"
    vm.on(vm.home, f"tc qdisc add dev {tap} root netem {_DISTURBED}")
    try:
        yield
    finally:
        vm.on(vm.home, f"tc qdisc del dev {tap} root")


def as_it_is(_settings: Settings, _vm: ProtectedVm) -> AbstractContextManager[None]:
    """Nothing is wrong with the way."""
    return nullcontext()


TRAFFIC: dict[str, tuple[Talk, Way]] = {
    "questions, one connection": (questions("echo alike"), as_it_is),
    "the same without timestamps": (questions("echo alike"), without_timestamps),
    "a connection for each": (questions("echo alike", anew=True), as_it_is),
    "64 KiB to the guest": (to_guest, as_it_is),
    "64 KiB from the guest": (from_guest, as_it_is),
    "questions, lost and overtaken": (questions("echo alike"), disturbed),
    "bulk, lost and overtaken": (from_guest, disturbed),
    "answers that never are alike": (questions("clock"), as_it_is),
}


def captured(settings: Settings, vm: ProtectedVm, talk: Talk, way: Way, seconds: int) -> bytes:
    """Have a client talk, and all that both copies say captured."""
    with way(settings, vm), ThreadPoolExecutor(1) as client:
        talked = client.submit(talk, settings, time.monotonic() + seconds + _LONGER_S)
        vm.on(vm.home, f"{HELPER} ctl {vm.name} capture --seconds {seconds}", seconds + 120)
        talked.result()
    return base64.b64decode(vm.on(vm.home, f"base64 /var/lib/colo/{vm.name}/capture.pcapng", 120))


# ------------------------------------------------------------------------------------------- what becomes of it


@dataclass
class Found:
    """How many packets left, how many checkpoints were asked for, what packets waited, and unlike answers that just left."""

    packets: int = 0
    asked: int = 0
    missed: int = 0
    waited_ms: list[float] = field(default_factory=list)


class _Waits(NamedTuple):
    fed_s: float
    #: How many checkpoints there had been.
    cuts: int


class Again:
    """Gives one side what was captured, in the same time."""

    def __init__(self, side: Side) -> None:
        self.found = Found()
        self._side = side
        self._waiting: defaultdict[bytes, deque[_Waits]] = defaultdict(deque)
        self._cuts = 0
        #: When the checkpoint that was asked for comes.
        self._due_s: float | None = None

    def run(self, kept: Sequence[Kept]) -> Found:
        """Return what came of it."""
        behind_s, made = time.monotonic() - kept[0].time_s, 0
        for one in kept:
            self._wait(one.time_s + behind_s)
            if isinstance(one, Sent):
                self._send(one)
            elif one.mark is Mark.CUT:
                self._cut()
                made += 1
                if made == _LEARNS:
                    self.found = Found()
            else:
                self._side.run()
        self._take(0.2)
        return self.found

    def _send(self, sent: Sent) -> None:
        if sent.whose is Whose.PRIMARY:
            self.found.packets += 1
            self._waiting[sent.frame].append(_Waits(time.monotonic(), self._cuts))
        if sent.whose is not Whose.NETWORK:
            self._side.feed([sent.frame], primary=sent.whose is Whose.PRIMARY)

    def _wait(self, until_s: float) -> None:
        while True:
            now_s = time.monotonic()
            self._take(max(0.0, min(until_s - now_s, _LOOK_S)))
            if self._side.asked() and self._due_s is None:
                self.found.asked += 1
                self._due_s = now_s + _CHECKPOINT_S
            if self._due_s is not None and now_s >= self._due_s:
                self._cut()
                self._side.run()
            if now_s >= until_s:
                return

    def _cut(self) -> None:
        self._take(0.0)
        self._cuts += 1
        self._due_s = None
        self._side.cut()

    def _take(self, timeout_s: float) -> None:
        for frame in self._side.left(timeout_s):
            fed_s, cuts = self._waiting[frame].popleft()
            self.found.waited_ms.append(1000 * (time.monotonic() - fed_s))
            self.found.missed += _UNLIKE in frame and cuts == self._cuts


def with_primarys_numbers(kept: Iterable[Kept]) -> Iterator[Kept]:
    """Yield a capture in which the secondary's packets are as filter-rewriter would send them."""
    rewriter = Rewriter()
    for one in kept:
        if isinstance(one, Reached):
            if one.mark is Mark.CUT:
                rewriter.checkpointed()
        elif one.whose is Whose.NETWORK:
            rewriter.to_guest(parse(one.frame), one.time_s)
        elif one.whose is Whose.SECONDARY:
            yield one._replace(frame=rewriter.from_guest(parse(one.frame), one.time_s))
            continue
        yield one


def row(name: str, kept: Sequence[Kept], ours: Found, theirs: Found) -> list[object]:
    """Return a line of the table."""
    cuts_s = [one.time_s for one in kept if isinstance(one, Reached) and one.mark is Mark.CUT]
    minutes = (cuts_s[-1] - cuts_s[_LEARNS - 1]) / 60
    made = len(cuts_s) - _LEARNS
    asked = [f"{found.asked / minutes:.0f}" for found in (ours, theirs)]
    waited = [
        f"{nearest_rank(sorted(round(1000 * ms) for ms in found.waited_ms), share) / 1000:.1f}"
        for share in (0.5, 0.99)
        for found in (ours, theirs)
    ]
    return [name, ours.packets, f"{made / minutes:.0f}", *asked, ours.missed, theirs.missed, *waited]


HEAD = (
    "traffic",
    "packets",
    "made/min",
    "asked/min, ours",
    "colo-compare",
    "missed, ours",
    "colo-compare",
    "p50 ms, ours",
    "colo-compare",
    "p99 ms, ours",
    "colo-compare",
)


def captures(settings: Settings, directory: Path, seconds: int) -> None:
    """Bring the lab up, have our programs installed, and capture each kind of traffic into a file."""
    Lab(settings, print).up()
    vm = ProtectedVm(settings, redis.GUEST)
    vm.have_guest(HOSTS[0])
    given = {"colo_vms": vms("h1", vm.name)}
    play_well(settings, "site", extra=given, log=settings.checkout / "build" / "bench" / "site.log")
    with protected(settings, vm, "compare"):
        for number, (name, (talk, way)) in enumerate(TRAFFIC.items()):
            data = captured(settings, vm, talk, way, seconds)
            (directory / f"{number}.pcapng").write_bytes(data)
            print(f"{name}: {len(data)} bytes captured", flush=True)


def main() -> None:
    """Capture, unless there are captures, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=15, help="of each kind of traffic")
    parser.add_argument("--again", action="store_true", help="with the captures of the last run")
    options = parser.parse_args()
    if not shutil.which("qemu-system-x86_64"):
        raise SystemExit("qemu-system-x86_64 is not here: apt install qemu-system-x86")
    settings = here()
    directory = settings.checkout / "build" / "bench" / "captures"
    directory.mkdir(parents=True, exist_ok=True)
    if not options.again:
        captures(settings, directory, options.seconds)
    rows = []
    for number, name in enumerate(TRAFFIC):
        path = directory / f"{number}.pcapng"
        rows_of_it = read_capture(str(path), io.BytesIO(path.read_bytes()))
        kept = [one for one in rows_of_it if not isinstance(one, Patience)]
        with closing(Ours()) as ours, colo_compare() as theirs:
            rows.append(
                row(
                    name,
                    kept,
                    Again(ours).run(kept),
                    Again(theirs).run(list(with_primarys_numbers(kept))),
                )
            )
    print(f"\n{options.seconds} s of each, {machine()}:\n")
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
