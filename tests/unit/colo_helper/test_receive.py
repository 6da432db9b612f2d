"""A VM's stream from the forced command to xl: hand-over, exit status, words on stderr, and what is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from array import array

import pytest

from colo_helper.channel import attach, receive
from colo_helper.channel.attach import AttachRefusedError

#: Stands for xl: says what it was called with, answers its input, leaves a daemon behind, and ends as it was told.
STAND_IN = """#!/bin/sh
echo "migration target: $*" >&2
sleep 30 < /dev/null > /dev/null 2>&1 &
echo $! > "$(dirname "$0")/daemon"
read -r status
echo "got $status"
exit "$status"
"""


class Receiver:
    """What systemd does with the socket: one run of the receiver for each connection."""

    def __init__(self, directory):
        self.directory = directory
        self.path = str(directory / "receive.sock")
        self.xl = directory / "xl"
        self.xl.write_text(STAND_IN)
        self.xl.chmod(0o755)
        self.keys = directory / "authorized_keys"
        self.allow("h1")
        self.results = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def allow(self, vm, mark=" --receive"):
        line = f'restrict,command="{attach.FORCED}{vm}{mark}" ssh-ed25519 AAAA colo-channel {vm} xb\n'
        self.keys.write_text(f"# {line}{line}")

    def _serve(self):
        while True:
            try:
                control, _ = self.listener.accept()
            except OSError:
                return
            with control:
                self.results.append(receive.serve(control, str(self.xl), self.keys))

    def close(self):
        if self.listener.fileno() >= 0:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.thread.join(10)
            self.listener.close()
        daemon = self.directory / "daemon"
        if daemon.exists():
            os.kill(int(daemon.read_text()), signal.SIGKILL)
            daemon.unlink()


@pytest.fixture
def receiver(tmp_path):
    made = Receiver(tmp_path)
    yield made
    made.close()


def ask(receiver, vm, command, data=b""):
    """Hand over three pipes as the forced command does; returns the status, and what came on stdout and stderr."""
    pipes = [os.pipe() for _ in range(3)]
    (stdin, feed), (out, stdout), (err, stderr) = pipes
    os.write(feed, data)
    os.close(feed)
    try:
        status = attach.receive(receiver.path, vm, command, (stdin, stdout, stderr))
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    texts = []
    for descriptor in (out, err):
        with os.fdopen(descriptor) as stream:
            texts.append(stream.read())
    return status, *texts


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_xl_gets_the_channel_and_its_status_comes_back(receiver, status, capfd):
    answer = ask(receiver, "h1", "xl -t -vv migrate-receive -e -d", f"{status}\n".encode())
    assert answer == (status, f"got {status}\n", "migration target: -t -vv migrate-receive -e -d\n")
    receiver.close()
    assert receiver.results == [0]
    said = capfd.readouterr().err
    assert "h1: xl -t -vv migrate-receive -e -d\n" in said
    assert f"h1: xl ended with status {status}\n" in said


FORCED = """import sys
from colo_helper.channel import attach
attach.RECEIVE_SOCKET = sys.argv[1]
sys.exit(attach.main(["h1", "--receive"]))
"""
RECEIVES = """import sys
from colo_helper import cli
from colo_helper.channel import receive
receive.XL, receive.AUTHORIZED_KEYS = sys.argv[1], receive.Path(sys.argv[2])
sys.argv = ["colo-helper", "receive"]
sys.exit(cli.main())
"""


def test_from_the_forced_command_to_xl_by_the_programs(receiver):
    """As sshd and systemd start them; the receiver has the connection as its standard input."""
    receiver.close()
    path = receiver.directory / "program.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        environment = {**os.environ, "SSH_ORIGINAL_COMMAND": "xl migrate-receive -r"}
        forced = subprocess.Popen(
            [sys.executable, "-c", FORCED, path],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        control, _ = listener.accept()
    with control:
        received = subprocess.Popen(
            [sys.executable, "-c", RECEIVES, receiver.xl, receiver.keys],
            stdin=control,
            stderr=subprocess.PIPE,
        )
    out, err = forced.communicate(b"5\n", timeout=30)
    assert (forced.returncode, out, err) == (5, b"got 5\n", b"migration target: migrate-receive -r\n")
    _, journal = received.communicate(timeout=30)
    assert (received.returncode, journal.decode().splitlines()) == (
        0,
        ["h1: xl migrate-receive -r", "h1: xl ended with status 5"],
    )


def test_a_killed_xl_has_a_shells_status(receiver):
    receiver.xl.write_text("#!/bin/sh\nkill -KILL $$\n")
    assert ask(receiver, "h1", "xl migrate-receive")[0] == 137


@pytest.mark.parametrize(
    ("vm", "command", "sentence"),
    [
        ("h2", "xl migrate-receive", "This host receives no VM by a key of 'h2': set colo_channel_receive"),
        ("../h1", "xl migrate-receive", "This host receives no VM by a key of '../h1'"),
        ("h1", "xl migrate-receive --coloft-script /tmp/x", "This account takes no '--coloft-script' with"),
        ("h1", "xl create", "Of xl this account takes 'xl migrate-receive' only."),
        ("h1", "sh -c id", "Of xl this account takes 'xl migrate-receive' only."),
        ("h1", "xl migrate-receive é", "This account takes no "),
    ],
)
def test_the_receiver_believes_nothing(receiver, vm, command, sentence, capfd):
    with pytest.raises(AttachRefusedError, match=sentence):
        ask(receiver, vm, command)
    assert not (receiver.directory / "daemon").exists()
    assert f"refused: {sentence}" in capfd.readouterr().err
    assert receiver.results == [1]


def test_a_key_that_may_only_attach_is_refused(receiver):
    receiver.allow("h1", mark="")
    with pytest.raises(AttachRefusedError, match="This host receives no VM by a key of 'h1'"):
        ask(receiver, "h1", "xl migrate-receive")
    receiver.keys.unlink()
    with pytest.raises(AttachRefusedError, match="authorized_keys cannot be read: No such file"):
        ask(receiver, "h1", "xl migrate-receive")


def test_a_host_without_xl_says_so(receiver):
    receiver.xl.unlink()
    with pytest.raises(AttachRefusedError, match="xl cannot be run on this host: No such file"):
        ask(receiver, "h1", "xl migrate-receive")


@pytest.mark.parametrize(
    ("order", "count"), [(b"h1 xl migrate-receive\n", 2), (b"h1 xl migrate-receive", 3), (b"\n", 0)]
)
def test_a_hand_over_that_is_none(receiver, order, count):
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        control.connect(receiver.path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [0] * count))] if count else []
        control.sendmsg([order], rights)
        assert control.recv(4096) == b"The forced command handed over no channel.\n"
        assert control.recv(4096) == b""
    assert len(os.listdir("/proc/self/fd")) <= before, "what came along was closed"


def test_a_receiver_that_dies_is_not_taken_for_success(tmp_path):
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def die():
            control, _ = listener.accept()
            control.recv(1024)  # the order has come: whoever dies before that breaks the sender's pipe
            control.close()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises((AttachRefusedError, OSError), match=r"ended without a word|reset"):
            attach.receive(path, "h1", "xl migrate-receive", (0, 1, 2))
        thread.join(10)
