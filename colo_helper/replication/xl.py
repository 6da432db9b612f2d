"""The real host: Debian's ``xl`` to find, describe and build domains, libxenctrl and QMP for the rest.

``xl`` is started with subprocess (vfork and exec), which is safe beside open Xen handles, see hypervisor.xen.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from colo_helper.devices.filters import QmpFilters
from colo_helper.devices.nics import HostNics
from colo_helper.devices.qmp import QmpDeviceModel
from colo_helper.helper.argv import RestoreRequest, SaveRequest
from colo_helper.helper.callout import HelperProcess
from colo_helper.helper.main import DOWNTIME_VARIABLE, SPOOL_VARIABLE
from colo_helper.helper.parent import NAME as HELPER_NAME
from colo_helper.helper.policy import TARGET_DOWNTIME_MS
from colo_helper.hypervisor.libraries import XenLibraries, open_libraries
from colo_helper.hypervisor.xen import XenDomain
from colo_helper.replication.guest import Guest, Mark
from colo_helper.replication.host import HostError
from colo_helper.replication.moved import MovesFile

_PIPE_BYTES = 1 << 20
_ASK_TIMEOUT_S = 60.0
_STALL_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 300.0
_TERM_TIMEOUT_S = 30.0
_LOCK_POLL_S = 0.1
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


class XlRestore:
    """``xl restore -e -p /dev/stdin``; see RestoreStream."""

    def __init__(self, vm: str, host: XenHost) -> None:
        self._vm = vm
        self._host = host
        self._what = f"xl restore of {vm}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (unlinked; lives as long as this object)
        # A session of its own, so that giving up ends xl and its save helper together. With -e nobody waits for the copy's
        # end: when the copy alone reboots or crashes, xl would create it anew, on the network, beside the VM.
        self._process = subprocess.Popen(
            ["xl", "restore", "-e", "-p", "/dev/stdin"],
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
        self._helper_lock_fd = lock_out_older_helpers(run_dir / "helper.lock")
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
        held, torn = (Mark(self._run_dir / name) for name in ("held", "torn"))
        moved = MovesFile(self._run_dir / "moved.json", domid)
        if held.there and not domain.saved_by_others():
            domain.resume_unseen()  # a replicator that was killed in that moment has left it so
        return Guest(domain, devices, HostNics(domid), QmpFilters(devices), held=held, torn=torn, moved=moved)

    def configuration(self, vm: str) -> bytes:
        """See Host."""
        done = self._xl("list", "--long", vm)
        if done.returncode:
            raise HostError(
                f"'xl list --long {vm}' failed with status {done.returncode}: {done.stderr.strip()}."
            )
        try:
            return saved_configuration(done.stdout)
        except (ValueError, LookupError, TypeError) as error:
            raise HostError(f"'xl list --long {vm}' said what cannot be understood: {error!r}.") from error

    def device_model_entries(self, domid: int) -> list[tuple[bytes, bytes]]:
        """See Host. Only its map of physical memory; current ones keep none."""
        path = f"/local/domain/0/device-model/{domid}/physmap"
        done = self._run(["xenstore-ls", "-f", path])
        if done.returncode:  # there is none
            return []
        return physmap_entries(done.stdout, path.removesuffix("/physmap"))

    def restore(self, vm: str) -> XlRestore:
        """See Host."""
        return XlRestore(vm, self)

    def start_helper(
        self,
        request: SaveRequest | RestoreRequest,
        stream_fd: int,
        back_fd: int,
        downtime_ms: int = TARGET_DOWNTIME_MS,
    ) -> HelperProcess:
        """See Host. It is the one of our own release, beside the program that runs here."""
        # Resolved, so that an upgrade in between does not mix two releases.
        program = Path(sys.argv[0]).resolve().with_name(HELPER_NAME)
        environment = {
            **os.environ,
            SPOOL_VARIABLE: str(self._spool_dir),
            DOWNTIME_VARIABLE: str(downtime_ms),
        }
        try:
            return HelperProcess.start(
                request,
                stream_fd,
                back_fd,
                program=str(program),
                env=environment,
                lock_fd=self._helper_lock_fd,
            )
        except OSError as error:
            raise HostError(f"{program} cannot be run: {error.strerror}.") from error

    def destroy(self, domid: int) -> None:
        """See Host."""
        done = self._xl("destroy", str(domid))
        if done.returncode and self._xl("domname", str(domid)).returncode == 0:
            raise HostError(
                f"'xl destroy {domid}' failed with status {done.returncode}: {done.stderr.strip()}."
            )

    def going_down(self) -> bool:
        """See Host. systemd says so from the moment on in which the shutdown was asked for."""
        try:
            return self._run(["systemctl", "is-system-running"]).stdout.strip() == "stopping"
        except HostError:
            return False  # then it is a stop like another

    def _xl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(["xl", *arguments])

    @staticmethod
    def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
        what = " ".join(command)
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_ASK_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"'{what}' did not end within {_ASK_TIMEOUT_S:g} s.") from error
        except OSError as error:
            raise HostError(f"'{command[0]}' cannot be run: {error}.") from error


def lock_out_older_helpers(path: Path, timeout_s: float = _TERM_TIMEOUT_S) -> int:
    """Return a descriptor whose lock we have; raises HostError when an older helper keeps it.

    A save helper that outlived its replicator puts the guest back, and at its end turns log-dirty off: whoever turns it on
    for the same guest must come after that.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise HostError(
                    f"A save helper of an earlier replicator still runs after {timeout_s:g} s and holds {path}; end it, then "
                    "start this again."
                ) from None
            time.sleep(_LOCK_POLL_S)  # no event tells of a lock that is given back
        else:
            return fd


def saved_configuration(listing: str) -> bytes:
    """Return the configuration in what ``xl list --long`` says of one domain, as ``xl save`` writes it.

    Raises ValueError, LookupError or TypeError when it is something else.
    """
    (entry,) = json.loads(listing)
    config = entry["config"]
    # Not a number but libxl's "none", which xl restore takes for one.
    config["c_info"].pop("domid", None)
    return json.dumps(config).encode()


def physmap_entries(listing: str, base: str) -> list[tuple[bytes, bytes]]:
    """Return (key relative to ``base``, value) of the lines of ``xenstore-ls -f``, but for those of directories."""
    entries = []
    for line in listing.splitlines():
        path, _, value = line.partition(" = ")
        value = value.strip().removeprefix('"').removesuffix('"')
        if path.startswith(f"{base}/") and value:
            entries.append((path.removeprefix(f"{base}/").encode(), value.encode()))
    return entries
