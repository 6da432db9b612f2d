"""The program colo-channel by its protocol: every cause, half-close, back-pressure, and that nobody waits for another."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from colo_helper.channel.bridge import Bridge
from colo_helper.channel.carrier import OrderError, parse_order
from colo_helper.channel.dialer import program_arguments
from colo_helper.channel.packetizer import GcmPacketizer
from colo_helper.channel.ssh import CIPHERS_WITHOUT_AES, PREFERRED_CIPHERS, ciphers, connect
from tests.unit.colo_helper.ssh_peer import SECOND_ADDRESS, SshPeer, fill, new_key, read_all, read_exactly

LIMIT_S = 30  # of what never takes long


class Program:
    """A running colo-channel and our end of its control socket."""

    def __init__(self, peer):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(LIMIT_S)
        with theirs:
            command = [sys.executable, "-m", "colo_helper.channel.carrier", *program_arguments(peer, "h1")]
            self.process = subprocess.Popen(
                [*command, "--control-fd", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self.number = 0
        self.messages = []

    def order(self, **order):
        self.control.send(json.dumps(order).encode())

    def next(self, number):
        """The next message about a connection, and the socket that came with it."""
        while True:
            for index, (message, given) in enumerate(self.messages):
                if message["id"] == number:
                    del self.messages[index]
                    return message, given
            data, fds, _, _ = socket.recv_fds(self.control, 65536, 1)
            assert data, "the program has ended"
            self.messages.append((json.loads(data), socket.socket(fileno=fds[0]) if fds else None))

    def open(self, channel, timeout_ms=LIMIT_S * 1000):
        self.number += 1
        self.order(open=channel, id=self.number, timeout_ms=timeout_ms)
        message, sock = self.next(self.number)
        if sock:
            sock.settimeout(LIMIT_S)
        return self.number, message, sock

    def end(self, number):
        message, _ = self.next(number)
        return message["ended"]["cause"], message["ended"]["sentence"]

    def refusal(self, channel, **options):
        _, message, _ = self.open(channel, **options)
        return message["error"]["cause"], message["error"]["sentence"]

    def stop(self):
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(LIMIT_S)
        self.process.kill()
        return self.process.wait()


@pytest.fixture(scope="module")
def program_and_peer(tmp_path_factory):
    peer = SshPeer(tmp_path_factory.mktemp("peer"))
    program = Program(peer.address())
    yield program, peer
    assert program.stop() == 0
    peer.close()


@pytest.fixture
def peer(program_and_peer):
    peer = program_and_peer[1]
    peer.thaw.clear()
    peer.done.clear()
    yield peer
    peer.thaw.set()
    peer.only_cipher = None
    peer.pin(peer.host_key)


@pytest.fixture
def program(program_and_peer):
    return program_and_peer[0]


def test_what_is_told_of_a_connection(program, peer):
    _, message, sock = program.open("forward")
    opened = message["opened"]
    assert opened["cipher"] in PREFERRED_CIPHERS
    assert opened["host_key"] == peer.host_key.fingerprint
    assert opened["ms"] >= 0
    assert peer.commands[-1] == "attach h1 forward"
    with sock:
        sock.sendall(b"x" * 100_000)
        assert read_exactly(sock, 100_000) == b"x" * 100_000


@pytest.mark.parametrize(
    ("command", "cause", "sentence", "data"),
    [
        ("bye", "peer_closed", "xb closed the bye channel.", b"farewell"),
        ("status", "peer_closed", "xb closed the status channel with status 3.", b""),
        ("shut", "peer_closed", "xb closed the shut channel.", b""),
        ("refuse", "refused", "xb refused the refuse channel: No replicator waits for h1 here.", b""),
        ("vanish", "broken", "The vanish channel to xb broke: the connection was lost.", b"last words"),
    ],
)
def test_how_a_connection_ends(program, peer, command, cause, sentence, data):
    number, _, sock = program.open(command)
    with sock:
        assert program.end(number) == (cause, sentence)
        assert read_all(sock) == data
        with pytest.raises(BrokenPipeError):
            sock.send(b"too late")


def test_closed_on_this_side(program, peer):
    number, _, sock = program.open("forward")
    sock.sendall(b"to be delivered")
    sock.close()
    assert program.end(number) == ("closed", "The forward channel to xb was closed on this side.")


def test_a_command_that_is_not_run(program, peer):
    cause, sentence = program.refusal("nonsense")
    assert cause == "refused"
    assert sentence.endswith("does not run 'attach h1 nonsense' for the user colo.")


def test_the_heartbeat_takes_the_second_network(program, peer):
    cause, sentence = program.refusal("heartbeat")
    assert cause == "unreachable"
    assert sentence.startswith(f"xb ({SECOND_ADDRESS} port {peer.port}) cannot be reached: ")
    peer.listen(SECOND_ADDRESS, peer.port)
    _, message, sock = program.open("heartbeat")
    assert "opened" in message, "the host key is the one pinned for the first network"
    sock.close()


def test_a_peer_that_does_not_answer(program, peer, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = SshPeer(tmp_path)
        program = Program(other.address(port=silent.getsockname()[1]))
        other.pin(other.host_key, name=f"[127.0.0.1]:{silent.getsockname()[1]}")
        cause, sentence = program.refusal("forward", timeout_ms=200)
        assert cause == "unreachable"
        assert sentence.endswith("did not let us in within 0.2 s.")
        program.stop()
        other.close()


def test_a_key_the_peer_does_not_know(program, peer):
    known, peer.client_key = peer.client_key, peer.host_key
    cause, sentence = program.refusal("forward")
    peer.client_key = known
    assert cause == "auth_refused"
    assert f"does not accept our key {peer.directory / 'id_ed25519'} for the user colo" in sentence


def test_a_host_key_that_changed(program, peer, tmp_path):
    peer.pin(new_key(tmp_path / "another"))
    cause, sentence = program.refusal("forward")
    assert cause == "host_key_changed"
    assert "is not the one pinned in" in sentence


def test_a_host_key_that_is_about_to_change(program, peer, tmp_path):
    peer.pin(new_key(tmp_path / "next"), peer.host_key)
    _, message, sock = program.open("forward")
    assert "opened" in message
    sock.close()


def test_a_host_key_nobody_pinned(program, peer):
    peer.pin()
    cause, sentence = program.refusal("forward")
    assert cause == "host_key_unknown"
    assert sentence.startswith(f"No host key of xb is pinned as [127.0.0.1]:{peer.port} in ")


@pytest.mark.parametrize("missing", ["known_hosts", "id_ed25519"])
def test_a_host_that_was_never_paired(program, peer, missing):
    path = peer.directory / missing
    path.rename(peer.directory / "away")
    cause, sentence = program.refusal("forward")
    (peer.directory / "away").rename(path)
    assert cause == "not_paired"
    assert sentence == f"{path} does not exist on this host: pair the hosts."


def test_a_key_file_with_something_else(program, peer):
    path = peer.directory / "id_ed25519"
    good = path.read_bytes()
    path.write_text("not a key\n")
    cause, sentence = program.refusal("forward")
    path.write_bytes(good)
    assert cause == "not_paired"
    assert sentence.startswith(f"{path} holds no private key of the kind ed25519")


def test_ssh_without_anything_in_common(program, peer):
    peer.only_cipher = "3des-cbc"
    assert program.refusal("forward")[0] == "ssh_failed"


def test_half_close_outward(program, peer):
    peer.thaw.set()
    number, _, sock = program.open("digest")
    data = os.urandom(3_000_001)
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == hashlib.sha256(data).digest()
    assert program.end(number)[0] == "peer_closed"


def test_half_close_inward(program, peer):
    number, _, sock = program.open("halfway")
    with sock:
        assert read_all(sock) == b"that is all"
        sock.sendall(b"but we go on")
        sock.shutdown(socket.SHUT_WR)
        assert program.end(number) == ("peer_closed", "xb closed the halfway channel.")
    assert peer.done.wait(LIMIT_S)
    assert peer.received_after_half_close == b"but we go on"


def peak_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def test_back_pressure_outward(program, peer):
    before = peak_kib(program.process.pid)
    _, _, sock = program.open("digest")
    with sock:
        sent = fill(sock)
        assert 2 << 20 <= sent < 8 << 20  # SSH's window and the buffers of two sockets
        peer.thaw.set()
        digest = hashlib.sha256(bytes(sent))
        piece = os.urandom(1 << 20)
        while sent < 64 << 20:
            sock.sendall(piece)
            digest.update(piece)
            sent += len(piece)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == digest.digest()
    assert peak_kib(program.process.pid) - before < 24 << 10


def test_back_pressure_inward(program, peer):
    before = peak_kib(program.process.pid)
    number, _, sock = program.open("pour")
    with sock:
        assert peer.done.wait(LIMIT_S)
        assert 1 << 20 <= peer.poured_before_blocked < 8 << 20
        digest, received = hashlib.sha256(), 0
        while piece := sock.recv(1 << 20):
            digest.update(piece)
            received += len(piece)
        assert program.end(number)[0] == "peer_closed"
        assert received == peer.poured >= 64 << 20
        assert digest.digest() == peer.digest
    assert peak_kib(program.process.pid) - before < 24 << 10


def test_a_frozen_peer_holds_nobody_else(program, peer):
    _, _, frozen = program.open("frozen")
    fill(frozen)
    _, _, sock = program.open("back")
    with sock:
        sock.sendall(b"quick")
        assert read_exactly(sock, 5) == b"quick"
    frozen.close()


def test_what_is_no_order_changes_nothing(program, peer):
    program.control.send(b"nonsense")
    program.order(open=1, id="x")
    program.order(idle=True)
    _, message, sock = program.open("forward")
    assert "opened" in message
    sock.close()


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not an object"),
        (b'{"open": "forward"}', "neither opens"),
        (b'{"open": "forward", "id": true}', "neither opens"),
        (b'{"open": "forward", "id": 1, "timeout_ms": 0}', "not a positive number"),
    ],
)
def test_orders_that_are_none(order, why):
    with pytest.raises(OrderError, match=why):
        parse_order(order)


def test_orders():
    assert parse_order(b'{"idle": true}') is None
    assert parse_order(b'{"open": "back", "id": 7}') == ("back", 7, 60.0)
    assert parse_order(b'{"open": "back", "id": 7, "timeout_ms": 1500}') == ("back", 7, 1.5)


@pytest.mark.parametrize("how", ["the control socket is closed", "SIGTERM"])
def test_everything_ends_with_the_program(tmp_path, how):
    peer = SshPeer(tmp_path)
    program = Program(peer.address())
    _, _, busy = program.open("frozen")
    _, _, idle = program.open("forward")
    fill(busy)
    if how == "SIGTERM":
        program.process.send_signal(signal.SIGTERM)
        assert program.control.recv(100) == b""
    assert program.stop() == 0
    assert idle.recv(1) == b""
    with busy, pytest.raises(BrokenPipeError):
        busy.sendall(b"too late")
    idle.close()
    peer.thaw.set()
    peer.close()


@contextlib.contextmanager
def bridge_to(peer, command, ends):
    """A bridge in this process, and the replicator's end of it."""
    local, remote = socket.socketpair()
    remote.settimeout(LIMIT_S)
    bridge = Bridge(command, connect(peer.address(), "h1", command, LIMIT_S), local, ends.append)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    with local, remote:
        yield bridge, remote
        remote.shutdown(socket.SHUT_WR)
        read_all(remote)
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def test_new_keys_in_a_quiet_moment(peer, monkeypatch):
    ends = []
    with bridge_to(peer, "forward", ends) as (bridge, remote):
        assert not bridge.renew_keys(), "the first ones are still good"
        monkeypatch.setattr("colo_helper.channel.bridge.RENEW_AFTER_BYTES", 100_000)
        remote.sendall(b"1" * 200_000)
        assert read_exactly(remote, 200_000) == b"1" * 200_000
        assert bridge.renew_keys()
        assert not bridge.renew_keys()
        monkeypatch.setattr("colo_helper.channel.bridge.RENEW_AFTER_S", 0.0)
        assert bridge.renew_keys(), "they are too old"
        remote.sendall(b"2" * 200_000)
        assert read_exactly(remote, 200_000) == b"2" * 200_000
    assert [end.cause for end in ends] == ["peer_closed"]


def test_new_keys_again_and_again_under_load(peer, monkeypatch):
    monkeypatch.setattr(GcmPacketizer, "REKEY_BYTES", 1 << 20)
    keys = []
    original = GcmPacketizer.set_outbound_cipher
    monkeypatch.setattr(
        GcmPacketizer, "set_outbound_cipher", lambda *args, **more: (keys.append(1), original(*args, **more))
    )
    peer.thaw.set()
    ends = []
    data = os.urandom(8 << 20)
    with bridge_to(peer, "digest", ends) as (_, remote):
        remote.sendall(data)
        remote.shutdown(socket.SHUT_WR)
        assert read_all(remote) == hashlib.sha256(data).digest()
    assert len(keys) > 3
    assert [end.cause for end in ends] == ["peer_closed"]


def test_gcm_comes_first_where_the_processor_has_aes():
    assert ciphers("processor\t: 0\nflags\t\t: fpu aes sse2\n") == PREFERRED_CIPHERS
    assert ciphers("flags\t\t: fpu vaes\n") == CIPHERS_WITHOUT_AES
    assert ciphers("Features\t: fp asimd aes\n") == PREFERRED_CIPHERS
    assert ciphers("") == PREFERRED_CIPHERS
