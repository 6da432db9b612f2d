"""Redis in the guest redis1: its own load generator on the client's side, and one connection whose answers can be counted."""

import csv
import shutil
import socket
import subprocess
from dataclasses import dataclass

from lab import network
from lab.errors import LabError
from lab.guests import GUESTS
from lab.settings import Settings

GUEST = "redis1"
PORT = 6379
#: Bytes of a value, and how many keys there are.
_VALUE_BYTES, _KEYS = 64, 1000
_LINE_LIMIT = 4096


@dataclass(frozen=True)
class Rate:
    """What redis-benchmark says of one command: requests in a second, and times for an answer in milliseconds."""

    command: str
    per_s: float
    p50_ms: float
    p99_ms: float
    longest_ms: float


def benchmark(settings: Settings, requests: int, clients: int) -> subprocess.Popen[str]:
    """Start redis-benchmark with SET, then GET, so many requests of each over so many connections.

    It ends with another code than 0 when a connection breaks. LabError when it is not installed.
    """
    program = shutil.which("redis-benchmark")
    if program is None:
        raise LabError("redis-benchmark is missing: scripts/install-packages scripts/bench-packages.txt")
    of_load = ["-c", clients, "-n", requests, "-d", _VALUE_BYTES, "-r", _KEYS, "-t", "set,get", "--csv"]
    command = ["ip", "netns", "exec", settings.netns, program, "-h", GUESTS[GUEST], "-p", PORT, *of_load]
    return subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def rates(output: str) -> list[Rate]:
    """Return what redis-benchmark said as CSV. ValueError when it did not come to an end of both commands."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    found = [
        Rate(
            row["test"],
            float(row["rps"]),
            float(row["p50_latency_ms"]),
            float(row["p99_latency_ms"]),
            float(row["max_latency_ms"]),
        )
        for row in csv.DictReader(lines)
    ]
    if [rate.command for rate in found] != ["SET", "GET"]:
        raise ValueError(f"redis-benchmark said no figures of SET and GET: {output[-500:]!r}")
    return found


class Connection:
    """One connection to Redis, never made again. All raise OSError when it broke, or something else came."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._sock = network.connect(settings, GUESTS[GUEST], PORT, timeout_s)
        self._file = self._sock.makefile("rb")

    def count(self, key: str) -> int:
        """Add one to a number, and return it (INCR)."""
        return int(self._ask(b":", b"INCR", key.encode()))

    def set(self, key: str, value: bytes) -> None:
        """Keep a value."""
        self._ask(b"+", b"SET", key.encode(), value)

    def get(self, key: str) -> bytes:
        """Return a value that is there."""
        length = int(self._ask(b"$", b"GET", key.encode()))
        return self._file.read(length + 2)[:length]

    def _ask(self, kind: bytes, *words: bytes) -> bytes:
        """Send a command; returns the first line of an answer of this kind (RESP), without that byte."""
        parts = (b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        self._sock.sendall(b"*%d\r\n" % len(words) + b"".join(parts))
        line = self._file.readline(_LINE_LIMIT)
        if not line.startswith(kind):
            raise OSError(f"Redis says {line!r}")
        return line[1:]

    def close(self) -> None:
        """End it."""
        self._file.close()
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
