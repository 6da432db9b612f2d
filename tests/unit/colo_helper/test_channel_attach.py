"""The forced command and the login shell: what is taken, what is refused, what the log gets; the probe."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.channel import attach
from colo_helper.channel.attach import (
    AttachRefusedError,
    parse_command,
    permitted,
    receive_arguments,
    serve_probe,
)

DOCUMENTED = re.compile(r"attach ([a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}) (forward|back|heartbeat|probe)")
TAKES = "takes 'attach VM forward', 'back', 'heartbeat' or 'probe' only"
words = st.text(st.sampled_from("aZ09_.- /\n;$\0é"), max_size=70)


@given(
    st.one_of(
        st.text(),
        st.builds(
            "{} {} {}".format,
            st.sampled_from(["attach", "Attach", "attach "]),
            words,
            st.sampled_from(["forward", "back", "heartbeat", "probe", "up"]),
        ),
        st.from_regex(DOCUMENTED, fullmatch=True),
    )
)
def test_exactly_the_documented_commands_are_accepted(command):
    match = DOCUMENTED.fullmatch(command)
    if match and ".." not in command:
        assert parse_command(command) == match.groups()
        assert permitted(command, match[1]) == match[2]
    else:
        with pytest.raises(AttachRefusedError):
            parse_command(command)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (None, "This account has no shell"),
        ("", "This account has no shell"),
        ("sh -c id", TAKES),
        ("attach h1 forward; id", TAKES),
        ("attach ../etc forward", "not the name of a VM"),
        ("attach a..b forward", "not the name of a VM"),
        ("attach -h back", "not the name of a VM"),
        (f"attach {'a' * 64} back", "not the name of a VM"),
        ("attach h1 sideways", "must be 'forward', 'back', 'heartbeat' or 'probe'"),
        ("attach h1 forward\n", "must be 'forward', 'back', 'heartbeat' or 'probe'"),
        ("/usr/lib/openssh/sftp-server", TAKES),
        ("scp -t /tmp", TAKES),
        ("attach h2 forward", "This key is for the VM h1 only."),
        ("attach h1. forward", "This key is for the VM h1 only."),
        ("attach H1 probe", "This key is for the VM h1 only."),
    ],
)
def test_commands_that_are_refused(command, reason):
    with pytest.raises(AttachRefusedError, match=re.escape(reason)):
        permitted(command, "h1")


XL = re.compile(r"xl((?: -(?:t|T|v{1,4}))*) migrate-receive((?: -[edpr])*)")


@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                [
                    "xl",
                    "migrate-receive",
                    "-e",
                    "-t",
                    "-vvv",
                    "-r",
                    "-F",
                    "--colo",
                    "create",
                    "",
                    "-e;id",
                    "-er",
                ]
            ),
            max_size=6,
        ).map(lambda given: " ".join(["xl", *given])),
        st.from_regex(XL, fullmatch=True),
    )
)
def test_of_xl_exactly_the_documented_commands_are_accepted(command):
    if XL.fullmatch(command):
        assert receive_arguments(command) == command.split(" ")[1:]
    else:
        with pytest.raises(AttachRefusedError):
            receive_arguments(command)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("xl create /tmp/x.cfg", "Of xl this account takes 'xl migrate-receive' only."),
        ("xl", "Of xl this account"),
        ("xlmigrate-receive", "Of xl this account"),
        ("xl migrate-receive; id", "Of xl this account"),
        ("xl migrate-receive migrate-receive", "Of xl this account"),
        ("xl -N migrate-receive", "takes no '-N' with 'xl migrate-receive'"),
        ("xl -f migrate-receive", "takes no '-f' with"),
        ("xl -e migrate-receive", "takes no '-e' with"),
        ("xl migrate-receive -t", "takes no '-t' with"),
        ("xl migrate-receive --coloft-script /tmp/x", "takes no '--coloft-script' with"),
        ("xl migrate-receive --colo", "takes no '--colo' with"),
        ("xl migrate-receive -F", "takes no '-F' with"),
        ("xl migrate-receive  -e", "takes no '' with"),
        ("xl migrate-receive -e\n", "takes no '-e\\n' with"),
    ],
)
def test_of_xl_what_is_refused(command, reason):
    with pytest.raises(AttachRefusedError, match=re.escape(reason)):
        receive_arguments(command)


@given(words)
def test_names_are_the_configurations_names(name):
    from colo_helper.replication.config import VM_NAME  # noqa: PLC0415

    assert attach.is_name(name) == bool(VM_NAME.fullmatch(name))


# ------------------------------------------------------------------------------------------- the programs


def run(program, *arguments, command=None, **options):
    """Start a program as sshd does; returns what it said and its exit status."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SSH_")}
    if command is not None:
        environment["SSH_ORIGINAL_COMMAND"] = command
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        check=False,
        timeout=30,
        **options,
    )


FORCED = "import sys; from colo_helper.cli import main; sys.exit(main())"
SHELL = "import sys; from colo_helper.channel.attach import shell; sys.exit(shell())"


@pytest.mark.parametrize(
    ("arguments", "command", "sentence"),
    [
        (["attach", "h1"], "rm -rf /", f"This account {TAKES}.\n"),
        (["attach", "h1"], "attach h2 back", "This key is for the VM h1 only.\n"),
        (["attach"], "attach h1 back", "The line of this key in authorized_keys names no VM: run playbooks/site.yml.\n"),
        (["attach", "h1", "h2"], "attach h1 back", "The line of this key in authorized_keys names no VM"),
        (["attach", "h1"], "xl migrate-receive", f"This account {TAKES}.\n"),
        (["attach", "h1", "--receive"], "xl create -F", "Of xl this account takes 'xl migrate-receive' only.\n"),
        (["attach", "h1", "--receive"], "attach h2 back", "This key is for the VM h1 only.\n"),
        (["attach", "h1", "--receive"], "xl migrate-receive -e",
         "This host does not receive VMs now (/run/colo/receive.sock: No such file or directory). Look at systemctl status "
         "colo-receive.socket on this host.\n"),
        (["attach", "../h1"], "attach ../h1 back", "The line of this key in authorized_keys names no VM"),
        (["attach", "no-such-vm"], "attach no-such-vm forward",
         "No replicator waits for this VM here (/run/colo/no-such-vm/attach.sock: No such file or directory). When that lasts, "
         "run playbooks/protect.yml, or playbooks/reprotect.yml after a takeover.\n"),
    ],
)  # fmt: skip
def test_the_program_refuses_with_a_sentence_and_a_status(arguments, command, sentence):
    done = run(FORCED, *arguments, command=command)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], None),
        (["-c", "id"], None),
        (["-c", "/usr/lib/openssh/sftp-server"], None),
        (["-c", attach.FORCED + "h1; id"], "attach h1 probe"),
        (["-c", attach.FORCED + "../h1"], "attach ../h1 probe"),
        (["-c", attach.FORCED], "attach  probe"),
        (["-c", "/opt/colo-helper/current/bin/colo-helper run h1"], "attach h1 probe"),
        (["-c", attach.FORCED + "h1", "x"], "attach h1 probe"),
        (["-c", attach.FORCED + "h1 "], "attach h1 probe"),
        (["-c", attach.FORCED + "h1 --receive "], "attach h1 probe"),
        (["-c", attach.FORCED + "h1 --receive; id"], "attach h1 probe"),
        (["-c", attach.FORCED + " --receive"], "xl migrate-receive"),
        (["-l", "-c", attach.FORCED + "h1"], "attach h1 probe"),
    ],
)
def test_the_shell_starts_nothing_else(arguments, command):
    done = run(SHELL, *arguments, command=command, input=b"")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"This account has no shell, and this key may not attach to any VM.\n"


def test_a_key_without_a_command_gets_nothing_by_asking_for_the_forced_one():
    done = run(SHELL, "-c", attach.FORCED + "h1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"This account has no shell; it takes")


@pytest.mark.parametrize("what", ["h1", "h1 --receive"])
def test_the_shell_runs_the_forced_command(what):
    done = run(
        SHELL, "-c", attach.FORCED + what, command="attach h1 probe", input=struct.pack("<II", 3, 5) + b"abc"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, bytes(5), b"")


def test_refusals_are_logged_with_who_what_and_why(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(attach.syslog, "openlog", lambda *options: said.append(options))
    monkeypatch.setattr(attach.syslog, "syslog", lambda *options: said.append(options))
    monkeypatch.setenv("SSH_CONNECTION", "192.168.77.1 40000 192.168.77.2 22")
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "id\nsshd: accepted")
    assert attach.main(["h1"]) == 1
    assert said == [
        ("colo-attach", attach.syslog.LOG_PID, attach.syslog.LOG_AUTH),
        (attach.syslog.LOG_WARNING,
         f"refused 'id\\nsshd: accepted' from 192.168.77.1 with the key of h1: This account {TAKES}."),
    ]  # fmt: skip
    assert capsys.readouterr().err == f"This account {TAKES}.\n"


def test_attach_starts_without_heavy_imports():
    program = "import sys; import colo_helper.cli, colo_helper.channel.attach; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    heavy = {
        "argparse",
        "json",
        "re",
        "paramiko",
        "asyncio",
        "ctypes",
        "bitarray",
        "zstandard",
        "logging",
        "subprocess",
    }
    assert heavy.isdisjoint(done.stdout.split())


# ---------------------------------------------------------------------------------------------- the probe


class Prober:
    """A client of the probe, over a socket pair."""

    def __init__(self, limit_bytes=attach.PROBE_BYTES):
        self.socket, self.theirs = socket.socketpair()
        self.socket.settimeout(10)
        self.refusal = None
        self.thread = threading.Thread(target=self._serve, args=(limit_bytes,))
        self.thread.start()

    def _serve(self, limit_bytes):
        try:
            serve_probe(self.theirs.fileno(), self.theirs.fileno(), limit_bytes)
        except AttachRefusedError as error:
            self.refusal = str(error)
        finally:
            self.theirs.close()

    def ask(self, taken, given):
        self.socket.sendall(struct.pack("<II", taken, given) + bytes(taken))
        answer = b""
        while len(answer) < given:
            answer += self.socket.recv(given - len(answer))
        return answer

    def end(self):
        self.socket.shutdown(socket.SHUT_WR)
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.socket.close()
        return self.refusal


@pytest.mark.parametrize(
    "sizes", [[(64, 64)] * 5, [(0, 0), (0, 1)], [(1 << 20, 0), (0, 1 << 20), (300_000, 300_001)]]
)
def test_a_probe_is_answered_in_order_until_the_end(sizes):
    prober = Prober()
    assert [len(prober.ask(*size)) for size in sizes] == [given for _taken, given in sizes]
    assert prober.end() is None


def test_a_probe_is_bounded_in_bytes():
    prober = Prober(limit_bytes=1 << 20)
    assert len(prober.ask(1 << 19, 1 << 19)) == 1 << 19
    prober.socket.sendall(struct.pack("<II", 0, 1))
    assert prober.end() == "A probe moves 1 MiB at most."


@pytest.mark.parametrize("data", [b"abc", struct.pack("<II", 5, 0) + b"abc"])
def test_a_probe_that_ends_too_soon(data):
    prober = Prober()
    prober.socket.sendall(data)
    assert prober.end() == "The probe ended inside a request."


def test_a_probe_is_bounded_in_time():
    program = FORCED.replace(
        "sys.exit", "from colo_helper.channel import attach; attach.PROBE_S = 1; sys.exit"
    )
    reading, writing = os.pipe()
    try:
        done = run(program, "attach", "h1", command="attach h1 probe", stdin=reading)
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"A probe takes 1 s at most.\n")
