"""The QEMU processes of labs, found in /proc by their `-name`: no pid file that could lie after a crash."""

import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from lab.errors import LabError
from lab.settings import process_prefix

_KILL_TIMEOUT_S = 20
_STOP_TIMEOUT_S = 10
_POLL_S = 0.01
#: In a lab's directory of sockets: locked for as long as a QEMU of the lab, or what is to become one, lives.
_CLAIM = "hosts"


def find(lab_id: str) -> dict[str, int]:
    """Pid by full process name of every QEMU of a lab."""
    prefix = process_prefix(lab_id)
    return {name: pid for pid, name in _named() if name.startswith(prefix)}


def lab_ids() -> set[str]:
    """The labs that have a QEMU running on this machine."""
    prefix = process_prefix("")[:-1]
    return {name[len(prefix) :].split("-")[0] for _, name in _named() if name.startswith(prefix)}


def claim(run_dir: Path) -> int:
    """A file descriptor for a QEMU to inherit: while it, or its child before its exec, lives, `kill_all` knows."""
    handle = os.open(run_dir / _CLAIM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def kill_all(lab_id: str, run_dir: Path) -> bool:
    """Kill every QEMU of a lab; whether there was one.

    A command that was killed may leave a child that is not yet a QEMU, so has no name to be found by: as long as the
    claim on the lab is held, it is looked for again.
    """
    found = False
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while True:
        for pid in find(lab_id).values():
            kill(pid)
            found = True
        if not _is_claimed(run_dir):
            return found
        if time.monotonic() > deadline:
            raise LabError(f"something holds {run_dir / _CLAIM} and is no QEMU: look with `fuser` and end it")
        time.sleep(_POLL_S)


def _is_claimed(run_dir: Path) -> bool:
    try:
        handle = os.open(run_dir / _CLAIM, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def kill(pid: int) -> None:
    """SIGKILL and wait until the process is gone (not only asked to go)."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        ready, _, _ = select.select([handle], [], [], _KILL_TIMEOUT_S)
    finally:
        os.close(handle)
    if not ready:
        raise LabError(
            f"process {pid} is still there {_KILL_TIMEOUT_S} s after SIGKILL; look at /proc/{pid}/stack"
        )
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by an earlier command, so not ours to reap


def stop(pid: int) -> None:
    """SIGSTOP and wait until every thread stands still: one inside a system call goes on until it leaves it."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while not is_stopped(pid):
        if time.monotonic() > deadline:
            raise LabError(
                f"process {pid} still runs {_STOP_TIMEOUT_S} s after SIGSTOP; look at /proc/{pid}/task/*/stack"
            )
        time.sleep(_POLL_S)  # a stop is told to the parent only, which may be a command that has ended


def is_stopped(pid: int) -> bool:
    """Whether the whole process is frozen by SIGSTOP (proc(5), state T of every thread)."""
    return all(_state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir())


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"  # the thread ended while we looked: it runs no more


def _named() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if words and Path(words[0]).name.startswith("qemu-system") and "-name" in words:
            yield int(entry.name), words[words.index("-name") + 1]
