"""Why a save or a restore cannot go on."""

from __future__ import annotations

import errno

from colo_helper.hypervisor.interface import HypervisorError


class HelperError(Exception):
    """The sentence is for the log, ``errnoval`` for the message ``complete``."""

    def __init__(self, sentence: str, errnoval: int = errno.EIO) -> None:
        super().__init__(sentence)
        self.errnoval = errnoval


class StreamLostError(HelperError):
    """The peer is gone, or has been silent for too long."""


class StoppedError(HelperError):
    """Somebody ended this helper; ``why`` is the signal."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The helper was told to stop ({why}).", errno.EINTR)


class AnswerError(HelperError):
    """The parent answered no; ``retval`` is the result it wants to see for that."""

    def __init__(self, sentence: str, retval: int, errnoval: int) -> None:
        super().__init__(sentence, errnoval)
        self.retval = retval


class ParentLostError(Exception):
    """The parent closed its side; there is nobody to talk to any more."""


def errno_of(error: Exception) -> int:
    """Return the number that the message ``complete`` carries for an error."""
    if isinstance(error, HelperError):
        return error.errnoval
    if isinstance(error, HypervisorError):
        return int(getattr(errno, error.errno_name, errno.EIO)) if error.errno_name else errno.EIO
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EINVAL if isinstance(error, ValueError) else errno.EIO
