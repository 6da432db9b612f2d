"""One Xen host of the lab: a QEMU process, its disk overlay, its console and its snapshot."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import ConnectError, ExecuteError
from qemu.qmp.legacy import QEMUMonitorProtocol

from lab import network, processes
from lab.errors import LabError
from lab.image import Image
from lab.settings import PATHS, SUBNETS, Settings, host_number, mac

#: Snapshots of a host: right after its first boot, and with the guest h1 on it, booted and paused.
READY, WITH_GUEST = "ready", "with-guest"
_READY_MARK = b"COLO-LAB-READY"
_MEMORY_MIB = 1536
_XEN_COMMAND_LINE = "console=com1 com1=115200,8n1 noreboot dom0_mem=512M,max:512M dom0_max_vcpus=1"
_KERNEL_COMMAND_LINE = "root=/dev/vda ro console=hvc0 net.ifnames=0"


@dataclass(frozen=True)
class Host:
    """A host by name. Everything about it that changes is read from the system, nothing is remembered here."""

    settings: Settings
    name: str
    image: Image
    ssh_port: int

    @property
    def directory(self) -> Path:
        """Disk, seed, logs."""
        return self.settings.host_dir(self.name)

    @property
    def overlay(self) -> Path:
        """qcow2 over the image's disk; holds the snapshot."""
        return self.directory / "disk.qcow2"

    @property
    def pid(self) -> int | None:
        """The running QEMU's pid."""
        return processes.find(self.settings.lab_id).get(self.settings.process_name(self.name))

    def require_pid(self) -> int:
        """The running QEMU's pid; a LabError when the host is off."""
        pid = self.pid
        if pid is None:
            raise LabError(f"{self.name} is powered off: `make lab-reset` brings both hosts back")
        return pid

    def create_disk(self) -> None:
        """A new, empty overlay: the host's disk is the image again."""
        command = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            str(self.image.disk),
            "-F",
            "raw",
            str(self.overlay),
        ]
        _run(command)

    def has_snapshot(self, tag: str) -> bool:
        """Whether the overlay holds the snapshot `tag`."""
        if not self.overlay.exists():
            return False
        listing = _run(["qemu-img", "snapshot", "-U", "-l", str(self.overlay)])
        return any(line.split()[1:2] == [tag] for line in listing.splitlines())

    def start(self, accelerator: list[str], snapshot: str | None = None) -> None:
        """Start QEMU: it boots from the disk, or stands still at a snapshot until `go_on`. Returns when its monitor answers."""
        _check_port(self.ssh_port, self.name)
        self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        # QEMU inherits them all; here they are closed whatever happens.
        with ExitStack() as ours:
            claim = processes.claim(self.settings.run_dir)
            ours.callback(os.close, claim)
            monitor, console = (ours.enter_context(self._listen(kind)) for kind in ("qmp", "console"))
            taps: dict[str, int] = {}
            for path in SUBNETS:
                taps[path] = network.open_tap(self.settings, path, self.name)
                ours.callback(os.close, taps[path])
            command = self._command(accelerator, monitor.fileno(), console.fileno(), taps)
            if snapshot is not None:
                command += ["-loadvm", snapshot, "-S"]
            log = ours.enter_context((self.directory / "qemu.log").open("wb"))
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[claim, monitor.fileno(), console.fileno(), *taps.values()],
                start_new_session=True,
            )
        with self.monitor():
            pass  # the greeting comes when the machine is set up (and its snapshot loaded)

    def wait_booted(self, timeout_s: float) -> None:
        """Block until the console says that Xen's tools answer."""
        deadline = time.monotonic() + timeout_s
        seen = b""
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(self._socket("console")))
            while _READY_MARK not in seen:
                console.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    data = console.recv(65536)
                except TimeoutError:
                    raise LabError(
                        f"{self.name} did not come up in {timeout_s:.0f} s; read {self.directory}/console.log"
                    ) from None
                if not data:
                    raise LabError(
                        f"{self.name} stopped while booting; read {self.directory}/console.log and qemu.log beside it"
                    )
                seen = seen[-len(_READY_MARK) :] + data

    def take_snapshot(self, tag: str) -> None:
        """Save memory and disk under `tag`, a state that resets go back to. No HVM or PVH guest may be running."""
        with self.monitor() as monitor:
            answer = monitor.cmd("human-monitor-command", **{"command-line": f"savevm {tag}"})
        if answer:
            raise LabError(
                f"{self.name} could not be saved: {str(answer).strip()}; is the disk of {self.directory} full?"
            )

    def stand_still(self) -> None:
        """Stop its clock and processor where they are; its monitor still answers, unlike that of a frozen host."""
        with self.monitor() as monitor:
            monitor.cmd("stop")

    def go_on(self) -> None:
        """Let a host go on that stands still."""
        with self.monitor() as monitor:
            monitor.cmd("cont")

    def power_off(self) -> None:
        """Pull the plug: SIGKILL. Nothing to do when it is off."""
        pid = self.pid
        if pid is not None:
            processes.kill(pid)

    def freeze(self) -> None:
        """Stop the whole host between two instructions (SIGSTOP)."""
        processes.stop(self.require_pid())

    def thaw(self) -> None:
        """Let a frozen host go on."""
        os.kill(self.require_pid(), signal.SIGCONT)

    def set_cable(self, path: str, *, plugged: bool) -> None:
        """Cut or mend the host's cable on a path; the host sees its carrier go and come."""
        self.require_pid()
        with self.monitor() as monitor:
            monitor.cmd("set_link", name=f"n-{path}", up=plugged)

    @contextmanager
    def monitor(self) -> Iterator[QEMUMonitorProtocol]:
        """The host's QMP monitor; one user at a time."""
        # The library's client uses the thread's event loop and never closes it.
        with asyncio.Runner() as runner:
            runner.get_loop()
            client = QEMUMonitorProtocol(str(self._socket("qmp")))
            try:
                client.connect()
            except (ConnectError, OSError) as error:
                raise LabError(
                    f"QEMU of {self.name} does not answer: {self._last_words() or error}"
                ) from error
            try:
                yield client
            except ExecuteError as error:
                raise LabError(f"QEMU of {self.name} refused: {error}") from error
            finally:
                client.close()

    def _command(self, accelerator: list[str], monitor: int, console: int, taps: dict[str, int]) -> list[str]:
        number = host_number(self.name)
        command = [
            "qemu-system-x86_64", "-name", self.settings.process_name(self.name), "-nodefaults", "-no-user-config",
            "-machine", "q35", *accelerator, "-smp", "1", "-m", str(_MEMORY_MIB), "-display", "none",
            "-kernel", str(self.image.xen), "-append", _XEN_COMMAND_LINE,
            "-initrd", f"{self.image.kernel} {_KERNEL_COMMAND_LINE},{self.image.initrd}",
            "-drive", f"file={self.overlay},format=qcow2,if=none,id=disk,cache=writeback,discard=unmap",
            "-device", "virtio-blk-pci,drive=disk",
            "-drive", f"file={self.directory / 'seed.tar'},format=raw,if=none,id=seed,read-only=on",
            "-device", "virtio-blk-pci,drive=seed",
            "-chardev", f"socket,id=monitor,fd={monitor},server=on,wait=off", "-mon", "chardev=monitor,mode=control",
            "-chardev", f"socket,id=console,fd={console},server=on,wait=off,logfile={self.directory / 'console.log'}",
            "-serial", "chardev:console",
        ]  # fmt: skip
        for path in PATHS:
            if path == "ctl":
                backend = f"user,id=n-ctl,restrict=on,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
            else:
                backend = f"tap,id=n-{path},fd={taps[path]}"
            command += [
                "-netdev",
                backend,
                "-device",
                f"virtio-net-pci,netdev=n-{path},mac={mac(path, number)}",
            ]
        return command

    def _socket(self, kind: str) -> Path:
        return self.settings.run_dir / f"{self.name}.{kind}"

    def _listen(self, kind: str) -> socket.socket:
        """A listening socket that QEMU takes over: whoever connects before QEMU is ready waits, nobody polls."""
        path = self._socket(kind)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        return listener

    def _last_words(self) -> str:
        log = self.directory / "qemu.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return lines[-1] if lines else ""


def _check_port(port: int, host: str) -> None:
    if not network.port_is_free(port):
        raise LabError(
            f"port {port} on 127.0.0.1, meant for ssh to {host}, is taken: stop what listens there (`ss -ltnp`), "
            "or make the lab anew with other ports: `lab down --purge`, then `lab up --ssh-port N`"
        )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
    return done.stdout
