"""The forced command of the user ``colo``: hands an SSH channel to the secondary's replicator.

sshd runs ``colo-helper attach`` whatever the client asked for; what it asked for stands in SSH_ORIGINAL_COMMAND and may
only be ``attach VM forward`` or ``attach VM back``. The channel (this process's stdin and stdout) goes to the replicator
by SCM_RIGHTS; this process stays until the replicator closes the connection, because sshd ends the channel with it.

Starting Python costs a second on a slow host, so this module imports almost nothing and nothing of ours.
"""

from __future__ import annotations

import os
import socket
import sys
import syslog
from array import array

ATTACH_SOCKET = "/run/colo/{vm}/attach.sock"
CHANNELS = ("forward", "back")

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")
_MAX_NAME = 63
_MAX_ANSWER = 4096


class AttachRefusedError(Exception):
    """The client asked for something else, or the replicator does not want it; the text says why."""


def parse_command(command: str | None) -> tuple[str, str]:
    """Return (VM, channel) of ``attach VM forward|back``; raises AttachRefusedError for everything else.

    Accepts exactly ``attach ([a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}) (forward|back)`` without ``..`` in the name. Written
    without the module re, whose import is slower than the rest of this program.
    """
    if not command:
        raise AttachRefusedError(
            "This account has no shell; it takes 'attach VM forward' and 'attach VM back' only."
        )
    words = command.split(" ")
    if len(words) != 3 or words[0] != "attach":
        raise AttachRefusedError("This account takes 'attach VM forward' and 'attach VM back' only.")
    vm, channel = words[1], words[2]
    if not 0 < len(vm) <= _MAX_NAME or vm[0] not in _ALNUM or not _NAME.issuperset(vm) or ".." in vm:
        raise AttachRefusedError("That is not the name of a VM.")
    if channel not in CHANNELS:
        raise AttachRefusedError("The channel must be 'forward' or 'back'.")
    return vm, channel


def hand_over(path: str, channel: str, read_fd: int, write_fd: int) -> None:
    """Give the channel to the replicator listening at ``path`` and wait until it is done with it.

    Raises AttachRefusedError with the replicator's own sentence when it refuses.
    """
    with socket.socket(socket.AF_UNIX) as control:
        try:
            control.connect(path)
        except OSError as error:
            raise AttachRefusedError(
                f"No replicator waits for this VM here ({path}: {error.strerror or error})."
            ) from error
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [read_fd, write_fd]))
        control.sendmsg([channel.encode() + b"\n"], [rights])
        answer = b""
        while len(answer) < _MAX_ANSWER and (data := control.recv(_MAX_ANSWER)):
            answer += data
    if answer:
        raise AttachRefusedError(answer.decode(errors="replace").strip())


def main() -> int:
    """Run the forced command; returns the exit status, 1 when the client was refused."""
    command = os.environ.get("SSH_ORIGINAL_COMMAND")
    client = os.environ.get("SSH_CONNECTION", "").partition(" ")[0] or "unknown"
    try:
        vm, channel = parse_command(command)
        hand_over(ATTACH_SOCKET.format(vm=vm), channel, 0, 1)
    except AttachRefusedError as error:
        syslog.openlog("colo-attach", syslog.LOG_PID, syslog.LOG_AUTH)
        syslog.syslog(syslog.LOG_WARNING, f"refused {command!r:.200} from {client}: {error}")
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"The replicator was lost while the channel was handed over: {error}.\n")
        return 1
    return 0
