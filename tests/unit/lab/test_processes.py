"""What a killed command may leave behind is found, also before it has its name."""

import os
import signal
import subprocess
import sys
import time

from lab import processes
from lab.settings import process_prefix

LAB_ID = "0badc0de"


def stand_in(claim, before_exec=""):
    """A process that becomes `qemu-system-test -name ...`, as a child of a killed `lab up` does."""
    name = process_prefix(LAB_ID) + "xa"
    line = f"{before_exec} exec -a qemu-system-test {sys.executable} -c 'import time; time.sleep(60)' -name {name}"
    return subprocess.Popen(["bash", "-c", line], pass_fds=[claim], stdin=subprocess.PIPE)


def test_a_child_that_is_not_yet_a_qemu_is_waited_for_and_killed(tmp_path):
    claim = processes.claim(tmp_path)
    child = stand_in(claim, before_exec="sleep 0.5;")
    os.close(claim)
    assert processes.find(LAB_ID) == {}
    assert processes.kill_all(LAB_ID, tmp_path)
    child.wait()
    assert processes.find(LAB_ID) == {}
    assert not processes.kill_all(LAB_ID, tmp_path)


def test_stopped_means_that_every_thread_stands_still():
    code = "import threading, time; [threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(4)]; print()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        assert not processes.is_stopped(child.pid)
        processes.stop(child.pid)
        assert processes.is_stopped(child.pid)
        os.kill(child.pid, signal.SIGCONT)
        deadline = time.monotonic() + 10
        while processes.is_stopped(child.pid):
            assert time.monotonic() < deadline
    finally:
        child.kill()
        child.communicate()
