"""The helper's side of the contract: log, ask, and say how it ended."""

from __future__ import annotations

import os
from typing import Protocol

from colo_helper.helper import messages
from colo_helper.helper.argv import Invocation
from colo_helper.helper.errors import HelperError, ParentLostError
from colo_helper.helper.messages import Callback, Level, Message

NAME = "colo-save-helper"
#: Context of the progress messages that tell our own parent the figures of an epoch.
EPOCH = "colo-epoch"


class Parent(Protocol):
    """Whoever runs a save or a restore. ``ask`` and ``complete`` may raise ParentLostError."""

    def log(self, level: Level, text: str, errnoval: int | None = None) -> None:
        """Say something to the operator."""

    def progress(self, what: str, done: int, total: int, context: str = NAME) -> None:
        """Say how far we are."""

    def serves(self, callback: Callback) -> bool:
        """Tell whether the parent takes this callback."""

    def ask(self, callback: Callback, *arguments: int) -> int:
        """Call back and return the answer; raises HelperError when the parent does not serve it."""

    def tell(self, callback: Callback, *arguments: int) -> None:
        """Call back without an answer."""


class PipeParent:
    """A parent at the other end of two pipes; see Parent."""

    def __init__(self, read_fd: int, write_fd: int, invocation: Invocation) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._modern = invocation.modern
        self._callbacks = invocation.callbacks

    def log(self, level: Level, text: str, errnoval: int | None = None) -> None:
        """See Parent."""
        number = messages.NO_ERRNO if errnoval is None else errnoval
        self._send(Message(Callback.LOG, (int(level), number, NAME, text)))

    def progress(self, what: str, done: int, total: int, context: str = NAME) -> None:
        """See Parent."""
        self._send(Message(Callback.PROGRESS, (context, what, done, total)))

    def serves(self, callback: Callback) -> bool:
        """See Parent."""
        if callback is Callback.STATIC_DATA_DONE and not self._modern:
            return False
        return bool(self._callbacks & messages.callback_bit(callback, self._modern))

    def ask(self, callback: Callback, *arguments: int) -> int:
        """See Parent."""
        if not self.serves(callback):
            raise HelperError(
                f"The parent does not serve the callback {callback.name.lower()}, which is needed here."
            )
        self._send(Message(callback, arguments))
        return self._answer()

    def tell(self, callback: Callback, *arguments: int) -> None:
        """See Parent."""
        if self.serves(callback):
            self._send(Message(callback, arguments))

    def complete(self, retval: int, errnoval: int) -> None:
        """Say how it ended and wait until the parent has heard it: it takes an earlier exit for a failure."""
        self._send(Message(Callback.COMPLETE, (retval, errnoval)))
        self._answer()

    def fileno(self) -> int:
        """Return the pipe that the parent's answers come from."""
        return self._read_fd

    def give_back(self) -> None:
        """Put the two pipes back to stdin and stdout, for another program that takes this one's place."""
        os.dup2(self._read_fd, 0)
        os.dup2(self._write_fd, 1)

    def _send(self, message: Message) -> None:
        data = messages.pack(message, self._modern)
        try:
            # One write: the parent reads header and body without looking at its clock.
            done = os.write(self._write_fd, data)
            while done < len(data):
                done += os.write(self._write_fd, data[done:])
        except OSError as error:
            raise ParentLostError(f"The parent does not read any more: {error.strerror}.") from error

    def _answer(self) -> int:
        data = b""
        while len(data) < messages.REPLY.size:
            try:
                piece = os.read(self._read_fd, messages.REPLY.size - len(data))
            except OSError as error:
                raise ParentLostError(f"The parent's answer cannot be read: {error.strerror}.") from error
            if not piece:
                raise ParentLostError("The parent closed its side instead of answering.")
            data += piece
        (value,) = messages.REPLY.unpack(data)
        return int(value)
