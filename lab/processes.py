"""The QEMU processes of labs, found in /proc by their `-name`: no pid file that could lie after a crash."""

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from lab.errors import LabError
from lab.settings import process_prefix

_KILL_TIMEOUT_S = 20


def find(lab_id: str) -> dict[str, int]:
    """Pid by full process name of every QEMU of a lab."""
    prefix = process_prefix(lab_id)
    return {name: pid for pid, name in _named() if name.startswith(prefix)}


def lab_ids() -> set[str]:
    """The labs that have a QEMU running on this machine."""
    prefix = process_prefix("")[:-1]
    return {name[len(prefix) :].split("-")[0] for _, name in _named() if name.startswith(prefix)}


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


def is_stopped(pid: int) -> bool:
    """Whether the process is frozen by SIGSTOP (proc(5), state T)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


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
