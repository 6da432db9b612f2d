"""``colo-channel ssh``: what ``xl migrate -s`` and ``xl remus -s`` run instead of ssh. One command at a peer.

    xl migrate -s "/opt/colo-helper/current/bin/colo-channel ssh --vm h1" h1 xb

stdin and stdout are the command's, its words on stderr pass through, and its exit status is ours; 255 and one sentence when
there is no connection. The key is the VM's, and a host must be pinned: nobody is asked, and nothing is trusted at first use.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path

import paramiko

from colo_helper.channel.attach import widen
from colo_helper.channel.bridge import Bridge
from colo_helper.channel.peer import KNOWN_HOSTS, SSH_DIRECTORY, USER, ConnectError, End, PeerAddress
from colo_helper.channel.ssh import connect

#: As ssh's own when it has no connection, or lost it.
NO_CONNECTION = 255
_TIMEOUT_S = 60.0
_SSH_PORT = 22
_SAID_BYTES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``colo-channel ssh`` takes."""
    parser.add_argument("--vm", help="whose key is used; not needed where this host has one VM's only")
    parser.add_argument("-p", "--port", type=int, help="the peer's port; the pinned one when not given")
    parser.add_argument("--user", default=USER)
    parser.add_argument(
        "--directory", type=Path, default=SSH_DIRECTORY, help="of the keys and of known_hosts"
    )
    parser.add_argument("host", metavar="HOST", help="the peer's address, or its name in the inventory")
    parser.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)


class StandardStreams:
    """Standard input and output in place of a bridge's socket."""

    def __init__(self, read_fd: int = 0, write_fd: int = 1) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._ended = os.eventfd(0)
        for descriptor in (read_fd, write_fd):
            widen(descriptor)

    def recv_into(self, buffer: memoryview, /) -> int:
        """Wait for bytes; 0 at their end, and once ``shutdown`` was called."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        poll.register(self._ended, select.POLLIN)
        if any(descriptor == self._ended for descriptor, _ in poll.poll()):
            return 0
        return os.readv(self._read_fd, [buffer])

    def sendall(self, data: bytes, /) -> None:
        """Write all of it; raises OSError."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._write_fd, rest) :]

    def shutdown(self, how: int, /) -> None:
        """End one way or both; raises OSError. Standard output becomes /dev/null, so that who reads it sees its end."""
        if how != socket.SHUT_WR:
            os.eventfd_write(self._ended, 1)
        if how != socket.SHUT_RD:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._write_fd)
            os.close(null)

    def fileno(self) -> int:
        """Return where input is read."""
        return self._read_fd

    def close(self) -> None:
        """Free what is not the caller's."""
        os.close(self._ended)


def only_vm(directory: Path) -> str:
    """Return the VM that this host has a key for; raises ConnectError when there is not exactly one."""
    names = sorted(path.parent.name for path in directory.glob("*/id_ed25519"))
    if len(names) != 1:
        raise ConnectError(
            "not_paired",
            f"{directory} has keys of {', '.join(names) or 'no VM'}: say which VM, --vm NAME, or run playbooks/site.yml.",
        )
    return names[0]


def pinned_peer(known_hosts: Path, host: str, port: int | None) -> tuple[str, str, int]:
    """Return (name, address, port) of the pinned host with that address or name; raises ConnectError.

    A line is ``ADDRESS KIND KEY NAME`` or begins with ``[ADDRESS]:PORT``, as the module colo_channel writes it.
    """
    try:
        lines = known_hosts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConnectError(
            "not_paired", f"{known_hosts} cannot be read ({error.strerror}): run playbooks/site.yml."
        ) from error
    found = {
        (words[3] if len(words) > 3 else address, address, number)
        for words in map(str.split, lines)
        if len(words) >= 3 and not words[0].startswith(("#", "@"))
        for address, number in [_address(words[0])]
    }
    fitting = {one for one in found if host in one[:2] and port in (None, one[2])}
    if len(fitting) == 1:
        return fitting.pop()
    there = ", ".join(f"{name} ({address} port {number})" for name, address, number in sorted(found))
    which = host if port is None else f"{host} port {port}"
    raise ConnectError(
        "host_key_unknown",
        f"{which} {'stands for more than one' if fitting else 'is no'} host pinned in {known_hosts}, which has "
        f"{there or 'none'}: use one of these, or run playbooks/site.yml.",
    )


def _address(text: str) -> tuple[str, int]:
    address, _, port = text.removeprefix("[").rpartition("]:")
    return (address, int(port)) if text.startswith("[") and port.isdecimal() else (text, _SSH_PORT)


def run_command(chosen: argparse.Namespace) -> int:
    """Run the command at the peer; returns its exit status, or 255 after a sentence on stderr."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as ssh: ends at once, and with it the connection
    try:
        if not chosen.words:
            raise ConnectError("refused", f"Say what shall run at {chosen.host}: there is no shell.")
        vm = chosen.vm or only_vm(chosen.directory)
        known_hosts = chosen.directory / KNOWN_HOSTS.name
        name, address, port = pinned_peer(known_hosts, chosen.host, chosen.port)
        key = chosen.directory / vm / "id_ed25519"
        peer = PeerAddress(name, address, port, key, known_hosts, user=chosen.user)
        connection = connect(peer, vm, "command", _TIMEOUT_S, " ".join(chosen.words))
    except ConnectError as error:
        return _fail(str(error))
    words = threading.Thread(target=_pass_words, args=(connection.channel,), name="stderr", daemon=True)
    words.start()
    ends: list[End] = []
    streams = StandardStreams()
    Bridge("command", connection, streams, ends.append, said=str).run()
    words.join()
    streams.close()
    status = connection.channel.recv_exit_status()
    return status if status >= 0 else _fail(ends[0].sentence)


def _pass_words(channel: paramiko.Channel) -> None:
    """Give what the command says on stderr to ours, until the connection has ended."""
    while data := channel.recv_stderr(_SAID_BYTES):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(sys.stderr.fileno(), rest) :]


def _fail(sentence: str) -> int:
    sys.stderr.write(f"colo-channel: {sentence}\n")
    return NO_CONNECTION
