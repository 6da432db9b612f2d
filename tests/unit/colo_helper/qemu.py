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

from colo_helper.devices.qmp import QmpDeviceModel

PROGRAM = shutil.which("qemu-system-x86_64")
_START_S = 30.0


@dataclass
class Machine:
    devices: QmpDeviceModel
    networks: list[socket.socket]  # what is beyond each NIC, as datagrams


@contextlib.contextmanager
def machine(tmp_path: Path, *models: str) -> Iterator[Machine]:
    """Run a stopped machine with one NIC of each model; ``net0`` is the first one's back-end."""
    path = tmp_path / "qmp"
    arguments = ["-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-m", "64"]
    arguments += ["-qmp", f"unix:{path},server=on,wait=off"]
    networks = []
    for number, model in enumerate(models):
        network = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        network.bind(("127.0.0.1", 0))
        network.settimeout(10)
        networks.append(network)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        network.connect(("127.0.0.1", port))
        arguments += [
            "-netdev",
            f"socket,id=net{number},udp=127.0.0.1:{network.getsockname()[1]},localaddr=127.0.0.1:{port}",
            "-device",
            f"{model},id=nic{number},netdev=net{number},mac=00:16:3e:00:00:{number:02x},romfile=",
        ]
    process = subprocess.Popen([str(PROGRAM), *arguments])
    try:
        deadline = time.monotonic() + _START_S
        while not path.exists():
            assert process.poll() is None, "QEMU has ended"
            assert time.monotonic() < deadline, "QEMU does not listen"
            time.sleep(0.02)
        devices = QmpDeviceModel(1, tmp_path, 10.0, str(path))
        try:
            yield Machine(devices, networks)
        finally:
            devices.close()
    finally:
        process.kill()
        process.wait()
        for network in networks:
            network.close()
