"""A replicator of the campaign: the product's own, in a process of its own, on a host that the world emulates.

What is not the product's: the hypervisor, device model and taps (asked for over a socket), the arbiter's client, the dialer,
and waits between attempts, which are shorter so that a hundred thousand faults end before the machine does.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from colo_helper.arbiter.tenure import Tenure
from colo_helper.arbiter.times import Times
from colo_helper.channel.listener import AttachListener
from colo_helper.channel.opening import Opening
from colo_helper.channel.stream import ChannelLostError
from colo_helper.control.protocol import Request
from colo_helper.hypervisor.interface import HypervisorError
from colo_helper.monitor import monitor as monitor_module
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.state import State
from colo_helper.replication import active_copy, connect, ownership, succession, takeover
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions import primary as primary_decisions
from colo_helper.replication.decisions.refusals import attach_refusal, role_refusal, verb_refusal
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.guest import LOCAL_ERRORS
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.ownership import Ownership
from colo_helper.replication.primary import Primary
from colo_helper.replication.secondary import Secondary
from colo_helper.replication.succession import Succession
from colo_helper.traffic import pump, sides
from tests.chaos.emulated.page import SharedPage
from tests.chaos.emulated.remote import RemoteArbiter, RemoteHost, WorldDialer
from tests.chaos.emulated.rpc import Caller, KilledError

VM = "h1"
#: Exit status of a replicator that ended by an error that nobody expected.
CRASHED = 70
#: prctl(2).
_PR_SET_PDEATHSIG = 1
#: How long a connection may take, in seconds.
_DIAL_S = 0.4


@dataclass(frozen=True)
class Birth:
    """All that a new replicator is given. ``directory`` has ``disk`` (outlives the host's boots) and ``run`` (does not)."""

    host: str
    peer: str
    index: int
    role: str
    directory: Path
    page: SharedPage
    times: Times
    timeout_ms: int
    interval_ms: int
    output: str
    hardware: socket.socket
    arbiter: socket.socket
    control: socket.socket

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The ends that are the replicator's."""
        return self.hardware, self.arbiter, self.control


def live(birth: Birth) -> NoReturn:
    """Be the replicator, in a process that was just forked, to its end, or to its parent's."""
    code = CRASHED
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _keep_only(birth)
        faulthandler.register(signal.SIGUSR1)  # for whoever wonders where it hangs
        code = _run(birth)
    except KilledError:
        code = CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _keep_only(birth: Birth) -> None:
    """Close what is the world's, so that everybody's ends are seen when somebody dies."""
    log = os.open(birth.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 (as long as the process)
    keep = {0, 1, 2, *(end.fileno() for end in birth.sockets)}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # that of the list itself


class _Status(Notifier):
    """What systemd would be told, told to the world."""

    def __init__(self, control: socket.socket) -> None:
        super().__init__("")
        self._control = control

    def status(self, sentence: str) -> None:
        """See Notifier."""
        self._control.send(sentence.encode()[:60_000])


def _run(birth: Birth) -> int:
    _arrange(birth)
    state_dir = birth.directory / "disk"
    saved = _saved(state_dir)
    host = RemoteHost(Caller(birth.hardware), birth.directory / "run")
    if refusal := role_refusal(VM, birth.role, saved, boot_id(), host.find(VM)):
        birth.control.send(f"refused: {refusal}".encode())
        return 2
    phase = "connecting" if birth.role == "primary" else "waiting"
    state = State(VM, birth.role, phase, "The replicator starts.", birth.peer)
    monitor = Monitor(state_dir, state, _Status(birth.control), decides=False)
    inbox = Inbox()
    threading.Thread(target=_obey, args=(birth, monitor, inbox), daemon=True, name="control").start()
    try:
        return _serve(birth, host, monitor, inbox, saved)
    except (*LOCAL_ERRORS, HypervisorError) as error:  # as replication.runner does
        monitor.enter("failed", str(error))
        return 1
    finally:
        monitor.catch_up()


def _serve(
    birth: Birth, host: RemoteHost, monitor: Monitor, inbox: Inbox, saved: dict[str, Any] | None
) -> int:
    arbiter = RemoteArbiter(Caller(birth.arbiter))
    clock = functools.partial(getattr, birth.page, "now")
    right = Tenure(arbiter, VM, birth.host, birth.times, monitor.event, inbox.put_trouble, clock)
    config = Config(
        VM,
        birth.role,
        birth.peer,
        birth.timeout_ms,
        "xenbr0",
        "192.0.2.1",
        22,
        birth.interval_ms,
        output=birth.output,
        latency_ms=200,
        min_interval_ms=20,
    )
    if birth.role == "primary":
        return _primary(birth, config, host, monitor, inbox, right, saved)
    listener = AttachListener(
        birth.directory / "attach.sock",
        VM,
        lambda: attach_refusal(VM, monitor.state.phase, arbiter=right.automatic),
        lambda name: connect.session(config, monitor, inbox, name),
        inbox.put_session,
        group="",
    )
    copy = Secondary(config, host, monitor, inbox, Succession(monitor, right), saved)
    listener.start()
    return copy.run()


def _primary(
    birth: Birth,
    config: Config,
    host: RemoteHost,
    monitor: Monitor,
    inbox: Inbox,
    right: Tenure,
    saved: dict[str, Any] | None,
) -> int:
    numbers = itertools.count(1)
    dialer: Any = WorldDialer(birth.directory / "line.sock", host.ask)

    def connector(_config: Config, _monitor: Monitor, _inbox: Inbox) -> Conversation:
        session = connect.session(
            config, monitor, inbox, f"session {os.getpid()}.{next(numbers)}", Opening(VM, dialer, _DIAL_S)
        )
        try:
            session.open()
        except ChannelLostError as error:
            session.close()
            raise SessionEndedError(Cause.PEER_LOST, str(error)) from error
        return Conversation(session, inbox)

    with closing(right):
        owner = Ownership(VM, birth.peer, monitor, inbox, right)
        return Primary(config, host, monitor, inbox, connector, owner, saved).run()


def _arrange(birth: Birth) -> None:
    """Shorten what the product waits, and let the host's clock, disk and boot be the world's."""
    primary_decisions.FIRST_RETRY_S, primary_decisions.LAST_RETRY_S = 0.03, 0.1
    ownership._ASK_AGAIN_S = succession.ASK_AGAIN_S = 0.02
    takeover.ASK_AGAIN_S = active_copy.ASK_AGAIN_S = succession.ASK_AGAIN_S
    pump._MUTE_LOOK_S = 0.01
    page, index = birth.page, birth.index
    monitor_module.BOOT_ID = birth.directory / "boot_id"
    wall = time.time
    time.time = lambda: wall() + page.wall_offset(index)
    time.monotonic = lambda: page.monotonic
    sides.PrimaryRouter = functools.partial(sides.PrimaryRouter, clock=time.monotonic)
    for name in ("write_json", "append_line"):
        setattr(monitor_module, name, _unless_full(getattr(monitor_module, name), page, index))

    # Between a look at the clock and the packet that follows it a host may freeze: the architecture says that nothing
    # here closes that. The world does not freeze a host, and moves no clock far, in such a moment.
    for cls, name in ((pump.Pump, "to_network"), (pump._Port, "flush")):
        setattr(cls, name, _marked(getattr(cls, name), page, index))


def _unless_full(write: Callable[..., None], page: SharedPage, index: int) -> Callable[..., None]:
    def written(path: Path, value: dict[str, Any]) -> None:
        if page.disk_full(index):
            raise OSError(28, "No space left on device", str(path))
        write(path, value)

    return written


def _marked(method: Callable[..., Any], page: SharedPage, index: int) -> Callable[..., Any]:
    @functools.wraps(method)
    def marked(*arguments: Any, **named: Any) -> Any:
        with page.lets_go(index):
            return method(*arguments, **named)

    return marked


def _saved(state_dir: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads((state_dir / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return value


def _obey(birth: Birth, monitor: Monitor, inbox: Inbox) -> None:
    """Carry out what the world, as operator or service manager, asks for."""
    while verb := birth.control.recv(64).decode():
        if verb == "service-stop":
            inbox.put_stop("The service manager stopped the replicator.")
        elif not verb_refusal(VM, birth.role, monitor.state.phase, verb, arbiter=True):
            inbox.put_request(Request(verb))
