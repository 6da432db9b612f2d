"""Our SSH channels against OpenSSH's forwarding and plain TCP, on loopback, with a real sshd and the same cipher.

Each way leads from a socket of this process to a program at the far end. Ours ends in the sshd's forced command, ``ssh -L``
in a TCP port behind the sshd; the program there is the same. With ``-N`` ssh opens no session, and sshd keeps Nagle's
algorithm on. Bulk goes one way and counts until the far end says that it has all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Protocol

from bench.channel_far import COUNT, DONE
from bench.tables import LEAST_RUNS, machine, table
from colo_helper.channel.dialer import Dialer
from colo_helper.channel.peer import PeerAddress

FAR = Path(__file__).with_name("channel_far.py")
CIPHER = "aes128-gcm@openssh.com"
ECHO_BYTES = (64, 4 << 10, 64 << 10)
_PIECE_BYTES = 1 << 20
_READY_S = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")
#: Echoes in one turn: as many as fit into this time, at least and at most so many.
_ECHO_S, _LEAST_ECHOES, _MOST_ECHOES = 1.0, 20, 200


class Way(Protocol):
    """Leads connections to the far end."""

    name: str

    def open(self, work: str) -> AbstractContextManager[socket.socket]:
        """Connect to a program at the far end."""

    def cpu_s(self) -> float:
        """CPU time of the programs of this way that live, without the far end."""


# --------------------------------------------------------------------------------------------------------- processes


def wait_for_port(port: int) -> None:
    """Return once somebody listens; raises TimeoutError."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nobody listens on port {port}.") from None
            time.sleep(0.05)
        else:
            return


def unused_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program as long as the block lasts."""
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def process_table() -> dict[int, tuple[int, str, float]]:
    """Return (parent, name, CPU seconds) of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            text = path.read_text(encoding="utf-8", errors="replace")
            name, _, rest = text[text.index("(") + 1 :].rpartition(")")
            fields = rest.split()
            found[int(path.parent.name)] = int(fields[1]), name, (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def cpu_of(pids: Sequence[int], sshd: int) -> float:
    """Return the CPU seconds of these processes and of all sshd processes below ``sshd``."""
    processes = process_table()

    def below(pid: int) -> bool:
        while pid in processes:
            if pid == sshd:
                return True
            pid = processes[pid][0]
        return False

    return sum(
        cpu_s
        for pid, (_, name, cpu_s) in processes.items()
        if pid in pids or (name.startswith("sshd") and below(pid))
    )


# --------------------------------------------------------------------------------------------------------------- ways


@dataclass(frozen=True, slots=True)
class Site:
    """A running sshd and the far end's TCP ports."""

    directory: Path
    port: int
    sshd_pid: int
    far_ports: dict[str, int]


@contextmanager
def site() -> Iterator[Site]:
    """Keys, an sshd with a configuration of its own on a free port of loopback, and the far end behind TCP."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if sshd is None:
        sys.exit("There is no sshd: make bench-channel installs it.")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="colo-bench-")))
        for key in ("host_key", "id_ed25519"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)], check=True
            )
        port = unused_port()
        public = (directory / "host_key.pub").read_text(encoding="utf-8")
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}", encoding="utf-8")
        (directory / "authorized_keys").write_text(
            (directory / "id_ed25519.pub").read_text(encoding="utf-8"), encoding="utf-8"
        )
        (directory / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {directory}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            f"PasswordAuthentication no\nMaxStartups 100\nForceCommand {sys.executable} -IS {FAR}\n",
            encoding="utf-8",
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        server = stack.enter_context(
            running([sshd, "-D", "-f", str(directory / "sshd_config")], stderr=subprocess.DEVNULL)
        )
        far = stack.enter_context(
            running([sys.executable, "-IS", str(FAR), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert far.stdout is not None
        sink, echo = map(int, far.stdout.readline().split())
        wait_for_port(port)
        yield Site(directory, port, server.pid, {"sink": sink, "echo": echo})


class Plain:
    """TCP without anything."""

    name = "plain TCP"

    def __init__(self, place: Site) -> None:
        self._place = place

    @contextmanager
    def open(self, work: str) -> Iterator[socket.socket]:
        """See Way."""
        with socket.create_connection(("127.0.0.1", self._place.far_ports[work])) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection

    def cpu_s(self) -> float:
        """See Way: nobody is between."""
        return 0.0


class OpenSsh:
    """``ssh -L``: each connection has an ssh of its own, because each of ours has an SSH connection of its own."""

    def __init__(self, place: Site, name: str, *options: str) -> None:
        self.name = name
        self._place = place
        self._options = options
        self._pids: list[int] = []

    @contextmanager
    def open(self, work: str) -> Iterator[socket.socket]:
        """See Way."""
        port, place = unused_port(), self._place
        command = [
            *(
                "ssh",
                "-F",
                "none",
                "-p",
                str(place.port),
                "-i",
                f"{place.directory}/id_ed25519",
                "-c",
                CIPHER,
            ),
            *("-o", f"UserKnownHostsFile={place.directory}/known_hosts", "-o", "StrictHostKeyChecking=yes"),
            *(
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "ExitOnForwardFailure=yes",
                "-o",
                "BatchMode=yes",
                "-o",
                "RequestTTY=no",
            ),
            *("-L", f"127.0.0.1:{port}:127.0.0.1:{place.far_ports[work]}", *self._options, "127.0.0.1"),
        ]
        with running(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            wait_for_port(port)
            self._pids.append(process.pid)
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection
            self._pids.remove(process.pid)

    def cpu_s(self) -> float:
        """See Way."""
        return cpu_of(self._pids, self._place.sshd_pid)


class Ours:
    """colo-channel: one process for all connections, or one for each."""

    def __init__(self, place: Site, name: str, *, shared: bool) -> None:
        self.name = name
        self._place = place
        self._peer = PeerAddress(
            "far", "127.0.0.1", place.port, place.directory / "id_ed25519", place.directory / "known_hosts",
            user=getpass.getuser(),
        )  # fmt: skip
        self._shared = Dialer.start(self._peer, "bench") if shared else None

    @contextmanager
    def open(self, work: str) -> Iterator[socket.socket]:
        """See Way."""
        dialer = self._shared or Dialer.start(self._peer, "bench")
        try:
            opened = dialer.open(work, _READY_S)
            assert opened.cipher == CIPHER
            with opened.socket as connection:
                yield connection
        finally:
            if dialer is not self._shared:
                dialer.close()

    def cpu_s(self) -> float:
        """See Way."""
        ours = [pid for pid, (parent, _, _) in process_table().items() if parent == os.getpid()]
        carriers = [pid for pid in ours if "serve" in _command(pid) and str(FAR) not in _command(pid)]
        return cpu_of(carriers, self._place.sshd_pid)

    def close(self) -> None:
        """End the shared process."""
        if self._shared:
            self._shared.close()


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------------------ figures


@dataclass(frozen=True, slots=True)
class Bulk:
    """One turn of bulk: MB a second over all connections, CPU seconds of the way for a GB."""

    mb_s: float
    cpu_s_gb: float


def bulk(way: Way, connections: int, total_bytes: int) -> Bulk:
    """Send so many bytes over so many connections at once."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(way.open("sink")) for _ in range(connections)]
        share = total_bytes // connections // _PIECE_BYTES * _PIECE_BYTES
        before = way.cpu_s()
        started = time.perf_counter()
        threads = [threading.Thread(target=_send, args=(one, share)) for one in sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken_s = time.perf_counter() - started
        cpu_s = way.cpu_s() - before
    return Bulk(share * connections / taken_s / 1e6, cpu_s / (share * connections / 1e9))


def _send(connection: socket.socket, count: int) -> None:
    piece = os.urandom(_PIECE_BYTES)
    connection.sendall(COUNT.pack(count // _PIECE_BYTES * _PIECE_BYTES))
    for _ in range(count // _PIECE_BYTES):
        connection.sendall(piece)
    answer = connection.recv(len(DONE), socket.MSG_WAITALL)
    assert answer == DONE, answer


def echoes(way: Way, *, loaded: bool) -> list[tuple[float, float]]:
    """Return (p50, p99) in ms for each size of ECHO_BYTES, with another connection at full speed or none."""
    with ExitStack() as stack:
        connection = stack.enter_context(way.open("echo"))
        if loaded:
            other = stack.enter_context(way.open("sink"))
            flood = [sys.executable, "-IS", str(FAR), "flood", str(other.fileno())]
            stack.enter_context(running(flood, pass_fds=[other.fileno()]))
            time.sleep(0.2)
        return [_round_trips(connection, size) for size in ECHO_BYTES]


def _round_trips(connection: socket.socket, size: int) -> tuple[float, float]:
    data = os.urandom(size)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _LEAST_ECHOES or (
        len(times) < _MOST_ECHOES and time.perf_counter() - started < _ECHO_S
    ):
        sent = time.perf_counter()
        connection.sendall(data)
        got = connection.recv(size, socket.MSG_WAITALL)
        times.append((time.perf_counter() - sent) * 1e3)
        assert got == data
    return median(times), quantiles(times, n=100, method="inclusive")[98]


def bulk_rows(
    ways: Sequence[Way], runs: int, connections: int, total_bytes: int, base: str
) -> list[list[object]]:
    """Every way takes its turn; the first turn warms up."""
    turns = [[bulk(way, connections, total_bytes) for way in ways] for _ in range(runs + 1)][1:]
    speeds = [median(turn[index].mb_s for turn in turns) for index in range(len(ways))]
    costs = [median(turn[index].cpu_s_gb for turn in turns) for index in range(len(ways))]
    peer = speeds[[way.name for way in ways].index(base)]
    return [
        [f"{connections} x {way.name}", f"{speed:.0f}", f"{speed / peer:.2f}", f"{cost:.2f}"]
        for way, speed, cost in zip(ways, speeds, costs, strict=True)
    ]


def echo_rows(ways: Sequence[Way], runs: int, *, loaded: bool) -> list[list[object]]:
    """Every way takes its turn; the first turn warms up."""
    turns = [[echoes(way, loaded=loaded) for way in ways] for _ in range(runs + 1)][1:]
    rows: list[list[object]] = []
    for index, way in enumerate(ways):
        row: list[object] = [f"{way.name}{', bulk beside' if loaded else ''}"]
        for size in range(len(ECHO_BYTES)):
            for which in (0, 1):
                row.append(f"{median(turn[index][size][which] for turn in turns):.2f}")
        rows.append(row)
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=LEAST_RUNS, help="of which the median is taken")
    parser.add_argument("--mib", type=int, default=256, help="of bulk in one turn")
    parser.add_argument("--connections", type=int, default=3, help="for bulk of several")
    arguments = parser.parse_args()
    if arguments.runs < LEAST_RUNS:
        parser.error(f"at least {LEAST_RUNS} runs are needed for a median")
    total = arguments.mib << 20
    with site() as place:
        ours = Ours(place, "ours", shared=True)
        apart = Ours(place, "ours, a process each", shared=False)
        forward, bare = OpenSsh(place, "ssh -L"), OpenSsh(place, "ssh -N -L", "-N")
        plain = Plain(place)
        try:
            rows = bulk_rows([ours, forward, bare, plain], arguments.runs, 1, total, "ssh -L")
            rows += bulk_rows(
                [ours, apart, forward, plain], arguments.runs, arguments.connections, total, "ssh -L"
            )
            on = f"{machine()}, load {os.getloadavg()[0]:.1f}, {CIPHER}"
            print(f"Channels, {on}, medians of {arguments.runs}; {arguments.mib} MiB a turn.\n")
            print(table(("bulk", "MB/s", "of ssh -L", "CPU s/GB"), rows), flush=True)
            header = ["echo, ms"] + [f"{size} B {which}" for size in ECHO_BYTES for which in ("p50", "p99")]
            rows = echo_rows([ours, forward, bare, plain], arguments.runs, loaded=False)
            rows += echo_rows([ours, forward, bare, plain], arguments.runs, loaded=True)
            print("\n" + table(header, rows))
        finally:
            ours.close()


if __name__ == "__main__":
    main()
