"""A real QEMU without a guest: its vCPU does not run, its NICs and its network filters do."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colo_helper.devices.interface import DeviceError
from colo_helper.devices.qmp import QmpDeviceModel

PROGRAM = shutil.which("qemu-system-x86_64")
_START_S = 30.0


@dataclass
class Machine:
    devices: QmpDeviceModel
    networks: list[socket.socket]  # what is beyond each NIC, as datagrams


def connected(process: subprocess.Popen[bytes], domid: int, path: Path) -> QmpDeviceModel:
    """Connect as soon as QEMU listens: its socket's file is there a moment earlier."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return QmpDeviceModel(domid, path.parent, 10.0, str(path))
        except DeviceError:
            assert process.poll() is None, "QEMU has ended"
            assert time.monotonic() < deadline, "QEMU does not listen"
            time.sleep(0.02)


@contextlib.contextmanager
def machine(tmp_path: Path, *models: str) -> Iterator[Machine]:
    """Run a stopped machine with one NIC of each model; ``net0`` is the first one's back-end."""
    path = tmp_path / "qmp"
    arguments = ["-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-m", "64"]
    arguments += ["-qmp", f"unix:{path},server=on,wait=off"]
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _model in models]
    for number, (model, (network, theirs)) in enumerate(zip(models, pairs, strict=True)):
        network.settimeout(10)
        arguments += [
            "-netdev",
            f"dgram,id=net{number},local.type=fd,local.str={theirs.fileno()}",
            "-device",
            f"{model},id=nic{number},netdev=net{number},mac=00:16:3e:00:00:{number:02x},romfile=",
        ]
    process = subprocess.Popen(
        [str(PROGRAM), *arguments], pass_fds=[theirs.fileno() for _network, theirs in pairs]
    )
    try:
        devices = connected(process, 1, path)
        try:
            yield Machine(devices, [network for network, _theirs in pairs])
        finally:
            devices.close()
    finally:
        process.kill()
        process.wait()
        for pair in pairs:
            for end in pair:
                end.close()
