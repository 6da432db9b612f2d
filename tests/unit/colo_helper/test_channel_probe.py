"""The probe against an SSH server in this process that runs the real forced command, and the command around it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from colo_helper import commands
from colo_helper.channel import attach
from colo_helper.channel.attach import AttachRefusedError, permitted, serve_probe
from colo_helper.channel.peer import PeerAddress
from colo_helper.channel.probe import MAX_ECHOES, MAX_SIZE_BYTES, WARM_UP, WARM_UP_BYTES, probe
from colo_helper.replication import config
from tests.unit.colo_helper.ssh_peer import SshPeer, new_key


class Sshd(SshPeer):
    """Its key is for h1; ``limit_bytes`` is the forced command's bound."""

    def __init__(self, directory):
        self.limit_bytes = attach.PROBE_BYTES
        self.silent = threading.Event()
        super().__init__(directory)

    def do_probe(self, channel):
        ours, theirs = socket.socketpair()
        status = 0
        try:
            permitted(self.commands[-1], "h1")
            self._start(self._pump, channel, ours)
            self._start(self._answer, ours, channel)
            serve_probe(theirs.fileno(), theirs.fileno(), self.limit_bytes)
        except AttachRefusedError as error:
            channel.sendall_stderr(f"{error}\n".encode())
            status = 1
        finally:
            self._end(channel, status)
            theirs.close()

    def _pump(self, channel, ours):
        with contextlib.suppress(OSError):
            while data := channel.recv(65536):
                if not self.silent.is_set():
                    ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)

    def _answer(self, ours, channel):
        with contextlib.suppress(OSError), ours:
            while data := ours.recv(65536):
                channel.sendall(data)

    def close(self):
        super().close()
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def sshd(tmp_path):
    server = Sshd(tmp_path)
    yield server
    server.close()


def run(tmp_path, server, vm="h1", echoes=20, size_bytes=0, timeout_s=10.0, **fields):
    keys = {"key_file": tmp_path / "id_ed25519", "known_hosts": tmp_path / "known_hosts"}
    return probe(
        PeerAddress("xb", "127.0.0.1", server.port, **keys, **fields), vm, echoes, size_bytes, timeout_s
    )


def test_a_way_that_works(sshd, tmp_path):
    report = run(tmp_path, sshd, size_bytes=1 << 20)
    assert report["error"] is None
    assert report["heartbeat"] is None
    assert (report["vm"], report["peer"], report["address"], report["port"]) == (
        "h1",
        "xb",
        "127.0.0.1",
        sshd.port,
    )
    assert report["own_key"] == sshd.client_key.fingerprint
    assert report["host_key"] == sshd.host_key.fingerprint
    assert report["cipher"].startswith("aes")
    assert report["connect_ms"] > 0
    assert 0 < report["rtt_ms"]["p50"] <= report["rtt_ms"]["p99"]
    assert report["rtt_ms"]["echoes"] == 20
    assert report["throughput_mb_s"]["to_peer"] > 0
    assert report["throughput_mb_s"]["from_peer"] > 0
    assert report["throughput_mb_s"]["bytes"] == 1 << 20


def test_a_second_network_is_measured_too(sshd, tmp_path):
    report = run(tmp_path, sshd, heartbeat_address="127.0.0.2")
    assert (report["error"], report["throughput_mb_s"]) == (None, None)
    assert report["heartbeat"]["address"] == "127.0.0.2"
    assert report["heartbeat"]["error"]["cause"] == "unreachable", "this server is at 127.0.0.1 only"
    assert "127.0.0.2" in report["heartbeat"]["error"]["sentence"]
    works = run(tmp_path, sshd, heartbeat_address="127.0.0.1")["heartbeat"]
    assert works["error"] is None
    assert works["rtt_ms"]["echoes"] == 20


@pytest.mark.parametrize(
    ("spoil", "cause", "sentence"),
    [
        (lambda path, _: new_key(path / "id_ed25519"), "auth_refused", "does not accept our key"),
        (lambda path, server: server.pin(new_key(path / "x")), "host_key_changed", "is not the one pinned in"),
        (lambda path, _: (path / "known_hosts").write_text(""), "host_key_unknown", "No host key of"),
        (lambda path, _: (path / "id_ed25519").unlink(), "not_paired", "does not exist on this host"),
        (lambda _, server: setattr(server, "limit_bytes", 1000), "refused",
         "xb refused the probe: A probe moves 0 MiB at most."),
        (lambda _, server: server.silent.set(), "silent", "xb did not answer the probe in time."),
    ],
)  # fmt: skip
def test_a_way_that_does_not_work(sshd, tmp_path, spoil, cause, sentence):
    spoil(tmp_path, sshd)
    report = run(tmp_path, sshd, timeout_s=2.0)
    assert report["error"]["cause"] == cause
    assert sentence in report["error"]["sentence"]
    assert report["throughput_mb_s"] is None


def test_a_key_of_another_vm(sshd, tmp_path):
    assert run(tmp_path, sshd, vm="h2")["error"] == {
        "cause": "refused", "sentence": "xb refused the probe: This key is for the VM h1 only.",
    }  # fmt: skip


def test_the_largest_probe_is_one_that_the_peer_serves():
    moved = 2 * MAX_SIZE_BYTES + WARM_UP_BYTES + 2 * 64 * (MAX_ECHOES + WARM_UP) + 2
    assert moved < attach.PROBE_BYTES


# -------------------------------------------------------------------------------------------- the command


@pytest.fixture
def ask(monkeypatch, capsys, tmp_path):
    """``colo-helper probe`` with the VM's configurations in a directory; returns its status and what it says."""
    monkeypatch.setattr(config, "CONFIG", str(tmp_path / "{vm}.json"))

    def call(*arguments):
        status = commands.dispatch(["probe", *arguments])
        return status, capsys.readouterr().out

    return call


def write_config(tmp_path, role, **peer):
    fields = {
        "format": 1,
        "vm": "h1",
        "role": role,
        "peer_timeout_ms": 5000,
        "bridge": "xenbr0",
        "interval_ms": 1000,
    }
    (tmp_path / "h1.json").write_text(json.dumps({**fields, "peer": {"name": "xb", **peer}}))


def test_the_command_takes_the_address_from_the_configuration(ask, monkeypatch, tmp_path):
    peers = []

    def fake(peer, vm, *numbers):
        peers.append((peer, vm, numbers))
        return {"error": None, "heartbeat": None}

    monkeypatch.setattr("colo_helper.channel.probe.probe", fake)
    write_config(tmp_path, "primary", address="192.168.77.2", port=2222, heartbeat_address="192.168.78.2")
    assert ask("h1", "--json", "--size-bytes", "0") == (0, '{\n "error": null,\n "heartbeat": null\n}\n')
    assert peers == [
        (PeerAddress("xb", "192.168.77.2", 2222, heartbeat_address="192.168.78.2"), "h1", (100, 0, 20))
    ]
    ask("h1", "--json", "--name", "xc", "--address", "192.168.77.3", "--key-file", "/next", "--echoes", "1")
    assert peers[1][0].name == "xc"
    assert (peers[1][0].address, peers[1][0].port, str(peers[1][0].key_file)) == ("192.168.77.3", 22, "/next")


def test_the_command_says_that_it_knows_no_address(ask, tmp_path):
    status, out = ask("h1")
    assert status == 1
    assert out.endswith(
        "cannot be read: No such file or directory. Give the peer's address, or protect the VM.\n"
    )
    write_config(tmp_path, "secondary")
    status, out = ask("h1", "--json")
    assert (status, json.loads(out)["error"]) == (1, {
        "cause": "no_address", "sentence": "The configuration of h1 on its secondary names no address of xb: give one.",
    })  # fmt: skip


def test_the_command_in_sentences(ask, monkeypatch):
    second = {"address": "192.168.78.2", "connect_ms": 1.0, "rtt_ms": {"p50": 0.5, "p99": 1.0}, "error": None}
    report = {
        "peer": "xb", "address": "192.168.77.2", "port": 22, "host_key": "SHA256:h", "cipher": "aes128-gcm@openssh.com",
        "connect_ms": 210.4, "rtt_ms": {"p50": 0.123, "p99": 0.456}, "error": None, "heartbeat": second,
        "throughput_mb_s": {"to_peer": 210.0, "from_peer": 190.0, "bytes": 1},
    }  # fmt: skip
    monkeypatch.setattr("colo_helper.channel.probe.probe", lambda *_: report)
    assert ask("h1", "--address=192.168.77.2") == (
        0,
        "xb (192.168.77.2 port 22), host key SHA256:h\n"
        "connected in 210 ms, aes128-gcm@openssh.com\n"
        "round trip of 64 bytes: 0.12 ms, 99 of 100 within 0.46 ms\n"
        "throughput: 210.0 MB/s to the peer, 190.0 MB/s from it\n"
        "heartbeats: round trip 0.50 ms\n",
    )
    report["heartbeat"] = second | {
        "rtt_ms": None,
        "error": {"cause": "unreachable", "sentence": "xb is away."},
    }
    status, out = ask("h1", "--address=192.168.77.2")
    assert (status, out.splitlines()[-1]) == (1, "heartbeats: xb is away.")


@pytest.mark.parametrize("wrong", ["--echoes=0", "--echoes=10001", "--size-bytes=-1", f"--size-bytes={121 << 20}",
                                   "--port=0", "--timeout-s=x"])  # fmt: skip
def test_numbers_out_of_bounds(ask, wrong, capsys):
    with pytest.raises(SystemExit):
        ask("h1", wrong)
    assert "is not a whole number from" in capsys.readouterr().err
