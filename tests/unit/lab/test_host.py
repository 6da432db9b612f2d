"""A host's monitor, on a QEMU without a machine."""

import asyncio
import subprocess
import threading

import pytest

from lab.host import Host
from lab.image import Image
from lab.settings import Settings


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(Settings, "run_dir", tmp_path)
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
    command += ["-qmp", f"unix:{tmp_path / 'xa.qmp'},server=on,wait=off", "-daemonize"]
    pid_file = tmp_path / "pid"
    subprocess.run([*command, "-pidfile", str(pid_file)], check=True)
    settings = Settings(checkout=tmp_path, cache=tmp_path)
    yield Host(settings, "xa", Image.__new__(Image), ssh_port=0)
    subprocess.run(["kill", pid_file.read_text().strip()], check=True)


def test_a_monitor_leaves_no_event_loop(host, monkeypatch):
    made = []

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self):
            made.append(super().new_event_loop())
            return made[-1]

    monkeypatch.setattr("asyncio.events._event_loop_policy", Policy())
    said = []

    def ask():
        with host.monitor() as monitor:
            said.append(monitor.cmd("query-status")["status"])

    ask()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(said) == 2
    assert made
    assert all(loop.is_closed() for loop in made)
