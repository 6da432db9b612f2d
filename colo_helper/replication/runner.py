"""The replicator as a program: configuration, signals, sockets, and one primary or secondary."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from colo_helper.arbiter.fencing import FENCING, Fenced, FencingError, fence, load_fencing
from colo_helper.arbiter.right import ByHand, Right
from colo_helper.arbiter.tenure import Tenure
from colo_helper.arbiter.times import times
from colo_helper.control.protocol import RefusedError, Request
from colo_helper.control.server import ControlServer
from colo_helper.monitor.files import read_json
from colo_helper.monitor.monitor import Monitor, boot_id
from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.state import State, kept_state
from colo_helper.monitor.watch import Watch
from colo_helper.replication.config import (
    CONFIG,
    RUN_DIR,
    STATE_DIR,
    VM_NAME,
    Config,
    ConfigError,
    load_config,
)
from colo_helper.replication.decisions.refusals import (
    attach_refusal,
    leaves_a_guest,
    role_refusal,
    verb_refusal,
)
from colo_helper.replication.guest import LOCAL_ERRORS
from colo_helper.replication.inbox import Inbox
from colo_helper.replication.ownership import Ownership
from colo_helper.replication.primary import Primary
from colo_helper.replication.secondary import Secondary
from colo_helper.replication.succession import Succession

#: How long one endpoint of the arbiter is given at least, in seconds.
_SHORTEST_ASK_S = 0.5
#: How long an end waits for the answers of those who asked to be written.
_GOODBYE_S = 2.0


class Desk:
    """Where control requests arrive: answers ``status`` itself, refuses what cannot be, queues the rest."""

    def __init__(self, config: Config, monitor: Monitor, inbox: Inbox) -> None:
        self._config = config
        self._monitor = monitor
        self._inbox = inbox
        self._waiting: list[Request] = []

    def serve(self, request: Request) -> dict[str, Any]:
        """Answer one request; called by the control server's threads. Raises RefusedError."""
        if request.verb == "status":
            return {"ok": True, **self._monitor.snapshot()}
        refusal = verb_refusal(
            self._config.vm,
            self._config.role,
            self._monitor.state.phase,
            request.verb,
            arbiter=self._config.arbiter is not None,
            reason=self._monitor.state.reason,
            forced=request.forced,
        )
        if refusal:
            raise RefusedError(refusal.code, refusal.sentence)
        self._waiting.append(request)
        self._inbox.put_request(request)
        return request.wait()

    def close(self) -> None:
        """Answer everybody who still waits: a stop has succeeded, the rest came too late."""
        for request in self._waiting:
            if request.verb == "stop":
                request.succeed(self._monitor.snapshot())
            else:
                request.refuse(
                    "ended", f"The replicator of {self._config.vm} has ended: {self._monitor.state.reason}"
                )


def run(vm: str) -> int:
    """Run the replicator of one VM until it ends; returns the exit status."""
    if not VM_NAME.fullmatch(vm):
        sys.stderr.write(f"{vm!r} is not the name of a VM.\n")
        return 2
    try:
        config = load_config(Path(CONFIG.format(vm=vm)), vm)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    state_dir, run_dir = Path(STATE_DIR.format(vm=vm)), Path(RUN_DIR.format(vm=vm))
    for directory in (state_dir, run_dir):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    notifier = Notifier()
    phase = "connecting" if config.role == "primary" else "waiting"
    saved = _saved(state_dir)
    state = State(vm, config.role, phase, "The replicator starts.", config.peer_name, **kept_state(saved))
    monitor = Monitor(state_dir, state, notifier, decides=config.arbiter is None)
    monitor.takes_up = leaves_a_guest(saved, boot_id())
    inbox = Inbox(watch=Watch(notifier.alive))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: inbox.put_stop(_stopped_by(received)))
    desk = Desk(config, monitor, inbox)
    server = ControlServer(run_dir / "control.sock", desk.serve)
    server.start()
    try:
        right = _right(config, monitor, inbox)
        return _serve(config, monitor, inbox, state_dir, run_dir, notifier.ready, right, saved)
    except LOCAL_ERRORS as error:
        if monitor.takes_up:
            monitor.event("failed", f"{error} What an earlier replicator left is as it was.")
        else:
            monitor.enter("failed", str(error))
        return 1
    finally:
        monitor.catch_up()
        notifier.stopping()
        desk.close()
        server.close(_GOODBYE_S)


def _serve(
    config: Config,
    monitor: Monitor,
    inbox: Inbox,
    state_dir: Path,
    run_dir: Path,
    ready: Callable[[], None],
    right: Right,
    saved: dict[str, Any] | None,
) -> int:
    from colo_helper.replication.xl import XenHost  # noqa: PLC0415  (loads the device libraries: only to run)

    host = XenHost(run_dir, state_dir, device_timeout_s=max(10.0, config.peer_timeout_ms / 1000))
    if refusal := role_refusal(config.vm, config.role, saved, boot_id(), host.find(config.vm)):
        sys.stderr.write(f"{refusal}\n")  # and nothing is written: the state file tells what the domain is
        return 2
    if config.role == "primary":
        ready()
        from colo_helper.replication.connect import connect  # noqa: PLC0415  (paramiko: only the primary needs it)

        with closing(right):
            ownership = Ownership(config.vm, config.peer_name, monitor, inbox, right)
            return Primary(config, host, monitor, inbox, connect, ownership, saved).run()
    from colo_helper.channel.listener import AttachListener  # noqa: PLC0415
    from colo_helper.replication.connect import session  # noqa: PLC0415

    listener = AttachListener(
        run_dir / "attach.sock",
        config.vm,
        lambda: attach_refusal(config.vm, monitor.state.phase, arbiter=right.automatic),
        lambda name: session(config, monitor, inbox, name),
        inbox.put_session,
    )
    succession = Succession(monitor, right, lambda: _fence(config))
    secondary = Secondary(config, host, monitor, inbox, succession, saved)
    listener.start()
    try:
        ready()
        return secondary.run()
    finally:
        listener.close()


def _right(config: Config, monitor: Monitor, inbox: Inbox) -> Right:
    """Return whom to ask who may run the VM."""
    asked = config.arbiter
    if asked is None:
        return ByHand()
    from colo_helper.arbiter.etcd import EtcdArbiter, Identity  # noqa: PLC0415  (requests: only who asks needs it)

    of = times(asked.lease_s)
    identity = Identity(asked.ca, asked.certificate, asked.key)
    arbiter = EtcdArbiter(asked.endpoints, identity, max(_SHORTEST_ASK_S, of.renew_s / len(asked.endpoints)))
    return Tenure(
        arbiter, config.vm, asked.host, of, monitor.event, inbox.put_trouble, stuck=inbox.watch.stuck
    )


def _fence(config: Config) -> Fenced | None:
    """Switch the primary's host off, as far as somebody has said how."""
    try:
        fencing = load_fencing(Path(FENCING.format(host=config.peer_name)), config.peer_name)
    except FencingError as error:
        return Fenced(False, False, str(error))
    return fence(fencing, config.vm) if fencing else None


def _saved(state_dir: Path) -> dict[str, Any] | None:
    """Return the state file of an earlier run, or None when there is none that can be read."""
    try:
        return read_json(state_dir / "state.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        sys.stderr.write(f"The state of an earlier run is not usable: {error}\n")
        return None


def _stopped_by(number: int) -> str:
    return f"The service manager stopped the replicator ({signal.Signals(number).name})."
