"""``colo-helper receive``: gives a channel from the forced command to ``xl migrate-receive``, as root.

systemd starts it for each connection to /run/colo/receive.sock, which is there only where the operator said
``colo_channel_receive: true``. What comes is ``VM xl migrate-receive FLAGS`` with three descriptors: the client's stdin, stdout
and stderr. The forced command runs without privileges, so all it checked is checked here again. What goes back is
``exit STATUS``, or a sentence why not.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

from colo_helper.channel.attach import FORCED, RECEIVE, AttachRefusedError, is_name, receive_arguments
from colo_helper.channel.peer import SSH_DIRECTORY

XL = "/usr/sbin/xl"
AUTHORIZED_KEYS = SSH_DIRECTORY / "authorized_keys"
_STREAMS = 3
_MAX_ORDER_BYTES = 4096
#: How long a connection may be open without saying what it wants, in seconds.
_ORDER_S = 30.0
_SIGNALED = 128


def main() -> int:
    """Serve the connection that systemd gave us as stdin; returns the exit status, 1 after a refusal."""
    with socket.socket(fileno=os.dup(0)) as control:
        return serve(control, XL, AUTHORIZED_KEYS)


def serve(control: socket.socket, xl: str, authorized_keys: Path) -> int:
    """Take one hand-over, run xl and tell its exit status; returns 1 after a refusal, which is told and written down."""
    descriptors: list[int] = []
    try:
        vm, arguments = _order(control, descriptors, authorized_keys)
        _note(f"{vm}: xl {' '.join(arguments)}")
        status = _run([xl, *arguments], descriptors)
    except AttachRefusedError as error:
        _note(f"refused: {error}")
        _answer(control, str(error))
        return 1
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    _note(f"{vm}: xl ended with status {status}")
    _answer(control, f"exit {status}")
    return 0


def _order(control: socket.socket, descriptors: list[int], authorized_keys: Path) -> tuple[str, list[str]]:
    """Return (VM, arguments of xl), and add what came along to ``descriptors``; raises AttachRefusedError."""
    control.settimeout(_ORDER_S)
    space = socket.CMSG_SPACE(_STREAMS * struct.calcsize("i"))
    try:
        data, given, flags, _ = control.recvmsg(_MAX_ORDER_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise AttachRefusedError(f"The hand-over failed: {error}.") from error
    control.settimeout(None)
    for level, kind, value in given:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array("i")
            numbers.frombytes(value[: len(value) - len(value) % numbers.itemsize])
            descriptors.extend(numbers)
    if len(descriptors) != _STREAMS or flags & socket.MSG_CTRUNC or not data.endswith(b"\n"):
        raise AttachRefusedError("The forced command handed over no channel.")
    vm, _, command = data[:-1].decode("ascii", "replace").partition(" ")
    if not is_name(vm) or not _lets_in(authorized_keys, vm):
        raise AttachRefusedError(
            f"This host receives no VM by a key of {vm!r:.70}: set colo_channel_receive for it and run playbooks/site.yml."
        )
    return vm, receive_arguments(command)


def _lets_in(authorized_keys: Path, vm: str) -> bool:
    """Whether a key of the VM may receive, as the operator last said."""
    mark = f'command="{FORCED}{vm} {RECEIVE}" '
    try:
        lines = authorized_keys.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AttachRefusedError(f"{authorized_keys} cannot be read: {error.strerror}.") from error
    return any(line.startswith(f"restrict,{mark}") for line in lines)


def _run(command: Sequence[str], descriptors: Sequence[int]) -> int:
    """Run xl with these as stdin, stdout and stderr; returns its status as a shell tells it. Raises AttachRefusedError.

    It is a child and not this process, because the daemon that xl leaves behind would hold the connection open. Nobody stops
    it when the client goes: xl then reads the end of the stream, and what that means is for xl to say (Remus: take over).
    """
    stdin, stdout, stderr = descriptors
    try:
        done = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=stderr, check=False)
    except OSError as error:
        raise AttachRefusedError(f"{command[0]} cannot be run on this host: {error.strerror}.") from error
    return done.returncode if done.returncode >= 0 else _SIGNALED - done.returncode


def _answer(control: socket.socket, text: str) -> None:
    try:
        control.sendall(f"{text}\n".encode())
    except OSError as error:
        _note(f"the client was gone before it was told '{text}': {error.strerror}")


def _note(text: str) -> None:
    """Write to the journal."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
