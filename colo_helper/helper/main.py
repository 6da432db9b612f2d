"""``colo-save-helper``: the program that libxl runs instead of libxl-save-helper, with the same arguments and messages."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable

from colo_helper.helper.argv import (
    NO_FD,
    Invocation,
    Results,
    SaveRequest,
    StreamType,
    UsageError,
    parse,
)
from colo_helper.helper.errors import AnswerError, HelperError, ParentLostError, errno_of
from colo_helper.helper.fds import Fd, Stop
from colo_helper.helper.messages import Callback, Level
from colo_helper.helper.parent import NAME, PipeParent
from colo_helper.hypervisor.interface import Domain, HypervisorError

#: Exit statuses; 254 and 255 are those of Xen's own helper.
_DONE, _USAGE, _PARENT_LOST, _INTERNAL = 0, 2, 254, 255
#: How long the other side of a checkpointed stream may be silent while a guest stands still for it, in seconds.
SILENCE_VARIABLE, _SILENCE_S, _MAX_SILENCE_S = "COLO_SAVE_HELPER_SILENCE_S", 60.0, 86400.0
#: How long a guest may stand still for the last round of a live save, in milliseconds.
DOWNTIME_VARIABLE, _MAX_DOWNTIME_MS = "COLO_SAVE_HELPER_DOWNTIME_MS", 600_000.0
#: Where checkpoints are kept that are too large for memory.
SPOOL_VARIABLE, _SPOOL_DIR = "COLO_SAVE_HELPER_SPOOL", "/var/tmp"  # noqa: S108  (unlinked files of root)
#: The helper for PV guests.
STOCK_VARIABLE = "COLO_SAVE_HELPER_STOCK"

DomainOpener = Callable[[int], Domain]
_FAILURES = (HelperError, HypervisorError, OSError, ValueError, MemoryError)


def main() -> int:
    """Run the program; returns the exit status."""
    try:
        invocation = parse(sys.argv[1:])
    except UsageError as error:
        _say(f"{error}")
        return _USAGE
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    stop = Stop()
    stop.listen()
    parent = PipeParent(*_protocol_fds(), invocation)
    try:
        return serve(invocation, parent, stop, _open_xen_domain, _hand_over)
    except ParentLostError as error:
        _say(f"{error}")
        return _PARENT_LOST
    except Exception as error:
        _say(f"internal error: {error!r}")
        with contextlib.suppress(ParentLostError):
            parent.log(Level.CRITICAL, f"Internal error: {error!r}")
        return _INTERNAL


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone must not change how we end
        sys.stderr.write(f"{NAME}: {sentence}\n")


def serve(
    invocation: Invocation,
    parent: PipeParent,
    stop: Stop,
    open_domain: DomainOpener,
    hand_over: Callable[[PipeParent, str], None],
) -> int:
    """Do what was asked and tell the parent how it ended; raises ParentLostError.

    ``hand_over`` replaces this program by Xen's own helper, with a sentence for the log.
    """
    saving = isinstance(invocation.request, SaveRequest)
    stop.watch_parent(parent.fileno())
    parent.log(Level.DEBUG, "starting save" if saving else "starting restore")
    fds: list[Fd] = []
    results = Results()
    try:
        domain = open_domain(invocation.request.domid)
        try:
            if not domain.info().hvm:
                hand_over(parent, f"Domain {domain.domid} is a PV guest, which Xen's own helper takes")
            _run(invocation, domain, parent, stop, fds, results)
        finally:
            domain.close()
        retval, errnoval = 0, 0
    except _FAILURES as error:
        retval, errnoval = (error.retval if isinstance(error, AnswerError) else -1), errno_of(error)
        parent.log(Level.ERROR, str(error) or "This host has no memory left for the helper.", errnoval)
    finally:
        for fd in fds:
            fd.close()
    if not saving:
        # Also after a failure: the parent takes an end without results for a broken contract.
        parent.tell(Callback.RESTORE_RESULTS, results.store_gfn, results.console_gfn)
    parent.complete(retval, errnoval)
    return _DONE


def _run(
    invocation: Invocation, domain: Domain, parent: PipeParent, stop: Stop, fds: list[Fd], results: Results
) -> None:
    request = invocation.request
    saving = isinstance(request, SaveRequest)
    checkpointed = request.stream_type is not StreamType.PLAIN
    limit_s = _setting(SILENCE_VARIABLE, _SILENCE_S, _MAX_SILENCE_S, "seconds") if checkpointed else None
    # A secondary that runs waits for its primary as long as that takes; the parent knows whether the primary is there.
    stream = Fd(invocation.stream_fd, "The stream", stop, writing=saving, limit_s=limit_s if saving else None)
    fds.append(stream)
    back: Fd | None = None
    # In a plain migration the parent hands over whatever it has there, and nobody uses it.
    if request.stream_type is StreamType.COLO and invocation.back_fd != NO_FD:
        back = Fd(invocation.back_fd, "The back channel", stop, writing=not saving, limit_s=limit_s)
        fds.append(back)
    if isinstance(request, SaveRequest):
        from colo_helper.helper.policy import TARGET_DOWNTIME_MS  # noqa: PLC0415  (start-up counts in a slow dom0)
        from colo_helper.helper.save import Saver  # noqa: PLC0415

        downtime_ms = _setting(DOWNTIME_VARIABLE, TARGET_DOWNTIME_MS, _MAX_DOWNTIME_MS, "milliseconds")
        Saver(domain, request, parent, stream, back, downtime_ms).run()
    else:
        from colo_helper.helper.restore import Restorer  # noqa: PLC0415

        spool_dir = os.environ.get(SPOOL_VARIABLE, _SPOOL_DIR)
        Restorer(domain, request, parent, stream, back, spool_dir, results).run()


def _setting(variable: str, default: float, most: float, unit: str) -> float:
    """Return a number above 0 that the environment may set."""
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise HelperError(
            f"{variable} is {text!r}; it must be a number of {unit} above 0, {most:g} at most.", errno.EINVAL
        )
    return value


def _protocol_fds() -> tuple[int, int]:
    """Move the two pipes of the protocol away from 0 and 1, so that nothing else is ever written to them."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return read_fd, write_fd


def _open_xen_domain(domid: int) -> Domain:
    try:
        from colo_helper.hypervisor.libraries import open_libraries  # noqa: PLC0415
        from colo_helper.hypervisor.xen import XenDomain  # noqa: PLC0415

        return XenDomain(open_libraries(), domid)
    except HypervisorError as error:
        if error.errno_name:
            raise
        raise HelperError(f"This host cannot save or restore a guest: {error}", errno.ENOSYS) from error


def stock_helper(release: str) -> str:
    """Return the path of Xen's own helper of a release: as Debian installs it, or where a diversion has moved it."""
    path = f"/usr/lib/xen-{release}/bin/libxl-save-helper"
    diverted = f"{path}.distrib"
    return os.environ.get(STOCK_VARIABLE) or (diverted if os.path.exists(diverted) else path)


def _hand_over(parent: PipeParent, sentence: str) -> None:
    """Become Xen's own helper, with the same arguments and descriptors; raises HelperError when it is not there."""
    from colo_helper.hypervisor.libraries import running_release  # noqa: PLC0415

    program = stock_helper(running_release())
    if os.path.realpath(program) == os.path.realpath(sys.argv[0]):
        raise HelperError(
            f"{program} is this program; set {STOCK_VARIABLE} to the path of Xen's own.", errno.ENOSYS
        )
    parent.log(Level.INFO, f"{sentence}: {program}")
    parent.give_back()
    try:
        os.execv(program, [program, *sys.argv[1:]])  # noqa: S606  (no shell is the point)
    except OSError as error:
        raise HelperError(f"{program} cannot be run: {error.strerror}.", errno.ENOSYS) from error


if __name__ == "__main__":
    sys.exit(main())
