"""A primary and a secondary in two threads, joined as in production but for SSH and Xen.

The channels go through the real listener and the real forced command's hand-over. The test stands in the middle of
them: a ``Relay`` passes frames on, one way of one connection, and can break at a given number of frames of a kind.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo_helper.arbiter.emulated import EmulatedArbiter
from colo_helper.arbiter.right import ByHand, Right
from colo_helper.arbiter.tenure import Tenure
from colo_helper.arbiter.times import Times
from colo_helper.channel import attach
from colo_helper.channel.dialer import ConnectError, Connection, End
from colo_helper.channel.listener import AttachListener
from colo_helper.channel.opening import Opening
from colo_helper.channel.session import BACK, FORWARD, LANES
from colo_helper.channel.stream import ChannelLostError, FdStream, read_frame, write_frame
from colo_helper.channel.wire import Kind, encode
from colo_helper.control.protocol import Request
from colo_helper.devices.filters import wait_until_taken
from colo_helper.monitor.monitor import Monitor
from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.state import State
from colo_helper.replication import connect
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.refusals import attach_refusal
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.ownership import Ownership
from colo_helper.replication.primary import Primary
from colo_helper.replication.secondary import Secondary
from colo_helper.replication.succession import Succession
from tests.unit.colo_helper.emulated_host import EmulatedHost, running_guest

VM = "h1"
#: Of a lease, by the arbiter's clock; renewed by the real one.
TIMES = Times(lease_s=10, renew_s=0.02, mute_s=7, still_s=9)
PATIENCE_S = 10.0
INTERVAL_MS = 3_600_000


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for what another thread will do."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.002)
    raise AssertionError(f"never happened: {what}")


def config(role: str, timeout_ms: int = 2000, output: str = "compare") -> Config:
    peer = "xb" if role == "primary" else "xa"
    return Config(VM, role, peer, timeout_ms, "xenbr0", "192.0.2.1", 22, INTERVAL_MS, output=output)


class Relay:
    """Passes one way's frames on. ``cut`` = (kind, n): ``on_cut`` happens instead of passing the n-th such frame on.

    ``seen`` outlives the connection; ``frozen`` loses everything and closes nothing.
    """

    def __init__(self, line: Line, source: FdStream, target: FdStream, seen: list[Kind]) -> None:
        self.line, self.source, self.target, self.seen = line, source, target, seen
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        line = self.line
        try:
            while True:
                frame = read_frame(self.source, lambda: None, 1.0)
                if line.frozen.is_set():
                    continue
                self.seen.append(frame.kind)
                if line.cut == (frame.kind, self.seen.count(frame.kind)):
                    line.cut = None
                    if line.cut_after:
                        if line.on_cut is line.cut_all:
                            line.frozen.set()  # what follows that frame is not let through meanwhile
                        self._pass_on(frame)
                        if line.frozen.is_set() or frame.kind is Kind.TAKEN:
                            self._wait_until_heard()
                    line.on_cut()
                elif not self._pass_on(frame):
                    return  # the other way finds the end too, after what that side had still to say
        except ChannelLostError:
            self.source.close()
            self.target.close()
            shut(self.target)

    def _pass_on(self, frame: Any) -> bool:
        """Tell whether the target still takes frames."""
        buffers = encode(frame.kind, frame.head, frame.parts, frame.number)
        try:
            write_frame(self.target, buffers, lambda: None, 1.0)
        except ChannelLostError:
            return False
        return True

    def _wait_until_heard(self) -> None:
        """The peer has read it, and had a moment to hand it on: a loss of the session that comes first would hide it."""
        with socket.socket(fileno=os.dup(self.target._write_fd)) as end:
            wait_until_taken(end, PATIENCE_S)
        time.sleep(0.05)


class Line:
    """What all relays share: whether and where the line breaks."""

    def __init__(self, cut_all: Callable[[], None]) -> None:
        self.frozen = threading.Event()
        self.cut: tuple[Kind, int] | None = None
        self.cut_after = False
        self.cut_all = self.on_cut = cut_all
        self.dead = False


def shut(stream: FdStream) -> None:
    """Close a connection under whoever uses it."""
    for fd in {stream._read_fd, stream._write_fd}:
        sock = socket.socket(fileno=os.dup(fd))
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
        finally:
            sock.close()


class LineDialer:
    """What Dialer, sshd and the forced command do: one socket as stdin and stdout, handed to the listener."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.refusals: list[str] = []
        self.without: set[str] = set()

    def open(self, channel: str, _timeout_s: float) -> Connection:
        """See Dialer."""
        pair = self.pair
        if pair.line.dead:
            raise ConnectError("auth_refused", "The test's host is gone.")
        if channel in self.without:
            raise ConnectError("unreachable", "Connection refused.")
        ours, theirs = socket.socketpair()
        fd = theirs.detach()

        def forced_command() -> None:
            try:
                attach.hand_over(str(pair.directory / "attach.sock"), channel, fd, fd)
            except attach.AttachRefusedError as error:
                self.refusals.append(str(error))
                shut(far)
            except OSError:
                shut(far)  # the replicator has ended meanwhile
            finally:
                os.close(fd)

        here, near_socket = socket.socketpair()
        near_fd, far_fd = near_socket.detach(), ours.detach()
        near, far = FdStream(near_fd, near_fd), FdStream(far_fd, far_fd)
        threading.Thread(target=forced_command, daemon=True).start()
        pair.connections[channel] = (near, far)
        for way, source, target in (("down", near, far), ("up", far, near)):
            relay = Relay(pair.line, source, target, pair.seen[channel, way])
            pair.relays.append(relay)
            relay.thread.start()
        return Connection(len(pair.relays), channel, here, "none", "none", 0)

    def why(self, _number: int) -> End | None:
        """See Dialer."""
        return End("refused", self.refusals[-1]) if self.refusals else None

    def idle(self) -> None:
        """See Dialer."""

    def close(self) -> None:
        """See Dialer."""


@contextmanager
def pairs(**defaults: Any) -> Iterator[Callable[..., Pair]]:
    """Give what makes pairs; those it has made are torn down at the end."""
    made: list[Pair] = []

    def make(**options: Any) -> Pair:
        made.append(Pair(**{**defaults, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@contextmanager
def pairs_that_retry(monkeypatch: Any, timeout_ms: int) -> Iterator[Callable[..., Pair]]:
    """As ``pairs``; a primary that lost its secondary looks for it again at once."""
    monkeypatch.setattr("colo_helper.replication.decisions.primary.FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("colo_helper.replication.decisions.primary.LAST_RETRY_S", 0.2)
    with pairs(timeout_ms=timeout_ms) as make:
        yield make


@dataclass
class Pair:
    """Start with ``start()``; everything is torn down by ``close()``."""

    timeout_ms: int = 2000
    output: str = "compare"
    primary_host: EmulatedHost = field(default_factory=EmulatedHost)
    secondary_host: EmulatedHost = field(default_factory=EmulatedHost)
    exit_codes: dict[str, int] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    #: State files of earlier runs: the secondary's, the primary's.
    saved: dict[str, Any] | None = None
    p_saved: dict[str, Any] | None = None
    only_secondary: bool = False
    #: The hosts' names: the primary's, the secondary's.
    names: tuple[str, str] = ("xa", "xb")
    #: Each host's way to the arbiter, by the host's name; None where operators decide.
    arbiters: dict[str, EmulatedArbiter] | None = None
    before_link: Callable[[Pair], None] = lambda _pair: None
    sessions: int = 0

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        if not self.primary_host.domains:
            self.primary_host.add(VM, running_guest())
        self.p_inbox, self.s_inbox = Inbox(), Inbox()
        self.p_monitor, self.s_monitor = self._monitor("primary"), self._monitor("secondary")
        self.listener = AttachListener(
            self.directory / "attach.sock",
            VM,
            lambda: attach_refusal(VM, self.s_monitor.state.phase, arbiter=self.arbiters is not None),
            lambda name: connect.session(
                config("secondary", self.timeout_ms), self.s_monitor, self.s_inbox, name
            ),
            self.s_inbox.put_session,
            group="",
        )
        #: Whom each side asks who may run.
        self.rights = {role: self._right(role) for role in ("primary", "secondary")}
        self.line = Line(self.cut_line)
        #: Kinds that have passed, by (channel, way): ``down`` is from the primary to the secondary.
        self.seen: dict[tuple[str, str], list[Kind]] = {
            (channel, way): [] for channel in LANES for way in ("down", "up")
        }
        self.connections: dict[str, tuple[FdStream, FdStream]] = {}
        self.relays: list[Relay] = []
        self.dialer = LineDialer(self)

    def _monitor(self, role: str) -> Monitor:
        directory = self.directory / role
        directory.mkdir()
        phase = "connecting" if role == "primary" else "waiting"
        state = State(VM, role, phase, "The test starts.", "peer")
        return Monitor(directory, state, Notifier(""), decides=self.arbiters is None)

    def _right(self, role: str) -> Right:
        if self.arbiters is None:
            return ByHand()
        name, monitor, inbox = {
            "primary": (self.names[0], self.p_monitor, self.p_inbox),
            "secondary": (self.names[1], self.s_monitor, self.s_inbox),
        }[role]
        arbiter = self.arbiters[name]
        return Tenure(
            arbiter, VM, name, TIMES, monitor.event, inbox.put_trouble, arbiter.clock, inbox.watch.stuck
        )

    # -- wiring

    def connect(self, configuration: Config, monitor: Monitor, inbox: Inbox) -> Conversation:
        """The primary's connector."""
        self.sessions += 1
        session = connect.session(
            configuration, monitor, inbox, f"session {self.sessions}", Opening(VM, self.dialer, PATIENCE_S)
        )
        try:
            session.open()
        except ChannelLostError as error:
            session.close()
            raise SessionEndedError(Cause.PEER_LOST, str(error)) from error
        self.before_link(self)
        return Conversation(session, inbox)

    @property
    def forward(self) -> list[Kind]:
        """What has passed from the primary on its channel."""
        return self.seen[FORWARD, "down"]

    @property
    def back(self) -> list[Kind]:
        """What has passed from the secondary on its channel."""
        return self.seen[BACK, "up"]

    def break_connection(self, channel: str) -> None:
        """One connection breaks; both hosts live."""
        for stream in self.connections[channel]:
            shut(stream)

    def cut_line(self) -> None:
        """All connections break and none can be made, as when a host dies."""
        self.line.frozen.set()
        self.line.dead = True
        for channel in self.connections:
            self.break_connection(channel)

    def freeze_line(self) -> None:
        """Nothing comes through any more, and nothing is closed, as when a cable is cut."""
        self.line.frozen.set()

    def cut_at(self, direction: str, kind: Kind, *, passed: bool) -> None:
        """Cut at the next frame of a kind on the way ``forward`` or ``back``; ``passed``: after it, not instead of it."""
        seen = self.forward if direction == "forward" else self.back
        self.line.cut, self.line.cut_after = (kind, seen.count(kind) + 1), passed

    def events(self, role: str) -> list[dict[str, Any]]:
        """What one side has written down."""
        path = self.directory / role / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def saved_by(self, role: str) -> dict[str, Any]:
        """The state file of one side."""
        state: dict[str, Any] = json.loads((self.directory / role / "state.json").read_text())
        return state

    def mend_line(self) -> None:
        """The peer can be reached again."""
        self.line.frozen.clear()
        self.line.dead = False

    # -- running

    def start(self) -> Pair:
        self.primary = Primary(
            config("primary", self.timeout_ms, self.output),
            self.primary_host,
            self.p_monitor,
            self.p_inbox,
            self.connect,
            Ownership(VM, self.names[1], self.p_monitor, self.p_inbox, self.rights["primary"]),
            self.p_saved,
        )
        self.secondary = Secondary(
            config("secondary", self.timeout_ms),
            self.secondary_host,
            self.s_monitor,
            self.s_inbox,
            Succession(self.s_monitor, self.rights["secondary"]),
            self.saved,
        )
        self.listener.start()
        for role, side in (("secondary", self.secondary), ("primary", self.primary)):
            if self.only_secondary and role == "primary":
                continue
            thread = threading.Thread(target=self._run, args=(role, side), daemon=True, name=role)
            self.threads.append(thread)
            thread.start()
        return self

    def _run(self, role: str, side: Any) -> None:
        self.exit_codes[role] = side.run()

    def replicating(self) -> Pair:
        """Wait until both copies run, over all channels."""
        self.phase("primary", "replicating")
        self.phase("secondary", "replicating")
        if self.primary.conversation and not self.dialer.without:
            figures = self.primary.conversation.figures
            eventually(lambda: not figures()["broken"], "the heartbeat, which is made in the background")
        return self

    def phase(self, role: str, phase: str) -> str:
        """Wait for a phase of one side and return its reason."""
        monitor = self.p_monitor if role == "primary" else self.s_monitor
        eventually(lambda: monitor.state.phase == phase, f"{role} {phase}, it is {monitor.state}")
        if phase == "active":  # that is written down before it is on the network, and told after that
            eventually(lambda: any(one["event"] == phase for one in self.events(role)), "on the network")
        return monitor.state.reason

    def ended(self, role: str) -> int:
        return eventually(
            lambda: (role in self.exit_codes) and [self.exit_codes[role]], f"the end of the {role}"
        )[0]

    def ask(self, role: str, verb: str, reason: str = "", *, forced: bool = False) -> dict[str, Any]:
        request = Request(verb, reason, forced)
        (self.p_inbox if role == "primary" else self.s_inbox).put_request(request)
        return request._answer.get(timeout=PATIENCE_S)

    def both_run(self) -> bool:
        """Wait until both guests run between two checkpoints."""
        return eventually(lambda: self.guest.running and self.copy and self.copy.running, "both run")

    def ask_without_waiting(self, role: str, verb: str, reason: str = "") -> None:
        """With a reason it is forced."""
        inbox = self.p_inbox if role == "primary" else self.s_inbox
        inbox.put_request(Request(verb, reason, reason != ""))

    @property
    def guest(self):
        return self.primary_host.domains[VM]

    @property
    def copy(self):
        return self.secondary_host.domains.get(VM)

    def close_replicators(self) -> None:
        """Both replicators are gone, as if killed: nothing of the hosts is put in order for it."""
        hosts = self.primary_host, self.secondary_host
        before = [(dict(host.domains), dict(host.devices), dict(host.nics)) for host in hosts]
        frozen = [
            (domain, domain.pause_count, domain.log_dirty)
            for host in hosts
            for domain in host.domains.values()
        ]
        marks = [path for host in hosts if host.run_dir for path in host.run_dir.iterdir()]
        self.cut_line()
        for inbox in (self.p_inbox, self.s_inbox):
            inbox.put_stop("The test goes on without it.")
        for thread in self.threads:
            thread.join(PATIENCE_S)
        self._close_rights()
        for host, (domains, devices, nics) in zip(hosts, before, strict=True):
            host.domains, host.devices, host.nics = domains, devices, nics
        for domain, pauses, logged in frozen:
            domain.pause_count, domain.own_pauses, domain.log_dirty = pauses, 0, logged
        for path in marks:
            path.touch()
        for host in hosts:
            for devices in host.devices.values():
                devices.closed = False

    def _close_rights(self) -> None:
        for right in self.rights.values():
            right.close()

    def close(self) -> None:
        for inbox in (self.p_inbox, self.s_inbox):
            inbox.put_stop("The test ends.")
        for thread in self.threads:
            thread.join(0.5)  # in order, when both sides still can
        self.cut_line()
        for thread in self.threads:
            thread.join(PATIENCE_S)
        self._close_rights()
        self.listener.close()
        for relay in self.relays:
            relay.source.close()
            relay.thread.join(PATIENCE_S)
        for relay in self.relays:
            relay.source.release()
        shutil.rmtree(self.directory)
        assert not any(thread.is_alive() for thread in self.threads)
