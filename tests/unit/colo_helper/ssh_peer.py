"""An SSH server in the test's process whose commands are what a test needs of a peer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from colo_helper.channel.peer import PeerAddress

SECOND_ADDRESS = "127.0.0.2"
#: How long a side must not have moved to count as blocked; too short only makes a test weaker.
BLOCKED_S = 0.3


def new_key(path):
    """Write an ed25519 key in OpenSSH's format, as ssh-keygen does."""
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    return paramiko.Ed25519Key.from_private_key_file(str(path))


class SshPeer(paramiko.ServerInterface):
    """Runs ``attach h1 NAME`` as the method ``do_NAME``."""

    def __init__(self, directory):
        self.directory = directory
        self.host_key = new_key(directory / "host_key")
        self.client_key = new_key(directory / "id_ed25519")
        self.listeners, self.transports, self.commands, self.threads = [], [], [], []
        self.only_cipher = None
        self.thaw = threading.Event()
        self.poured_before_blocked = 0
        self.received_after_half_close = b""
        self.done = threading.Event()
        self.port = self.listen("127.0.0.1", 0)
        self.pin(self.host_key)

    def listen(self, address, port):
        listener = socket.create_server((address, port))
        self.listeners.append(listener)
        self._start(self._accept, listener)
        return listener.getsockname()[1]

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def pin(self, *keys, name=None):
        name = name or f"[127.0.0.1]:{self.port}"
        lines = [f"{name} {key.get_name()} {key.get_base64()}\n" for key in keys]
        (self.directory / "known_hosts").write_text("# pinned\n" + "".join(lines))

    def address(self, **changes):
        given = {
            "name": "xb",
            "address": "127.0.0.1",
            "port": self.port,
            "key_file": self.directory / "id_ed25519",
            "known_hosts": self.directory / "known_hosts",
            "heartbeat_address": SECOND_ADDRESS,
        }
        return PeerAddress(**{**given, **changes})

    def close(self):
        for listener in self.listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for transport in self.transports:
            transport.close()

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(self.host_key)
            if self.only_cipher:
                transport.get_security_options().ciphers = [self.only_cipher]
            self.transports.append(transport)
            threading.Thread(target=self._greet, args=(transport,), daemon=True).start()

    def _greet(self, transport):
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=self)

    def check_auth_publickey(self, username, key):
        good = (username, key) == ("colo", self.client_key)
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username):
        return "publickey"

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        self.commands.append(command.decode())
        work = getattr(self, f"do_{command.decode().split()[-1]}", None)
        if work is None:
            return False
        transport = channel.get_transport()
        send, replied = transport._send_user_message, threading.Event()

        def first(message):
            transport._send_user_message = send
            send(message)
            replied.set()

        transport._send_user_message = first  # sshd starts no command before it has said so
        self._start(self._run, work, channel, replied)
        return True

    def _run(self, work, channel, replied):
        replied.wait()
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # a test may end in the middle
            work(channel)

    # ------------------------------------------------------------------------------------------------- commands

    def do_forward(self, channel):
        while data := channel.recv(65536):
            channel.sendall(data)
        self._end(channel, 0)

    do_back = do_heartbeat = do_forward

    def do_digest(self, channel):
        """Take everything, only once it may, and answer with its hash."""
        self.thaw.wait()
        digest = hashlib.sha256()
        while data := channel.recv(1 << 20):
            digest.update(data)
        channel.sendall(digest.digest())
        self._end(channel, 0)

    def do_pour(self, channel):
        """Send 64 MiB, and remember when nobody took any more."""
        piece = os.urandom(32 << 10)
        digest, sent = hashlib.sha256(), 0
        channel.settimeout(BLOCKED_S)
        while sent < 64 << 20:
            try:
                count = channel.send(piece)
            except TimeoutError:
                self.poured_before_blocked = sent
                channel.settimeout(None)
                self.done.set()
                continue
            digest.update(piece[:count])
            sent += count
        self.poured, self.digest = sent, digest.digest()
        self._end(channel, 0)

    def do_halfway(self, channel):
        """Say something, stop writing, and go on reading."""
        channel.sendall(b"that is all")
        channel.shutdown_write()
        while data := channel.recv(65536):
            self.received_after_half_close += data
        self.done.set()
        self._end(channel, 0)

    def do_bye(self, channel):
        channel.sendall(b"farewell")
        self._end(channel, 0)

    def do_status(self, channel):
        self._end(channel, 3)

    def do_shut(self, channel):
        channel.close()  # without an exit status, as when a command is killed

    def do_refuse(self, channel):
        channel.sendall_stderr(b"No replicator waits for h1 here.\n")
        self._end(channel, 1)

    def do_vanish(self, channel):
        channel.sendall(b"last words")
        channel.get_transport().close()

    def do_frozen(self, channel):
        self.thaw.wait()

    def _end(self, channel, status):
        channel.send_exit_status(status)
        channel.close()


def fill(sock):
    """Write until nobody takes any more; returns the bytes, at most 64 MiB."""
    sock.settimeout(BLOCKED_S)
    piece, sent = bytes(64 << 10), 0
    try:
        while sent < 64 << 20:
            sent += sock.send(piece)
    except TimeoutError:
        pass
    sock.settimeout(None)
    return sent


def read_all(sock):
    """Read to the end."""
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def read_exactly(sock, count):
    """Read so many bytes; fewer only at the end."""
    data = bytearray()
    while len(data) < count and (piece := sock.recv(count - len(data))):
        data += piece
    return bytes(data)
