"""The far end of bench.channel: takes bytes or sends them back, as the forced command of an sshd or behind a TCP port.

Started as a program of its own, by sshd or by the benchmark, so it imports nothing of the project.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import threading

_BUFFER_BYTES = 1 << 20
COUNT = struct.Struct("<Q")
DONE = b"done"


def sink(read_fd: int, write_fd: int) -> None:
    """Take as many bytes as the first eight say, say so, and wait for the end."""
    head = os.read(read_fd, COUNT.size)
    left = COUNT.unpack(head)[0] if len(head) == COUNT.size else 0
    buffer = bytearray(_BUFFER_BYTES)
    while got := os.readv(read_fd, [buffer]):
        left -= got
        if left == 0:
            os.write(write_fd, DONE)


def echo(read_fd: int, write_fd: int) -> None:
    """Send everything back."""
    while data := os.read(read_fd, _BUFFER_BYTES):
        view = memoryview(data)
        while view:
            view = view[os.write(write_fd, view) :]


def enlarge_pipes() -> None:
    """Let sshd's pipes hold 1 MiB instead of 64 KiB, as the forced command on a host does."""
    for fd in (0, 1):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _BUFFER_BYTES)


def flood(fd: int) -> None:
    """Write until nobody takes it any more."""
    data = bytes(_BUFFER_BYTES)
    try:
        while True:
            os.write(fd, data)
    except OSError:
        return


def _serve(listener: socket.socket, work: str) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_one, args=(connection, work), daemon=True).start()


def _one(connection: socket.socket, work: str) -> None:
    with connection:
        WORK[work](connection.fileno(), connection.fileno())


WORK = {"sink": sink, "echo": echo}


def main() -> None:
    """Do what the client asked sshd for (``attach VM sink|echo``, else wait for its end), or what the arguments say."""
    words = os.environ.get("SSH_ORIGINAL_COMMAND", "").split()
    if sys.argv[1:2] == ["flood"]:
        flood(int(sys.argv[2]))
    elif sys.argv[1:2] == ["serve"]:
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in WORK]
        for listener, work in zip(listeners, WORK, strict=True):
            threading.Thread(target=_serve, args=(listener, work), daemon=True).start()
        print(*(listener.getsockname()[1] for listener in listeners), flush=True)
        sys.stdin.read()
    elif words[:1] == ["attach"]:
        enlarge_pipes()
        WORK[words[-1]](0, 1)
    else:
        sys.stdin.read()


if __name__ == "__main__":
    main()
