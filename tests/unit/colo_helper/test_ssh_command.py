"""``colo-channel ssh`` against a real SSH server: bytes, stderr, exit status, and which host and key are meant."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from colo_helper.channel.peer import ConnectError
from colo_helper.channel.ssh_command import only_vm, pinned_peer
from tests.unit.colo_helper.ssh_peer import SshPeer

LIMIT_S = 30


class Peer(SshPeer):
    """Also speaks on stderr."""

    def do_talk(self, channel):
        channel.sendall(b"to stdout\n")
        channel.sendall_stderr(b"two\nlines\n")
        self._end(channel, 4)

    def do_shout(self, channel):
        """Say more on stderr than a window holds, then answer."""
        for _ in range(40):
            channel.sendall_stderr(b"x" * 65536)
        channel.sendall(b"done")
        self._end(channel, 0)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    made = Peer(tmp_path_factory.mktemp("peer"))
    (made.directory / "h1").mkdir()
    shutil.copy(made.directory / "id_ed25519", made.directory / "h1")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def pinned(peer):
    key = peer.host_key
    line = f"[127.0.0.1]:{peer.port} {key.get_name()} {key.get_base64()} xb\n"
    (peer.directory / "known_hosts").write_text("# pinned\n" + line)
    peer.thaw.set()


def command(peer, *arguments):
    return [
        sys.executable, "-m", "colo_helper.channel.carrier", "ssh", "--directory", str(peer.directory), *arguments
    ]  # fmt: skip


def ssh(peer, *arguments, data=b""):
    done = subprocess.run(
        command(peer, *arguments), input=data, capture_output=True, check=False, timeout=LIMIT_S
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_bytes_words_and_status_are_the_commands(peer):
    assert ssh(peer, "--vm", "h1", "xb", "xl", "migrate-receive", "-e", "talk") == (
        4,
        b"to stdout\n",
        "two\nlines\n",
    )
    assert peer.commands[-1] == "xl migrate-receive -e talk"


def test_options_of_the_command_are_the_commands(peer):
    ssh(peer, "xb", "xl", "-t", "--vm", "h2", "-p", "1", "status")
    assert peer.commands[-1] == "xl -t --vm h2 -p 1 status"


@pytest.mark.parametrize("host", ["xb", "127.0.0.1"])
def test_a_host_is_known_by_name_and_by_address(peer, host):
    assert ssh(peer, host, "bye") == (0, b"farewell", "")
    assert ssh(peer, "-p", str(peer.port), host, "bye") == (0, b"farewell", "")


def test_much_goes_both_ways(peer):
    data = os.urandom(9 << 20)
    assert ssh(peer, "xb", "forward", data=data) == (0, data, "")
    assert ssh(peer, "xb", "digest", data=data) == (0, hashlib.sha256(data).digest(), "")


def test_much_on_stderr_holds_nothing_up(peer):
    status, out, err = ssh(peer, "xb", "shout")
    assert (status, out, len(err)) == (0, b"done", 40 * 65536)


def test_a_refusal_is_the_peers_own_sentence(peer):
    assert ssh(peer, "xb", "refuse") == (1, b"", "No replicator waits for h1 here.\n")


def test_it_ends_with_the_command_while_input_stays_open(peer):
    with subprocess.Popen(
        command(peer, "xb", "bye"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.read() == b"farewell"
        assert process.wait(LIMIT_S) == 0


def test_the_end_of_output_is_passed_on_before_the_status(peer):
    with subprocess.Popen(
        command(peer, "xb", "halfway"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.read() == b"that is all"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0


def test_a_lost_connection_is_a_sentence_and_255(peer):
    status, out, err = ssh(peer, "xb", "vanish")
    assert (status, out) == (255, b"last words")
    assert err.startswith("colo-channel: The command channel to xb broke: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["xc", "bye"],
            "xc is no host pinned in {directory}/known_hosts, which has xb (127.0.0.1 port {port}): use one",
        ),
        (["-p", "1", "xb", "bye"], "xb port 1 is no host pinned in"),
        (["xb"], "Say what shall run at xb: there is no shell."),
        (
            ["--vm", "h9", "xb", "bye"],
            "{directory}/h9/id_ed25519 does not exist on this host: pair the hosts.",
        ),
        (["--user", "root", "xb", "bye"], "xb (127.0.0.1 port {port}) does not accept our key"),
        (["xb", "rm", "-rf"], "xb (127.0.0.1 port {port}) does not run 'rm -rf' for the user colo."),
    ],
)
def test_no_connection_is_a_sentence_and_255(peer, arguments, sentence):
    status, out, err = ssh(peer, *arguments)
    assert (status, out) == (255, b"")
    assert err.startswith("colo-channel: " + sentence.format(directory=peer.directory, port=peer.port))
    assert err.count("\n") == 1


def test_another_host_key_is_not_trusted(peer):
    other = peer.client_key
    line = f"[127.0.0.1]:{peer.port} {other.get_name()} {other.get_base64()} xb\n"
    (peer.directory / "known_hosts").write_text(line)
    status, _, err = ssh(peer, "xb", "bye")
    assert status == 255
    assert "is not the one pinned in" in err


def test_the_vm_is_known_where_there_is_one_only(tmp_path):
    with pytest.raises(ConnectError, match="has keys of no VM: say which VM, --vm NAME"):
        only_vm(tmp_path)
    for vm in ("h1", "h2"):
        (tmp_path / vm).mkdir()
        (tmp_path / vm / "id_ed25519").touch()
        if vm == "h1":
            assert only_vm(tmp_path) == "h1"
    with pytest.raises(ConnectError, match="has keys of h1, h2: say which VM"):
        only_vm(tmp_path)


def test_which_pinned_host_is_meant(tmp_path):
    path = tmp_path / "known_hosts"
    with pytest.raises(ConnectError, match="known_hosts cannot be read"):
        pinned_peer(path, "xb", None)
    path.write_text(
        "# comment\n192.168.77.2 ssh-ed25519 AAAA xb\n192.168.77.2 ecdsa-x BBBB xb\n"
        "[fe80::1]:2222 ssh-ed25519 AAAA xc\n192.168.77.9 ssh-ed25519 AAAA\n@revoked x ssh-ed25519 AAAA xd\n"
        "192.168.78.4 ssh-ed25519 AAAA xe\n[192.168.78.4]:2222 ssh-ed25519 AAAA xe\n"
    )
    assert pinned_peer(path, "xb", None) == ("xb", "192.168.77.2", 22)
    assert pinned_peer(path, "192.168.77.2", 22) == ("xb", "192.168.77.2", 22)
    assert pinned_peer(path, "xc", None) == ("xc", "fe80::1", 2222)
    assert pinned_peer(path, "192.168.77.9", None) == ("192.168.77.9", "192.168.77.9", 22)
    assert pinned_peer(path, "xe", 2222) == ("xe", "192.168.78.4", 2222)
    with pytest.raises(ConnectError, match="xe stands for more than one host pinned in"):
        pinned_peer(path, "xe", None)
    with pytest.raises(ConnectError, match="xd is no host pinned in"):
        pinned_peer(path, "xd", None)
