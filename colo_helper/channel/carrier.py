"""``colo-channel``: the SSH connections of one VM to its peer, in a process of their own.

Encryption does not take the replicator's time here, and the replicator has nothing but sockets. It gives orders on a
SOCK_SEQPACKET socket, one JSON object each:

| to it | from it |
|---|---|
| ``{"open": CHANNEL, "id": N, "timeout_ms": N}`` | ``{"id", "opened": {"cipher", "host_key", "ms"}}`` with the descriptor |
| | or ``{"id", "error": {"cause", "sentence"}}`` |
| ``{"idle": true}``: a good moment for new keys | |
| | ``{"id", "ended": {"cause", "sentence"}}``, then the descriptor reads its end |

When that socket is closed, or with SIGTERM, all connections end and so does the process.

``colo-channel ssh`` is one connection in the way of ``ssh HOST COMMAND``; see ``channel.ssh_command``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colo_helper.channel.bridge import Bridge
from colo_helper.channel.peer import KNOWN_HOSTS, USER, ConnectError, End, PeerAddress
from colo_helper.channel.ssh import connect
from colo_helper.channel.ssh_command import add_arguments, run_command

_DONE, _USAGE = 0, 2
_MAX_ORDER_BYTES = 4096
#: What the socket of a connection holds each way; the kernel gives less where ``net.core.wmem_max`` is lower.
_SOCKET_BYTES = 1 << 20
DEFAULT_TIMEOUT_MS = 60_000
#: How long bytes may take to the peer after the replicator has closed its end.
LINGER_S = 10.0
#: A thread that has computed for so long lets another one go on; Python's default is 5 ms, as long as a checkpoint's pause.
SWITCH_INTERVAL_S = 0.0005


class OrderError(Exception):
    """What came on the control socket is no order; the text says why."""


def parse_order(data: bytes) -> tuple[str, int, float] | None:
    """Return (channel, id, seconds) of an order to open, None for one that says idle; raises OrderError."""
    try:
        order = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OrderError(f"The order is not JSON: {error}.") from error
    if order == {"idle": True}:
        return None
    if not isinstance(order, dict):
        raise OrderError("The order is not an object.")
    channel, number = order.get("open"), order.get("id")
    timeout_ms = order.get("timeout_ms", DEFAULT_TIMEOUT_MS)
    if not isinstance(channel, str) or type(number) is not int:
        raise OrderError("The order neither opens a channel with an id nor says that nothing is on its way.")
    if type(timeout_ms) is not int or timeout_ms <= 0:
        raise OrderError(f"The time limit of {timeout_ms!r} ms is not a positive number.")
    return channel, number, timeout_ms / 1000


class Carrier:
    """``run`` it; everything else happens on its orders."""

    def __init__(self, control: socket.socket, peer: PeerAddress, vm: str) -> None:
        self._control = control
        self._peer = peer
        self._vm = vm
        self._telling = threading.Lock()
        self._bridges: dict[int, Bridge] = {}  # by descriptor; only the main thread changes it
        self._linger: dict[int, float] = {}  # descriptor: when its bridge is cut
        #: What other threads want the main thread to know: (bridge, whether it begins or has ended).
        self._news: deque[tuple[Bridge, bool]] = deque()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_w.setblocking(False)
        self._stopped = False

    def run(self) -> None:
        """Serve until the control socket is closed or SIGTERM comes."""
        signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to the replicator, which ends us
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_r, select.POLLIN)
        while not self._stopped:
            ready = {fd for fd, _ in poll.poll(self._until_next_cut_ms())}
            for fd in ready & self._bridges.keys():  # only a hang-up is watched for
                poll.unregister(fd)
                self._bridges[fd].hung_up()
                self._linger[fd] = time.monotonic() + LINGER_S
            if self._wake_r.fileno() in ready:
                self._wake_r.recv(_MAX_ORDER_BYTES)
                self._take_news(poll)
            if self._control.fileno() in ready:
                self._take_order()
            now = time.monotonic()
            for fd in [fd for fd, when in self._linger.items() if when <= now]:
                del self._linger[fd]
                self._bridges[fd].cut()

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _until_next_cut_ms(self) -> float | None:
        if not self._linger:
            return None
        return max(0.0, min(self._linger.values()) - time.monotonic()) * 1000

    def _take_order(self) -> None:
        try:
            data = self._control.recv(_MAX_ORDER_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self._stopped = True
            return
        try:
            order = parse_order(data)
        except OrderError as error:
            sys.stderr.write(f"colo-channel: {error}\n")
            return
        if order is None:
            for bridge in self._bridges.values():
                threading.Thread(target=bridge.renew_keys, name="renew-keys", daemon=True).start()
        else:
            threading.Thread(target=self._open, args=order, name=f"open-{order[0]}", daemon=True).start()

    def _take_news(self, poll: select.poll) -> None:
        while self._news:
            bridge, begins = self._news.popleft()
            fd = bridge.local.fileno()
            if begins:
                self._bridges[fd] = bridge
                poll.register(fd, 0)
                continue
            with contextlib.suppress(KeyError):  # after a hang-up it is not watched any more
                poll.unregister(fd)
            self._linger.pop(fd, None)
            del self._bridges[fd]
            bridge.local.close()

    # ---------------------------------------------------------------------------------------------- a connection's thread

    def _open(self, channel: str, number: int, timeout_s: float) -> None:
        started = time.monotonic()
        try:
            connection = connect(self._peer, self._vm, channel, timeout_s)
        except ConnectError as error:
            self._tell({"id": number, "error": {"cause": error.cause, "sentence": str(error)}})
            return
        local, remote = socket.socketpair()
        for one in (local, remote):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        opened = {
            "cipher": connection.cipher,
            "host_key": connection.host_key,
            "ms": round((time.monotonic() - started) * 1000),
        }

        def report(end: End) -> None:
            self._tell({"id": number, "ended": {"cause": end.cause, "sentence": end.sentence}})

        bridge = Bridge(channel, connection, local, report)
        with remote:
            self._tell({"id": number, "opened": opened}, remote.fileno())
        self._note(bridge, begins=True)
        bridge.run()
        self._note(bridge, begins=False)

    def _note(self, bridge: Bridge, *, begins: bool) -> None:
        self._news.append((bridge, begins))
        with contextlib.suppress(BlockingIOError):  # full of reasons to wake up
            self._wake_w.send(b"n")

    def _tell(self, message: dict[str, Any], fd: int | None = None) -> None:
        data = json.dumps(message).encode()
        with self._telling, contextlib.suppress(OSError):  # nobody is there to be told: then all ends
            socket.send_fds(self._control, [data], [] if fd is None else [fd])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="colo-channel", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="make connections on orders (the replicator starts this)")
    serve.add_argument("--control-fd", type=int, required=True)
    serve.add_argument("--vm", required=True)
    serve.add_argument("--peer", required=True, help="name of the peer, for sentences")
    serve.add_argument("--address", required=True)
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--heartbeat-address", help="the peer on a second network")
    serve.add_argument("--user", default=USER)
    serve.add_argument("--key-file", type=Path)
    serve.add_argument("--known-hosts", type=Path, default=KNOWN_HOSTS)
    add_arguments(
        commands.add_parser("ssh", help="run a command at a peer, for xl migrate -s and xl remus -s")
    )
    chosen = parser.parse_args(arguments)
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # causes are told in sentences of ours
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if chosen.command == "ssh":
        return run_command(chosen)
    try:
        control = socket.socket(fileno=chosen.control_fd)
    except OSError as error:
        sys.stderr.write(f"colo-channel: descriptor {chosen.control_fd} is no socket: {error.strerror}.\n")
        return _USAGE
    os.set_inheritable(chosen.control_fd, False)
    peer = PeerAddress(
        chosen.peer,
        chosen.address,
        chosen.port,
        chosen.key_file,
        chosen.known_hosts,
        chosen.heartbeat_address,
        chosen.user,
    )
    Carrier(control, peer, chosen.vm).run()
    # The kernel closes every connection at once; threads that wait for a peer must not hold this process.
    sys.stderr.flush()
    os._exit(_DONE)


if __name__ == "__main__":
    sys.exit(main())
