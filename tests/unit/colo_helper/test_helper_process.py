"""The program itself, with its signals, its exit status and its descriptors, on an emulated domain."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colo_helper.helper.argv import FLAG_LIVE, SaveRequest, StreamType, build
from colo_helper.helper.callout import HelperProcess, served_bits
from colo_helper.helper.messages import REPLY, Callback, read_message
from tests.unit.colo_helper.fault_bench import BenchParent, memfd
from tests.unit.colo_helper.fault_runs import guest

ROOT = Path(__file__).parents[3]
PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from colo_helper.helper import main
from tests.unit.colo_helper.fault_runs import guest

domain = guest()
{special}
main._open_xen_domain = lambda domid: domain
status = main.main()
with open({state!r}, "w") as state:
    print(domain.log_dirty, domain.mapped_now, domain.was_on, file=state)
sys.exit(status)
"""
REQUEST = SaveRequest(3, FLAG_LIVE, StreamType.PLAIN)
PUT_BACK = "False 0 True\n"


@pytest.fixture
def program(tmp_path):
    """Make the program; ``state`` beside it tells at the end whether log-dirty is on, what is mapped, and if it was on."""

    def make(special="pass"):
        path = tmp_path / "helper"
        state = str(tmp_path / "state")
        path.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT), state=state, special=special))
        path.chmod(0o755)
        return str(path)

    make.state = tmp_path / "state"
    return make


@pytest.fixture
def stream():
    fd = memfd()
    yield fd
    os.close(fd)


class Acting(BenchParent):
    """Does something while the helper waits for the answer to its suspend callback."""

    def __init__(self, act):
        super().__init__("saver", guest())
        self.act = act

    def suspend(self):
        self.called.append("suspend")
        self.act()
        return 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_parent_is_busy(program, stream, number):
    inherited = signal.signal(number, lambda *_: None)  # a handler becomes the default in a new program
    helper = HelperProcess.start(REQUEST, stream, program=program())
    signal.signal(number, inherited)
    parent = Acting(lambda: os.kill(helper.pid, number))
    outcome = helper.serve(parent)
    assert (outcome.retval, outcome.errnoval, outcome.exit_status, outcome.error) == (-1, errno.EINTR, 0, "")
    assert parent.called == ["qemu_logdirty_on", "suspend", "qemu_logdirty_off"]
    assert parent.errors == [(errno.EINTR, f"The helper was told to stop ({number.name}).")]
    assert program.state.read_text() == PUT_BACK


def test_nobody_reads(program):
    """libxl starts its helper with the signal SIGPIPE as it is by default: that must not end it."""
    read_fd, write_fd = os.pipe()
    helper = HelperProcess.start(REQUEST, write_fd, program=program())
    parent = BenchParent("saver", guest())
    parent.script["qemu_logdirty_on"] = lambda: os.close(read_fd) or 0
    outcome = helper.serve(parent)
    os.close(write_fd)
    assert (outcome.retval, outcome.errnoval, outcome.exit_status, outcome.error) == (-1, errno.EPIPE, 0, "")
    assert parent.called == ["qemu_logdirty_on", "qemu_logdirty_off"]


def test_a_failure_that_nobody_has_thought_of(program, stream):
    surprise = program("domain.get_tsc, domain.suspended = (lambda: 1 // 0), True")
    helper = HelperProcess.start(REQUEST, stream, program=surprise, stderr=subprocess.DEVNULL)
    parent = BenchParent("saver", guest())
    outcome = helper.serve(parent)
    assert outcome.exit_status == 255
    assert outcome.error.endswith("ended with status 255 without saying how it went.")
    assert parent.errors[0][1].startswith("Internal error: ZeroDivisionError")
    assert parent.called[-1] == "qemu_logdirty_off"
    assert program.state.read_text() == PUT_BACK


def test_nothing_but_messages_goes_to_the_parent(program, stream, tmp_path):
    """A library that prints, or asks, does not reach the pipes of the protocol."""
    talkative = program("""
import os

def get_tsc(quiet=domain.get_tsc):
    os.write(1, b"a library talks, and hears %r\\n" % os.read(0, 4))
    return quiet()

domain.get_tsc, domain.suspended = get_tsc, True
""")
    with (tmp_path / "stderr").open("wb") as stderr:
        outcome = HelperProcess.start(REQUEST, stream, program=talkative, stderr=stderr).serve(
            BenchParent("saver", guest())
        )
    assert outcome.succeeded, outcome
    assert (tmp_path / "stderr").read_bytes() == b"a library talks, and hears b''\n"


def run_by_hand(program, stream_fd, **keywords):
    """Start the program without a server of its messages."""
    arguments = build(REQUEST, stream_fd, -1, served_bits(REQUEST))
    return subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[stream_fd],
        bufsize=0,
        **keywords,
    )


def read_until(helper, wanted, text=""):
    """Answer yes to everything before a message."""
    while True:
        message = read_message(helper.stdout.read)
        if message.callback is wanted and (not text or message.arguments[-1] == text):
            return
        if message.callback is Callback.SWITCH_QEMU_LOGDIRTY:
            helper.stdin.write(REPLY.pack(0))


@pytest.mark.parametrize("with_stderr", [True, False])
def test_a_parent_that_is_killed_instead_of_answering(program, stream, with_stderr):
    read_fd, write_fd = os.pipe()
    if not with_stderr:
        os.close(read_fd)
    helper = run_by_hand(program(), stream, stderr=write_fd)
    os.close(write_fd)
    read_until(helper, Callback.SUSPEND)
    helper.stdin.close()
    helper.stdout.close()
    assert helper.wait(20) == 254
    assert program.state.read_text() == PUT_BACK
    if with_stderr:
        assert (
            os.read(read_fd, 1000) == b"colo-save-helper: The parent closed its side instead of answering.\n"
        )
        os.close(read_fd)


def test_a_parent_that_is_killed_while_nobody_reads_the_stream(program):
    """A plain save waits for its peer for ever; but the guest must not stay slow until somebody finds the helper."""
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
    helper = run_by_hand(program("from colo_helper.helper import fds; fds._PIPE_BYTES = 0"), write_fd)
    read_until(helper, Callback.LOG, "Round 0: all frames.")  # the pages come next, and do not fit
    helper.stdin.close()
    helper.stdout.close()
    assert helper.wait(20) == 254
    assert program.state.read_text() == PUT_BACK
    os.close(read_fd)
    os.close(write_fd)
