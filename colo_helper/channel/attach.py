"""The forced command and the login shell of the user ``colo``: a key gets its own VM's channels, and nothing else.

A key's line in authorized_keys has ``command="/opt/colo-helper/current/bin/colo-helper attach VM"``; what the client asked
for stands in SSH_ORIGINAL_COMMAND and may only be ``attach VM forward|back|heartbeat|probe`` with that same VM. A channel
(this process's stdin and stdout) goes to the VM's replicator by SCM_RIGHTS; this process stays until the replicator closes
the connection, because sshd ends the channel with it. A probe is answered here, for measurements.

Where the operator lets VMs be migrated to this host, the line says ``attach VM --receive``. Then the client may also ask for
``xl migrate-receive``, as ``xl migrate`` and ``xl remus`` do; ``channel.receive`` runs it as root.

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
#: What stands behind the VM there when ``xl migrate-receive`` may be asked for as well.
RECEIVE = "--receive"
ATTACH_SOCKET = "/run/colo/{vm}/attach.sock"
RECEIVE_SOCKET = "/run/colo/receive.sock"
#: What a replicator is handed.
CHANNELS = ("forward", "back", "heartbeat")
PROBE = "probe"
#: Bounds of one probe: bytes in both directions together, and seconds.
PROBE_BYTES = 256 << 20
PROBE_S = 60

_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")
_MAX_NAME = 63
#: What the sender's xl puts before and behind ``migrate-receive`` (Xen 4.17 to 4.20, xl_migrate.c): progress with carriage
#: returns, time stamps, verbosity; no monitor, debug, leave paused, Remus. Not ``--colo``: root would run its script.
_XL_GLOBAL = frozenset(("-t", "-T", "-v", "-vv", "-vvv", "-vvvv"))
_XL_RECEIVE = frozenset(("-e", "-d", "-p", "-r"))
_MIGRATE_RECEIVE = "migrate-receive"
_EXIT = "exit "
_MAX_ANSWER = 4096
_PART = 256 << 10
_PIPE_BYTES = 1 << 20
_PROTECT = "When that lasts, run playbooks/protect.yml, or playbooks/reprotect.yml after a takeover."
_RECEIVER = "Look at systemctl status colo-receive.socket on this host."
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


def receive_arguments(command: str) -> list[str]:
    """Return the arguments of xl in ``xl [-t -T -v] migrate-receive [-e -d -p -r]``; raises AttachRefusedError."""
    xl, *words = command.split(" ")
    if xl != "xl" or words.count(_MIGRATE_RECEIVE) != 1:
        raise AttachRefusedError("Of xl this account takes 'xl migrate-receive' only.")
    verb = words.index(_MIGRATE_RECEIVE)
    for taken, given in ((_XL_GLOBAL, words[:verb]), (_XL_RECEIVE, words[verb + 1 :])):
        for word in given:
            if word not in taken:
                raise AttachRefusedError(f"This account takes no {word!r:.40} with 'xl migrate-receive'.")
    return words


def hand_over(path: str, channel: str, read_fd: int, write_fd: int) -> None:
    """Give the channel to the replicator listening at ``path`` and wait until it is done with it.

    Raises AttachRefusedError with the replicator's own sentence when it refuses.
    """
    answer = _exchange(path, channel, [read_fd, write_fd], "No replicator waits for this VM here", _PROTECT)
    if answer:
        raise AttachRefusedError(answer)


def receive(path: str, vm: str, command: str, descriptors: Sequence[int]) -> int:
    """Have the receiver at ``path`` run xl with stdin, stdout and stderr ``descriptors``; returns xl's exit status.

    Raises AttachRefusedError with the receiver's own sentence when it refuses.
    """
    answer = _exchange(path, f"{vm} {command}", descriptors, "This host does not receive VMs now", _RECEIVER)
    status = answer.removeprefix(_EXIT)
    if not answer.startswith(_EXIT) or not status.isdecimal():
        raise AttachRefusedError(
            answer
            or "The receiver ended without a word: look at journalctl -u 'colo-receive@*' on this host."
        )
    return int(status)


def _exchange(path: str, order: str, descriptors: Sequence[int], nobody: str, then: str) -> str:
    """Give descriptors and one line to who listens at ``path``, and return what it says until it closes.

    Raises AttachRefusedError when nobody listens: ``nobody`` says so, and ``then`` what to do.
    """
    with socket.socket(socket.AF_UNIX) as control:
        try:
            control.connect(path)
        except OSError as error:
            raise AttachRefusedError(f"{nobody} ({path}: {error.strerror or error}). {then}") from error
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))
        control.sendmsg([order.encode() + b"\n"], [rights])
        answer = b""
        while len(answer) < _MAX_ANSWER and (data := control.recv(_MAX_ANSWER)):
            answer += data
    return answer.decode(errors="replace").strip()


def widen(descriptor: int) -> None:
    """Give a pipe from or to sshd or xl room for more than its 64 KiB: each byte then takes both processes half the time."""
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
    """Run the forced command ``attach VM [--receive]``; returns the exit status, 1 when the client was refused."""
    command = os.environ.get("SSH_ORIGINAL_COMMAND")
    receives = len(arguments) == 2 and arguments[1] == RECEIVE
    own = arguments[0] if len(arguments) == 1 or receives else ""
    try:
        if not is_name(own):
            raise AttachRefusedError(
                "The line of this key in authorized_keys names no VM: run playbooks/site.yml."
            )
        xl = command if receives and command and command.startswith("xl ") else ""
        channel = "" if xl else permitted(command, own)
        if xl:
            receive_arguments(xl)  # the receiver looks again, this is for the log
        for descriptor in (0, 1):
            widen(descriptor)
        if xl:
            return receive(RECEIVE_SOCKET, own, xl, (0, 1, 2))
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
    vm, space, mark = command.removeprefix(FORCED).partition(" ")
    if command.startswith(FORCED) and is_name(vm) and (not space or mark == RECEIVE):
        return main([vm, mark] if space else [vm])
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
