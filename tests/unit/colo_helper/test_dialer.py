"""The replicator's side of colo-channel, with the real program, and with programs that misbehave."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

import pytest

from colo_helper.channel import dialer as dialer_module
from colo_helper.channel.dialer import ConnectError, Dialer, default_program
from colo_helper.channel.peer import PeerAddress, key_file
from tests.unit.colo_helper.ssh_peer import SshPeer, fill, read_all, read_exactly

LIMIT_S = 30


@pytest.fixture
def peer(tmp_path):
    peer = SshPeer(tmp_path)
    yield peer
    peer.thaw.set()
    peer.close()


@pytest.fixture
def ends():
    return queue.Queue()


@pytest.fixture
def dialer(peer, ends):
    dialer = Dialer.start(peer.address(), "h1", on_end=lambda number, end: ends.put((number, end)))
    yield dialer
    dialer.close()


def pid_of(dialer):
    return dialer._carrier.process.pid


def test_a_connection(dialer, peer):
    connection = dialer.open("forward", LIMIT_S)
    assert (connection.channel, connection.host_key) == ("forward", peer.host_key.fingerprint)
    assert not os.get_inheritable(connection.socket.fileno())
    with connection.socket as sock:
        data = os.urandom(1 << 20)
        writer = threading.Thread(target=sock.sendall, args=(data,))
        writer.start()
        assert hashlib.sha256(read_exactly(sock, len(data))).digest() == hashlib.sha256(data).digest()
        writer.join()
        dialer.idle()
        assert dialer.why(connection.id, 0.0) is None


def test_several_at_once(dialer, peer):
    answers = queue.Queue()

    def one(channel):
        try:
            answers.put((channel, dialer.open(channel, LIMIT_S)))
        except ConnectError as error:
            answers.put((channel, error.cause))

    channels = ["forward", "back", "nonsense", "frozen", "digest"]
    threads = [threading.Thread(target=one, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    found = dict(answers.get_nowait() for _ in channels)
    assert found.pop("nonsense") == "refused"
    assert {name: connection.channel for name, connection in found.items()} == {name: name for name in found}
    for connection in found.values():
        connection.socket.close()


def test_how_a_connection_ended(dialer, ends):
    connection = dialer.open("refuse", LIMIT_S)
    with connection.socket as sock:
        assert read_all(sock) == b""
    end = dialer.why(connection.id, LIMIT_S)
    assert end.cause == "refused"
    assert end.sentence.endswith("No replicator waits for h1 here.")
    assert ends.get(timeout=LIMIT_S) == (connection.id, end)


def test_a_peer_that_only_stopped_writing(dialer):
    connection = dialer.open("halfway", LIMIT_S)
    with connection.socket as sock:
        assert read_all(sock) == b"that is all"
        assert dialer.why(connection.id, 0.1) is None


def test_a_program_that_is_killed(dialer, peer, ends):
    connections = [dialer.open(channel, LIMIT_S) for channel in ("forward", "frozen")]
    fill(connections[1].socket)
    os.kill(pid_of(dialer), signal.SIGKILL)
    told = dict(ends.get(timeout=LIMIT_S) for _ in connections)
    for connection in connections:
        end = dialer.why(connection.id, LIMIT_S)
        assert told[connection.id] == end
        assert (end.cause, end.sentence) == (
            "carrier_lost",
            "The program colo-channel ended with status -9; its connections to xb are gone.",
        )
    assert read_all(connections[0].socket) == b""
    with pytest.raises(BrokenPipeError):
        connections[1].socket.send(b"too late")
    for connection in connections:
        connection.socket.close()
    again = dialer.open("back", LIMIT_S)
    with again.socket as sock:
        sock.sendall(b"anew")
        assert read_exactly(sock, 4) == b"anew"


def test_killed_while_a_connection_is_opened(ends):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stopped = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"]
        peer = PeerAddress("xb", "127.0.0.1", silent.getsockname()[1])
        dialer = Dialer.start(peer, "h1", program=stopped)
        pid = pid_of(dialer)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        killer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(ConnectError, match="colo-channel ended with status -9") as caught:
            dialer.open("forward", LIMIT_S)
        assert caught.value.cause == "carrier_lost"
        killer.join()
        dialer.close()


def test_a_program_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(dialer_module, "_ANSWER_SLACK_S", 0.0)
    monkeypatch.setattr(dialer_module, "_CLOSE_S", 0.0)
    sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
    dialer = Dialer.start(PeerAddress("xb", "127.0.0.1", 22), "h1", program=sleeper)
    with pytest.raises(ConnectError, match="does not answer") as caught:
        dialer.open("forward", 0.1)
    assert caught.value.cause == "carrier_lost"
    dialer.close()


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(ConnectError, match="cannot be run: No such file") as caught:
        Dialer.start(PeerAddress("xb", "127.0.0.1", 22), "h1", program=[str(tmp_path / "none")])
    assert caught.value.cause == "carrier_lost"


def test_closing(peer):
    dialer = Dialer.start(peer.address(), "h1")
    process = dialer._carrier.process
    connection = dialer.open("forward", LIMIT_S)
    dialer.close()
    dialer.close()
    assert process.returncode == 0
    assert read_all(connection.socket) == b""
    assert dialer.why(connection.id, LIMIT_S).cause == "carrier_lost"
    connection.socket.close()
    with pytest.raises(ConnectError, match="given up on this side"):
        dialer.open("forward", LIMIT_S)
    dialer.idle()


def test_the_launcher_of_a_release_is_taken(tmp_path, monkeypatch):
    assert default_program()[:2] == [sys.executable, "-IS"]
    release = tmp_path / "release"
    (release / "bin").mkdir(parents=True)
    (release / "bin" / "colo-channel").touch()
    module = release / "site-packages" / "colo_helper" / "channel" / "dialer.py"
    monkeypatch.setattr(dialer_module, "__file__", str(module))
    assert default_program() == [str(release / "bin" / "colo-channel")]


def test_it_imports_no_ssh():
    code = "import sys, colo_helper.channel.dialer; sys.exit('paramiko' in sys.modules or 'cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_where_a_key_lies():
    assert str(key_file("h1")) == "/etc/colo/ssh/h1/id_ed25519"
