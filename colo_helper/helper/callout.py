"""The parent's side: start a save helper, ours or Xen's own, and serve its callbacks until it has ended.

The rules are those of libxl's ``run_helper`` (tools/libs/light/libxl_save_callout.c) and of the patch of 2015 that gave it
the back channel: the stream and the back channel reach the helper under numbers above 2, nothing else of ours does, its
stdin and stdout are the protocol, and its environment is ours.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Protocol

from colo_helper.helper import messages
from colo_helper.helper.argv import NO_FD, RestoreRequest, SaveRequest, StreamType, build
from colo_helper.helper.messages import Callback, Message, MessageError

#: The program that libxl runs, unless this names another one.
HELPER_VARIABLE = "LIBXL_SAVE_HELPER"
_LOWEST_FD = 3
#: How long a helper may take to put things back after it was told to stop, in seconds.
_TIDY_S = 30.0
#: The answers that mean no where 0 means yes; everywhere else 0 is the no.
_NO = {Callback.SWITCH_QEMU_LOGDIRTY: 1, Callback.STATIC_DATA_DONE: -1}


class Callbacks(Protocol):
    """What a parent does for its helper. Answers are those of Xen's contract: see each engine."""

    def suspend(self) -> int:
        """Let the guest stand still; nonzero when it does. On a restorer 1 means success, 2 that the primary is lost."""

    def postcopy(self) -> int:
        """The guest may go on; positive to go on, 0 or less to end."""

    def checkpoint(self) -> int:
        """The helper's part of a checkpoint is complete; positive to go on (restoring: 2 means the primary is lost)."""

    def wait_checkpoint(self) -> int:
        """Wait until another checkpoint is wanted; positive when it is."""

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> int:
        """Make the device model log what it writes; 0 when it does."""

    def static_data_done(self, missing: int) -> int:
        """All static data has come but for the bits of ``missing``: 1 CPUID policy, 2 MSR policy; 0 to go on."""

    def restore_results(self, store_gfn: int, console_gfn: int) -> None:
        """Take the frames of the xenstore and the console ring."""

    def log(self, level: int, errnoval: int | None, context: str, text: str) -> None:
        """Take a line of the helper's log."""

    def progress(self, context: str, what: str, done: int, total: int) -> None:
        """Take how far the helper is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a helper ended: what it said last, its exit status, and what it did against the contract, if anything."""

    retval: int
    errnoval: int
    exit_status: int
    error: str

    @property
    def succeeded(self) -> bool:
        """Whether it did what was asked."""
        return not self.error and self.retval == 0


#: The callbacks libxl serves, by side and stream type (1.7 of its message table): a helper calls no others.
_SERVED: Mapping[tuple[bool, StreamType], tuple[Callback, ...]] = {
    (True, StreamType.PLAIN): (Callback.SUSPEND, Callback.SWITCH_QEMU_LOGDIRTY),
    (True, StreamType.REMUS): (
        Callback.SUSPEND,
        Callback.POSTCOPY,
        Callback.CHECKPOINT,
        Callback.SWITCH_QEMU_LOGDIRTY,
    ),
    (True, StreamType.COLO): (
        Callback.SUSPEND,
        Callback.POSTCOPY,
        Callback.CHECKPOINT,
        Callback.WAIT_CHECKPOINT,
        Callback.SWITCH_QEMU_LOGDIRTY,
    ),
    (False, StreamType.PLAIN): (Callback.STATIC_DATA_DONE, Callback.RESTORE_RESULTS),
    (False, StreamType.REMUS): (Callback.CHECKPOINT, Callback.STATIC_DATA_DONE, Callback.RESTORE_RESULTS),
    (False, StreamType.COLO): (
        Callback.SUSPEND,
        Callback.POSTCOPY,
        Callback.CHECKPOINT,
        Callback.WAIT_CHECKPOINT,
        Callback.STATIC_DATA_DONE,
        Callback.RESTORE_RESULTS,
    ),
}


def served_bits(request: SaveRequest | RestoreRequest) -> int:
    """Return the argument ``callbacks``: the same that libxl hands over for such a request."""
    served = _SERVED[isinstance(request, SaveRequest), request.stream_type]
    return sum(messages.callback_bit(callback, True) for callback in served)


#: Looks at a readable descriptor; returns whether to go on watching it.
Look = Callable[[], bool]


class MessageServer:
    """Serves one helper's messages: reads them from ``read_fd`` and answers on ``write_fd``.

    ``name`` is for sentences. ``completed`` is what the helper said last: (retval, errnoval).
    """

    def __init__(self, read_fd: int, write_fd: int, name: str) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._name = name
        self.completed: tuple[int, int] | None = None

    def serve(self, callbacks: Callbacks, watch: Mapping[int, Look]) -> str:
        """Serve until the helper closes its side; returns what broke the contract, or an empty string."""
        watched = dict(watch)
        poll = select.poll()
        for fd in (self._read_fd, *watched):
            poll.register(fd, select.POLLIN)

        def look(fds: Iterable[int]) -> None:
            for fd in fds:
                if not watched[fd]():
                    del watched[fd]
                    poll.unregister(fd)

        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._read_fd not in ready:
                look(ready)
                continue
            look(list(watched))  # what the helper wrote before it called back comes first
            try:
                message = messages.read_message(self._read_exact)
            except EOFError:
                return ""
            except MessageError as error:
                return f"{self._name} broke the contract: {error}"
            self._handle(message, callbacks)

    def tidy(self, callbacks: Callbacks, limit_s: float) -> bool:
        """After a failure of ours: serve what the helper needs to put things back, and answer no to the rest.

        Returns whether it closed its side within ``limit_s``.
        """
        deadline = time.monotonic() + limit_s
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            try:
                message = messages.read_message(self._read_exact)
            except (EOFError, MessageError):
                return True
            # A callback that fails here as well has got its no; the first failure is the one that is told.
            with contextlib.suppress(Exception):
                self._handle(message, callbacks, only_tidying=True)
        return False

    def _handle(self, message: Message, callbacks: Callbacks, *, only_tidying: bool = False) -> None:
        """Serve one message. If the callback raises, the helper gets a no first: it would wait for an answer for ever."""
        try:
            self._dispatch(message, callbacks, only_tidying=only_tidying)
        except BaseException:
            if message.callback not in messages.WITHOUT_REPLY:
                self._reply(_NO.get(message.callback, 0))
            raise

    def _dispatch(self, message: Message, callbacks: Callbacks, *, only_tidying: bool) -> None:
        arguments = message.arguments
        match message.callback:
            case Callback.LOG:
                level, errnoval, context, text = arguments
                number = None if errnoval == messages.NO_ERRNO else int(errnoval)
                callbacks.log(int(level), number, str(context), str(text))
            case Callback.PROGRESS:
                callbacks.progress(str(arguments[0]), str(arguments[1]), int(arguments[2]), int(arguments[3]))
            case Callback.RESTORE_RESULTS:
                callbacks.restore_results(int(arguments[0]), int(arguments[1]))
            case Callback.COMPLETE:
                self.completed = (int(arguments[0]), int(arguments[1]))
                self._reply(0)
            case Callback.SWITCH_QEMU_LOGDIRTY:
                self._reply(callbacks.switch_qemu_logdirty(int(arguments[0]), bool(arguments[1])))
            case Callback.STATIC_DATA_DONE:
                no = _NO[message.callback]
                self._reply(no if only_tidying else callbacks.static_data_done(int(arguments[0])))
            case _:
                answer: Callable[[], int] = getattr(callbacks, message.callback.name.lower())
                self._reply(0 if only_tidying else answer())

    def _reply(self, value: int) -> None:
        try:
            os.write(self._write_fd, messages.REPLY.pack(value))
        except BrokenPipeError:
            return  # the helper is gone; reading its side says so

    def _read_exact(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = os.read(self._read_fd, length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class Process(Protocol):
    """What a helper's process must be able to do: ``subprocess.Popen`` with both pipes can."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """Where its answers go."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """Where its messages come from."""

    def terminate(self) -> None:
        """Tell it to stop."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""


class HelperProcess:
    """A running helper. ``serve`` has to be called; it returns when the helper has ended."""

    def __init__(self, process: Process, program: str) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        self._process = process
        self._program = program
        self._server = MessageServer(process.stdout.fileno(), process.stdin.fileno(), program)

    @classmethod
    def start(
        cls,
        request: SaveRequest | RestoreRequest,
        stream_fd: int,
        back_fd: int = NO_FD,
        *,
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        stderr: IO[bytes] | int | None = None,
        lock_fd: int = NO_FD,
    ) -> HelperProcess:
        """Start a helper; all descriptors stay ours to close. Raises OSError when it cannot be run.

        ``program`` None: what LIBXL_SAVE_HELPER names. ``lock_fd`` is only held by the helper as long as it lives: a lock on
        it tells whether a helper outlived us.
        """
        environment = dict(os.environ if env is None else env)
        program = program or environment.get(HELPER_VARIABLE, "")
        if not program:
            raise FileNotFoundError(2, f"no helper is named, neither by the caller nor by {HELPER_VARIABLE}")
        duplicates: list[int] = []
        try:
            stream, back = (_above_stdio(fd, duplicates) for fd in (stream_fd, back_fd))
            process = subprocess.Popen(
                [program, *build(request, stream, back, served_bits(request))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                env=environment,
                pass_fds=[fd for fd in (stream, back, lock_fd) if fd != NO_FD],
            )
        finally:
            for fd in duplicates:
                os.close(fd)
        return cls(process, program)

    @property
    def pid(self) -> int:
        """The helper's process."""
        return self._process.pid

    def serve(self, callbacks: Callbacks, watch: Mapping[int, Look] | None = None) -> Outcome:
        """Serve the helper until it has ended.

        ``watch`` has readable descriptors and what to do about each; that is done before a callback of the same moment is
        served, so that everything the helper wrote to one of them before it called back has been seen by then. An
        exception of a callback or of ``watch`` ends the helper in order and goes on to the caller.
        """
        try:
            error = self._server.serve(callbacks, watch or {})
        except BaseException:
            self.terminate()
            if not self._server.tidy(callbacks, _TIDY_S):
                self._process.kill()
            self._end()
            raise
        if error:
            self._process.kill()
        status = self._end()
        completed = self._server.completed
        if not error and completed is None:
            error = f"{self._program} ended with status {status} without saying how it went."
        elif not error and status:
            error = f"{self._program} ended with status {status}."
        retval, errnoval = completed or (-1, 0)
        return Outcome(retval, errnoval, status, error)

    def terminate(self) -> None:
        """Tell the helper to stop; it still puts everything back, so it has to be served to its end."""
        self._process.terminate()

    def _end(self) -> int:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        return self._process.wait()


def _above_stdio(fd: int, duplicates: list[int]) -> int:
    """Return ``fd``, or a duplicate with a number above 2; close-on-exec is cleared by Popen for those it passes."""
    if fd == NO_FD or fd >= _LOWEST_FD:
        return fd
    duplicate = os.dup(fd)
    duplicates.append(duplicate)
    while duplicate < _LOWEST_FD:
        duplicate = os.dup(fd)
        duplicates.append(duplicate)
    return duplicate
