"""The toolstack, through programs that behave like xl."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from colo_helper.replication.host import HostError
from colo_helper.replication.xl import XenHost, XlRestore, lock_out_older_helpers, physmap_entries


@pytest.fixture
def xl(tmp_path, monkeypatch):
    """Put a shell script named xl first in the path."""

    def install(body):
        script = tmp_path / "xl"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return install


@pytest.fixture
def host():
    """A host that never opens Xen's libraries."""
    return XenHost.__new__(XenHost)


def test_a_helper_that_outlived_its_replicator_is_waited_for(tmp_path):
    """The lock goes with the last process that has the descriptor, whoever took it."""
    path = tmp_path / "helper.lock"
    fd = lock_out_older_helpers(path)
    with subprocess.Popen(["sleep", "60"], pass_fds=[fd]) as helper:
        os.close(fd)  # the replicator is gone
        with pytest.raises(
            HostError, match=r"A save helper of an earlier replicator still runs after 0\.3 s"
        ):
            lock_out_older_helpers(path, 0.3)
        helper.kill()
    os.close(lock_out_older_helpers(path, 0.3))


LISTING = """[{"domid": 3, "config": {"c_info": {"type": "hvm", "name": "h1", "domid": 4294967295}, "b_info": {}}}]"""


def test_the_configuration_is_what_xl_saves(xl, host):
    xl(f"[ \"$*\" = 'list --long h1' ] && echo '{LISTING}'")
    config = json.loads(host.configuration("h1"))
    assert config == {"c_info": {"type": "hvm", "name": "h1"}, "b_info": {}}


@pytest.mark.parametrize("said", ["", "[]", "{}", '[{"domid": 3}]', "[1, 2]", "no JSON"])
def test_a_configuration_that_cannot_be_understood(xl, host, said):
    xl(f"echo '{said}'")
    with pytest.raises(HostError, match="'xl list --long h1' said what cannot be understood"):
        host.configuration("h1")


def test_a_domain_that_xl_does_not_know(xl, host):
    xl("echo 'h1 is an invalid domain identifier' >&2; exit 1")
    with pytest.raises(HostError, match="failed with status 1: h1 is an invalid domain identifier"):
        host.configuration("h1")


def test_the_device_models_map_of_memory_is_copied_without_its_directories():
    base = "/local/domain/0/device-model/3"
    listing = "\n".join(
        [
            f'{base}/physmap = ""',
            f'{base}/physmap/f0000000 = ""',
            f'{base}/physmap/f0000000/start_addr = "f0000000"',
            f'{base}/physmap/f0000000/name = "vga.vram"',
        ]
    )
    assert physmap_entries(listing, base) == [
        (b"physmap/f0000000/start_addr", b"f0000000"),
        (b"physmap/f0000000/name", b"vga.vram"),
    ]


def test_a_restore_gets_every_byte_and_tells_the_domains_number(xl, host, tmp_path):
    xl(f'case "$1" in domid) echo 12;; restore) [ "$2 $3" = "-e -p" ] && cat "$4" > {tmp_path}/image;; esac')
    stream = XlRestore("h1", host)
    for _ in range(20):
        stream.write(b"i" * 100_000)
    assert stream.finish() == 12
    assert (tmp_path / "image").read_bytes() == b"i" * 2_000_000


def test_a_restore_that_dies_says_why(xl, host):
    xl("echo 'libxl: error: not enough memory' >&2; exit 3")
    stream = XlRestore("h1", host)
    with pytest.raises(HostError, match=r"ended with status 3: libxl: error: not enough memory\."):
        stream.write(bytes(10_000_000))
    stream.abandon()


def eventually_gone(pid, deadline):
    """Wait until a process is gone, or dead and waiting for its parent."""
    stat = Path(f"/proc/{pid}/stat")
    while time.monotonic() < deadline:
        try:
            if stat.read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
    return False


def test_a_restore_that_is_given_up_leaves_no_process_and_no_domain(xl, host, tmp_path):
    xl(
        f'case "$1" in domid) echo 12;; destroy) echo $2 > {tmp_path}/destroyed;; '
        f"restore) sleep 60 & echo $! > {tmp_path}/child; cat > /dev/null; wait;; esac"
    )
    stream = XlRestore("h1", host)
    stream.write(b"x")
    deadline = time.monotonic() + 5
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        assert time.monotonic() < deadline
    stream.abandon()
    assert (tmp_path / "destroyed").read_text() == "12\n"
    child = int((tmp_path / "child").read_text())
    assert eventually_gone(child, deadline)


def test_domains_by_name(xl, host):
    xl('[ "$2" = h1 ] && echo 3 || { echo "h2 is an invalid domain identifier (rc=-6)" >&2; exit 1; }')
    assert host.find("h1") == 3
    assert host.find("h2") is None


def test_a_domain_that_is_gone_needs_no_destroying(xl, host):
    xl("exit 1")
    host.destroy(5)
    xl('[ "$1" = domname ] && echo h1 || { echo refused >&2; exit 1; }')
    with pytest.raises(HostError, match="'xl destroy 5' failed with status 1: refused"):
        host.destroy(5)
