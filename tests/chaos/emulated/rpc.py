"""How a replicator of the campaign reaches its emulated host and the arbiter: one question, one answer, on a socket pair.

A message is its length (u32, little endian) and a pickle. Both ends are of this very program, forked.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from typing import Any

from colo_helper.arbiter.interface import RefusedError

_LENGTH = struct.Struct("<I")


class KilledError(BaseException):
    """The part of the program that asked was killed; nothing of it may go on."""


def send(end: socket.socket, value: object) -> None:
    """Send one message; raises OSError."""
    data = pickle.dumps(value)
    end.sendall(_LENGTH.pack(len(data)) + data)


class Reader:
    """Makes messages of a stream, however it is cut."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that are complete with these bytes."""
        self._data += data
        found = []
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if len(self._data) < _LENGTH.size + length:
                break
            found.append(pickle.loads(self._data[_LENGTH.size : _LENGTH.size + length]))
            del self._data[: _LENGTH.size + length]
        return found


class Caller:
    """The asking side. Any thread; they take turns."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def __call__(self, *question: Any) -> Any:
        """Ask and return the answer, or raise what the other side raised."""
        with self._lock:
            return self._ask(question)

    def with_sockets(self, count: int, *question: Any) -> tuple[Any, list[socket.socket]]:
        """Ask for what comes with so many sockets for each thing that is returned."""
        with self._lock:
            answer = self._ask(question)
            sockets = []
            for _ in answer:
                _, fds, _, _ = socket.recv_fds(self._end, 1, count)
                sockets += [socket.socket(fileno=fd) for fd in fds]
            return answer, sockets

    def _ask(self, question: tuple[Any, ...]) -> Any:
        send(self._end, (threading.current_thread().name, *question))
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        kind, value = pickle.loads(self._exactly(length))
        if kind == "error":
            raise value
        if kind == "refused":  # by the arbiter; what it says does not survive a pickle
            raise RefusedError(value)
        if kind == "killed":
            raise KilledError
        return value

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._end.recv(length - len(data))
            if not piece:
                raise KilledError  # the world has ended
            data += piece
        return bytes(data)
