"""The real host: Debian's ``xl`` for the first copy, libxenctrl and QMP for the rest.

``xl`` is started with subprocess (vfork and exec), which is safe beside open Xen handles, see hypervisor.xen.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from colo_helper.devices.nics import HostNics
from colo_helper.devices.qmp import QmpDeviceModel
from colo_helper.helper.argv import RestoreRequest, SaveRequest
from colo_helper.helper.callout import HelperProcess
from colo_helper.helper.main import SPOOL_VARIABLE
from colo_helper.helper.parent import NAME as HELPER_NAME
from colo_helper.hypervisor.libraries import XenLibraries, open_libraries
from colo_helper.hypervisor.xen import XenDomain
from colo_helper.replication.guest import Guest
from colo_helper.replication.host import COPY_CHUNK_BYTES, HostError

_PIPE_BYTES = 1 << 20
_ASK_TIMEOUT_S = 60.0
_STALL_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 300.0
_TERM_TIMEOUT_S = 30.0
_MAX_WORDS = 400


def _said(log: IO[bytes]) -> str:
    """Return the end of what a program wrote to its standard error, on one line."""
    log.seek(0)
    text = " ".join(log.read().decode(errors="replace").split())
    return text[-_MAX_WORDS:] or "it said nothing"


def _wait(process: subprocess.Popen[bytes], timeout_s: float, what: str) -> int:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise HostError(f"'{what}' did not end within {timeout_s:g} s.") from error


class XlSave:
    """``xl save -p VM /dev/stdout``; see SaveStream."""

    def __init__(self, vm: str) -> None:
        self._what = f"xl save -p {vm}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (unlinked; lives as long as this object)
        # The stream must be a pipe: xl opens /dev/stdout by name, which does not work for a socket.
        self._process = subprocess.Popen(
            ["xl", "save", "-p", vm, "/dev/stdout"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._fd = self._process.stdout.fileno()
        fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def read(self) -> bytes:
        """See SaveStream."""
        if not select.select([self._fd], [], [], _STALL_TIMEOUT_S)[0]:
            raise HostError(f"'{self._what}' has written nothing for {_STALL_TIMEOUT_S:g} s.")
        data = os.read(self._fd, COPY_CHUNK_BYTES)
        if not data:
            self._finish()
        return data

    def _finish(self) -> None:
        status = _wait(self._process, _END_TIMEOUT_S, self._what)
        if status:
            raise HostError(f"'{self._what}' failed with status {status}: {_said(self._log)}.")

    def abandon(self) -> None:
        """See SaveStream. Reads the rest and drops it: a save that is killed leaves the domain suspended."""
        while self.read():
            continue


class XlRestore:
    """``xl restore -p /dev/stdin``; see RestoreStream."""

    def __init__(self, vm: str, host: XenHost) -> None:
        self._vm = vm
        self._host = host
        self._what = f"xl restore -p of {vm}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (unlinked; lives as long as this object)
        # A session of its own, so that giving up ends xl and its save helper together.
        self._process = subprocess.Popen(
            ["xl", "restore", "-p", "/dev/stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        fcntl.fcntl(self._pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._pipe.fileno(), False)

    def write(self, data: bytes) -> None:
        """See RestoreStream."""
        with memoryview(data) as view:
            done = 0
            while done < len(data):
                if not select.select([], [self._pipe], [], _STALL_TIMEOUT_S)[1]:
                    raise HostError(f"'{self._what}' has read nothing for {_STALL_TIMEOUT_S:g} s.")
                try:
                    done += os.write(self._pipe.fileno(), view[done:])
                except BlockingIOError:
                    continue
                except BrokenPipeError as error:
                    status = _wait(self._process, _END_TIMEOUT_S, self._what)
                    raise HostError(
                        f"'{self._what}' ended with status {status}: {_said(self._log)}."
                    ) from error

    def finish(self) -> int:
        """See RestoreStream."""
        self._pipe.close()
        status = _wait(self._process, _END_TIMEOUT_S, self._what)
        if status:
            raise HostError(f"'{self._what}' failed with status {status}: {_said(self._log)}.")
        domid = self._host.find(self._vm)
        if domid is None:
            raise HostError(f"'{self._what}' succeeded, but there is no domain of that name.")
        return domid

    def abandon(self) -> None:
        """See RestoreStream. xl is ended before its input: at the end of input in the middle it may spin for ever."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(_TERM_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._pipe.close()
        domid = self._host.find(self._vm)
        if domid is not None:
            self._host.destroy(domid)


class XenHost:
    """See Host. ``run_dir`` is on a tmpfs; device states pass through it. ``spool_dir`` takes large checkpoints."""

    def __init__(self, run_dir: Path, spool_dir: Path, device_timeout_s: float) -> None:
        self._run_dir = run_dir
        self._spool_dir = spool_dir
        self._device_timeout_s = device_timeout_s
        self._libraries: XenLibraries = open_libraries()

    @property
    def release(self) -> str:
        """See Host."""
        return self._libraries.release

    def find(self, vm: str) -> int | None:
        """See Host."""
        done = self._xl("domid", vm)
        if done.returncode:
            return None
        try:
            return int(done.stdout)
        except ValueError:
            raise HostError(f"'xl domid {vm}' said {done.stdout!r}.") from None

    def open_guest(self, domid: int) -> Guest:
        """See Host."""
        domain = XenDomain(self._libraries, domid)
        devices = QmpDeviceModel(domid, self._run_dir, self._device_timeout_s)
        return Guest(domain, devices, HostNics(domid))

    def save(self, vm: str) -> XlSave:
        """See Host."""
        return XlSave(vm)

    def restore(self, vm: str) -> XlRestore:
        """See Host."""
        return XlRestore(vm, self)

    def start_helper(
        self, request: SaveRequest | RestoreRequest, stream_fd: int, back_fd: int
    ) -> HelperProcess:
        """See Host. It is the one of our own release, beside the program that runs here."""
        # Resolved, so that an upgrade in between does not mix two releases.
        program = Path(sys.argv[0]).resolve().with_name(HELPER_NAME)
        environment = {**os.environ, SPOOL_VARIABLE: str(self._spool_dir)}
        try:
            return HelperProcess.start(request, stream_fd, back_fd, program=str(program), env=environment)
        except OSError as error:
            raise HostError(f"{program} cannot be run: {error.strerror}.") from error

    def destroy(self, domid: int) -> None:
        """See Host."""
        done = self._xl("destroy", str(domid))
        if done.returncode and self._xl("domname", str(domid)).returncode == 0:
            raise HostError(
                f"'xl destroy {domid}' failed with status {done.returncode}: {done.stderr.strip()}."
            )

    @staticmethod
    def _xl(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["xl", *arguments], capture_output=True, text=True, check=False, timeout=_ASK_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"'xl {' '.join(arguments)}' did not end within {_ASK_TIMEOUT_S:g} s.") from error
        except OSError as error:
            raise HostError(f"'xl' cannot be run: {error}.") from error
