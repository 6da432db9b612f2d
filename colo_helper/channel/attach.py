"""The forced command and the login shell of the user ``colo``: a key gets its own VM's channels, and nothing else.

A key's line in authorized_keys has ``command="/opt/colo-helper/current/bin/colo-helper attach VM"``; what the client asked
for stands in SSH_ORIGINAL_COMMAND and may only be ``attach VM forward|back|heartbeat|probe`` with that same VM. A channel
(this process's stdin and stdout) goes to the VM's replicator by SCM_RIGHTS; this process stays until the replicator closes
the connection, because sshd ends the channel with it. A probe is answered here, for measurements.

sshd runs a forced command by the user's shell, so ``shell`` is that shell: it runs exactly such a command, in this same
process. A key whose line lacks the command, a subsystem or a login get it too, and are refused.

Starting Python costs a second on a slow host, so this module imports almost nothing and nothing of ours.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import syslog
from array import array
from collections.abc import Sequence

#: What a line of authorized_keys has as its command, before the VM; module_utils/colo/channel.py writes it.
FORCED = "/opt/colo-helper/current/bin/colo-helper attach "
ATTACH_SOCKET = "/run/colo/{vm}/attach.sock"
#: What a replicator is handed.
CHANNELS = ("forward", "back", "heartbeat")
PROBE = "probe"
#: Bounds of one probe: bytes in both directions together, and seconds.
PROBE_BYTES = 256 << 20
PROBE_S = 60

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")
_MAX_NAME = 63
_MAX_ANSWER = 4096
_PART = 256 << 10
_PIPE_BYTES = 1 << 20
_TAKES = "'attach VM forward', 'back', 'heartbeat' or 'probe' only"


class AttachRefusedError(Exception):
    """The client asked for something else, or the replicator does not want it; the text says why."""


def is_name(vm: str) -> bool:
    """Whether ``vm`` is ``[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`` without ``..``; the module re would take longer to import."""
    return 0 < len(vm) <= _MAX_NAME and vm[0] in _ALNUM and _NAME.issuperset(vm) and ".." not in vm


def parse_command(command: str | None) -> tuple[str, str]:
    """Return (VM, channel) of ``attach VM forward|back|heartbeat|probe``; raises AttachRefusedError for everything else."""
    if not command:
        raise AttachRefusedError(f"This account has no shell; it takes {_TAKES}.")
    words = command.split(" ")
    if len(words) != 3 or words[0] != "attach":
        raise AttachRefusedError(f"This account takes {_TAKES}.")
    vm, channel = words[1], words[2]
    if not is_name(vm):
        raise AttachRefusedError("That is not the name of a VM.")
    if channel not in CHANNELS and channel != PROBE:
        raise AttachRefusedError("The channel must be 'forward', 'back', 'heartbeat' or 'probe'.")
    return vm, channel


def permitted(command: str | None, own: str) -> str:
    """Return the channel that a client with the key of VM ``own`` gets; raises AttachRefusedError."""
    vm, channel = parse_command(command)
    if vm != own:
        raise AttachRefusedError(f"This key is for the VM {own} only.")
    return channel


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


def _widen(descriptor: int) -> None:
    """Give a pipe from or to sshd room for more than its 64 KiB: each byte then takes both processes half the time."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return  # no pipe, or the user has as many large ones as the kernel allows: it works as it is


def serve_probe(read_fd: int, write_fd: int, limit_bytes: int = PROBE_BYTES) -> None:
    """Answer requests until the end of the input: ``<II``, the bytes that follow and the bytes to be sent back.

    What follows is read before anything is sent back, which is zeros. Raises AttachRefusedError beyond ``limit_bytes`` in
    both directions together, and when the input ends inside a request.
    """
    left = limit_bytes
    while head := _read(read_fd, 8):
        while len(head) < 8:
            head += _more(read_fd, 8 - len(head))
        taken, given = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        left -= taken + given
        if left < 0:
            raise AttachRefusedError(f"A probe moves {limit_bytes >> 20} MiB at most.")
        while taken:
            taken -= len(_more(read_fd, taken))
        while given:
            given -= os.write(write_fd, bytes(min(given, _PART)))


def _read(descriptor: int, length: int) -> bytes:
    return os.read(descriptor, min(length, _PART))


def _more(descriptor: int, length: int) -> bytes:
    data = _read(descriptor, length)
    if not data:
        raise AttachRefusedError("The probe ended inside a request.")
    return data


def _probe_too_long(_signal: int, _frame: object) -> None:
    raise AttachRefusedError(f"A probe takes {PROBE_S} s at most.")


def main(arguments: Sequence[str]) -> int:
    """Run the forced command ``attach VM``; returns the exit status, 1 when the client was refused."""
    command = os.environ.get("SSH_ORIGINAL_COMMAND")
    own = arguments[0] if len(arguments) == 1 else ""
    try:
        if not is_name(own):
            raise AttachRefusedError(
                "The line of this key in authorized_keys names no VM: run playbooks/site.yml."
            )
        channel = permitted(command, own)
        for descriptor in (0, 1):
            _widen(descriptor)
        if channel == PROBE:
            signal.signal(signal.SIGALRM, _probe_too_long)
            signal.alarm(PROBE_S)
            serve_probe(0, 1)
        else:
            hand_over(ATTACH_SOCKET.format(vm=own), channel, 0, 1)
    except AttachRefusedError as error:
        return _refuse(own or "no VM", command, error)
    except OSError as error:
        sys.stderr.write(f"The channel was lost while it was being attached: {error}.\n")
        return 1
    return 0


def shell() -> int:
    """The program ``colo-attach``, login shell of the user ``colo``: takes ``-c`` and a forced command as above only."""
    words = sys.argv[1:]
    command = words[1] if len(words) == 2 and words[0] == "-c" else ""
    vm = command.removeprefix(FORCED)
    if command.startswith(FORCED) and is_name(vm):
        return main([vm])
    error = AttachRefusedError("This account has no shell, and this key may not attach to any VM.")
    return _refuse("no VM", os.environ.get("SSH_ORIGINAL_COMMAND", " ".join(words)), error)


def _refuse(key: str, command: str | None, error: AttachRefusedError) -> int:
    """Tell the client and the host's log: who (the address, and whose key), what it asked for, and why it was refused."""
    client = os.environ.get("SSH_CONNECTION", "").partition(" ")[0] or "unknown"
    syslog.openlog("colo-attach", syslog.LOG_PID, syslog.LOG_AUTH)
    syslog.syslog(
        syslog.LOG_WARNING, f"refused {command!r:.200} from {client} with the key of {key}: {error}"
    )
    sys.stderr.write(f"{error}\n")
    return 1
