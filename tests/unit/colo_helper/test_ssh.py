"""The primary's SSH client against a server in this process that runs the real forced command's parser."""

from __future__ import annotations

import socket
import threading

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from colo_helper.channel.attach import AttachRefusedError, parse_command
from colo_helper.channel.ssh import ConnectError, PeerAddress, connect_pair
from colo_helper.channel.stream import ChannelLostError, read_frame, write_frame
from colo_helper.channel.wire import Kind, encode


def nothing():
    """Patience without end."""


def new_key(path):
    """Write an ed25519 key in OpenSSH's format, as ssh-keygen does."""
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    return paramiko.Ed25519Key.from_private_key_file(str(path))


class Sshd(paramiko.ServerInterface):
    """Accepts one key of the user colo and echoes what a good command sends; refuses the rest on stderr."""

    def __init__(self, host_key, client_key):
        self.host_key, self.client_key = host_key, client_key
        self.ciphers, self.commands, self.transports = [], [], []
        self.refuse_with = ""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(self.host_key)
            self.transports.append(transport)
            try:
                transport.start_server(server=self)
            except (paramiko.SSHException, EOFError):
                continue

    def check_auth_publickey(self, username, key):
        return (
            paramiko.AUTH_SUCCESSFUL if (username, key) == ("colo", self.client_key) else paramiko.AUTH_FAILED
        )

    def get_allowed_auths(self, username):
        return "publickey"

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        self.commands.append(command.decode())
        self.ciphers.append(channel.get_transport().remote_cipher)
        thread = threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True)
        self.threads.append(thread)
        thread.start()
        return True

    def _run(self, channel, command):
        try:
            if self.refuse_with:
                raise AttachRefusedError(self.refuse_with)
            parse_command(command)
            while data := channel.recv(65536):
                channel.sendall(data)
        except AttachRefusedError as error:
            channel.sendall_stderr(f"{error}\n".encode())
            channel.send_exit_status(1)
        channel.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for transport in self.transports:
            transport.close()
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def sshd(tmp_path):
    server = Sshd(new_key(tmp_path / "host_key"), new_key(tmp_path / "id_ed25519"))
    pin(tmp_path, server, server.host_key)
    yield server
    server.close()


def pin(tmp_path, server, key):
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {key.get_name()} {key.get_base64()}\n")


def peer(tmp_path, port):
    return PeerAddress("xb", "127.0.0.1", port, tmp_path / "id_ed25519", tmp_path / "known_hosts")


def refused(tmp_path, port):
    with pytest.raises(ConnectError) as caught:
        connect_pair(peer(tmp_path, port), "h1", 5.0)
    return caught.value.cause, str(caught.value)


def test_two_channels_with_gcm(sshd, tmp_path):
    forward, back = connect_pair(peer(tmp_path, sshd.port), "h1", 5.0)
    assert sshd.commands == ["attach h1 forward", "attach h1 back"]
    assert set(sshd.ciphers) == {"aes128-gcm@openssh.com"}
    opened = [read_frame(stream, nothing, 1.0) for stream in (forward, back)]
    assert [frame.kind for frame in opened] == [Kind.OPEN, Kind.OPEN]
    assert [frame.head["channel"] for frame in opened] == ["forward", "back"]
    assert opened[0].head["session"] == opened[1].head["session"]
    write_frame(forward, encode(Kind.CHUNK, {}, (b"p" * 300_000,)), nothing, 1.0)
    assert read_frame(forward, nothing, 1.0).parts == (b"p" * 300_000,)
    assert forward.last_read > 0
    forward.close()
    back.close()


def test_what_the_forced_command_says_is_the_reason(sshd, tmp_path):
    sshd.refuse_with = "The copy of h1 here lost its primary and waits for an operator."
    streams = []

    def attach():
        streams.extend(connect_pair(peer(tmp_path, sshd.port), "h1", 5.0))
        streams[1].read(1, nothing, 1.0)

    # The command may end while the channel is still being opened, or later.
    with pytest.raises(
        (ConnectError, ChannelLostError), match="xb ended the channel: The copy of h1 here lost its primary"
    ):
        attach()
    for stream in streams:
        stream.close()


def test_patience_is_asked_on_a_silent_channel(sshd, tmp_path):
    forward, back = connect_pair(peer(tmp_path, sshd.port), "h1", 5.0)
    read_frame(back, nothing, 1.0)

    def enough():
        raise ChannelLostError("That was long enough.")

    with pytest.raises(ChannelLostError, match="long enough"):
        back.read(1, enough, 0.05)
    forward.close()
    back.close()


def test_a_peer_that_dies(sshd, tmp_path):
    forward, back = connect_pair(peer(tmp_path, sshd.port), "h1", 5.0)
    read_frame(back, nothing, 1.0)
    for transport in sshd.transports:
        transport.close()
    with pytest.raises(ChannelLostError, match="xb"):
        back.read(1, nothing, 1.0)
    forward.close()
    back.close()


def test_a_host_key_that_changed(sshd, tmp_path):
    pin(tmp_path, sshd, new_key(tmp_path / "another"))
    cause, sentence = refused(tmp_path, sshd.port)
    assert cause == "host_key_changed"
    assert "is not the one pinned in" in sentence


def test_a_host_key_nobody_pinned(sshd, tmp_path):
    (tmp_path / "known_hosts").write_text("")
    assert refused(tmp_path, sshd.port)[0] == "host_key_unknown"


def test_a_key_the_peer_does_not_know(sshd, tmp_path):
    new_key(tmp_path / "id_ed25519")
    cause, sentence = refused(tmp_path, sshd.port)
    assert cause == "auth_refused"
    assert "does not accept our key" in sentence


def test_a_host_that_was_never_paired(sshd, tmp_path):
    (tmp_path / "known_hosts").unlink()
    cause, sentence = refused(tmp_path, sshd.port)
    assert cause == "not_paired"
    assert sentence.endswith("known_hosts does not exist on this host: pair the hosts.")


def test_nobody_listens(tmp_path, sshd):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert port != sshd.port
    cause, sentence = refused(tmp_path, port)
    assert cause == "unreachable"
    assert sentence.startswith(f"xb (127.0.0.1 port {port}) cannot be reached: ")
