"""A primary and a secondary in two threads, joined as in production but for SSH and Xen.

The channels go through the real listener and the real forced command's hand-over. The test stands in the middle of
them: ``Wire`` passes frames on from the primary and can cut after a given number of frames of a kind.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo_helper.channel import attach
from colo_helper.channel.listener import AttachListener
from colo_helper.channel.stream import ChannelLostError, FdStream, read_frame, write_frame
from colo_helper.channel.wire import Kind, encode
from colo_helper.control.protocol import Request
from colo_helper.monitor.monitor import Monitor
from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.state import State
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions import attach_refusal
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.primary import Primary
from colo_helper.replication.secondary import Secondary
from tests.unit.colo_helper.emulated_host import EmulatedHost, running_guest

VM = "h1"
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


def config(role: str, timeout_ms: int = 2000) -> Config:
    peer = "xb" if role == "primary" else "xa"
    return Config(VM, role, peer, timeout_ms, "xenbr0", "192.0.2.1", 22, INTERVAL_MS)


class Relay:
    """Passes one direction's frames on. ``cut`` = (kind, n) breaks the line instead of passing the n-th such frame."""

    def __init__(self, source: FdStream, target: FdStream) -> None:
        self.source, self.target = source, target
        self.seen: list[Kind] = []
        self.cut: tuple[Kind, int] | None = None
        self.cut_after = False
        self.frozen = threading.Event()
        self.other: Relay = self
        self.on_cut: Callable[[], None] = lambda: None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                frame = read_frame(self.source, lambda: None, 1.0)
                if self.frozen.is_set():
                    continue
                self.seen.append(frame.kind)
                if self.cut == (frame.kind, self.seen.count(frame.kind)):
                    self.other.frozen.set()  # nothing of an answer gets through either
                    if self.cut_after:
                        write_frame(
                            self.target, encode(frame.kind, frame.head, frame.parts), lambda: None, 1.0
                        )
                    self.on_cut()
                    return
                write_frame(self.target, encode(frame.kind, frame.head, frame.parts), lambda: None, 1.0)
        except ChannelLostError:
            if not self.frozen.is_set():  # through a cut cable not even the end comes
                self.on_cut()


@dataclass
class Pair:
    """Start with ``start()``; everything is torn down by ``close()``."""

    timeout_ms: int = 2000
    primary_host: EmulatedHost = field(default_factory=EmulatedHost)
    secondary_host: EmulatedHost = field(default_factory=EmulatedHost)
    exit_codes: dict[str, int] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    forward: Relay | None = None
    back: Relay | None = None
    saved: dict[str, Any] | None = None
    only_secondary: bool = False
    before_link: Callable[[Pair], None] = lambda _pair: None

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        if not self.primary_host.domains:
            self.primary_host.add(VM, running_guest())
        self.p_inbox, self.s_inbox = Inbox(), Inbox()
        self.p_monitor, self.s_monitor = self._monitor("primary"), self._monitor("secondary")
        self.listener = AttachListener(
            self.directory / "attach.sock",
            VM,
            lambda: attach_refusal(VM, self.s_monitor.state.phase),
            self.s_inbox.put_session,
            group="",
        )
        self.streams: list[FdStream] = []

    def _monitor(self, role: str) -> Monitor:
        directory = self.directory / role
        directory.mkdir()
        phase = "connecting" if role == "primary" else "waiting"
        return Monitor(directory, State(VM, role, phase, "The test starts.", "peer"), Notifier(""))

    # -- wiring

    def _attach(self, channel: str) -> FdStream:
        """What sshd and the forced command do: one socket as stdin and stdout, handed to the listener."""
        ours, theirs = socket.socketpair()
        fd = theirs.detach()

        def forced_command() -> None:
            try:
                attach.hand_over(str(self.directory / "attach.sock"), channel, fd, fd)
            except attach.AttachRefusedError as error:
                self.refusals.append(str(error))
            finally:
                os.close(fd)

        threading.Thread(target=forced_command, daemon=True).start()
        ours_fd = ours.detach()
        stream = FdStream(ours_fd, ours_fd)
        write_frame(
            stream,
            encode(Kind.OPEN, {"session": "0123456789", "channel": channel, "vm": VM}),
            lambda: None,
            1,
        )
        return stream

    refusals: list[str] = field(default_factory=list)

    def connect(self, configuration: Config, inbox: Inbox) -> Conversation:
        """The primary's connector: two relayed channels."""
        forward_peer, back_peer = self._attach("forward"), self._attach("back")
        f_here, f_there = socket.socketpair()
        b_here, b_there = socket.socketpair()
        streams = []
        for sock in (f_here, f_there, b_here, b_there):
            fd = sock.detach()
            streams.append(FdStream(fd, fd))
        forward, forward_in, back, back_out = streams
        self.forward = Relay(forward_in, forward_peer)
        self.back = Relay(back_peer, back_out)
        self.forward.other, self.back.other = self.back, self.forward
        self.streams += [*streams, forward_peer, back_peer]
        self.forward.on_cut = self.back.on_cut = self.cut_line
        self.before_link(self)
        return Conversation(forward, back, configuration.peer_timeout_ms / 1000, inbox)

    def cut_line(self) -> None:
        """Both connections break, as when a host dies."""
        for stream in self.streams:
            for fd in {stream._read_fd, stream._write_fd}:
                sock = socket.socket(fileno=os.dup(fd))
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
                finally:
                    sock.close()

    def freeze_line(self) -> None:
        """Nothing comes through any more, and nothing is closed, as when a cable is cut."""
        self.forward.frozen.set()
        self.back.frozen.set()

    # -- running

    def start(self) -> Pair:
        self.primary = Primary(
            config("primary", self.timeout_ms), self.primary_host, self.p_monitor, self.p_inbox, self.connect
        )
        self.secondary = Secondary(
            config("secondary", self.timeout_ms),
            self.secondary_host,
            self.s_monitor,
            self.s_inbox,
            self.directory / "secondary",
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
        """Wait until both copies run."""
        self.phase("primary", "replicating")
        self.phase("secondary", "replicating")
        return self

    def phase(self, role: str, phase: str) -> str:
        """Wait for a phase of one side and return its reason."""
        monitor = self.p_monitor if role == "primary" else self.s_monitor
        eventually(lambda: monitor.state.phase == phase, f"{role} {phase}, it is {monitor.state}")
        return monitor.state.reason

    def ended(self, role: str) -> int:
        return eventually(
            lambda: (role in self.exit_codes) and [self.exit_codes[role]], f"the end of the {role}"
        )[0]

    def ask(self, role: str, verb: str) -> dict[str, Any]:
        request = Request(verb)
        (self.p_inbox if role == "primary" else self.s_inbox).put_request(request)
        return request._answer.get(timeout=PATIENCE_S)

    def both_run(self) -> bool:
        """Wait until both guests run between two checkpoints."""
        return eventually(lambda: self.guest.running and self.copy and self.copy.running, "both run")

    def ask_without_waiting(self, role: str, verb: str) -> None:
        (self.p_inbox if role == "primary" else self.s_inbox).put_request(Request(verb))

    @property
    def guest(self):
        return self.primary_host.domains[VM]

    @property
    def copy(self):
        return self.secondary_host.domains.get(VM)

    def close(self) -> None:
        for inbox in (self.p_inbox, self.s_inbox):
            inbox.put_stop("The test ends.")
        self.cut_line()
        for thread in self.threads:
            thread.join(PATIENCE_S)
        for relay in (self.forward, self.back):
            if relay:
                relay.source.close()
                relay.thread.join(PATIENCE_S)
        self.listener.close()
        for stream in self.streams:
            stream.release()
        shutil.rmtree(self.directory)
        assert not any(thread.is_alive() for thread in self.threads)
