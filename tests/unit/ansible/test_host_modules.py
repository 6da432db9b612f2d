"""Preflight and files."""

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ansible.module_host import FakeHost, Runner, utility

XL_INFO = """\
host                   : xa
release                : 6.1.0-56-amd64
virt_caps              : pv hvm hap gnttab-v1 gnttab-v2
free_memory            : 902
xen_major              : 4
xen_minor              : 17
xen_extra              : .7
xen_version            : 4.17.7
xen_commandline        : console=com1 com1=115200,8n1 dom0_mem=512M,max:512M
"""
OWNER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def xen_host(host: FakeHost) -> FakeHost:
    """A host in order."""
    host.info = XL_INFO
    (host.root / "etc" / "capabilities").write_text("control_d\n")
    (host.root / "etc" / "os-release").write_text(
        'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
    )
    (host.root / "etc" / "device-model").write_text("")
    (host.root / "net" / "xenbr0" / "bridge").mkdir(parents=True)
    return host


def test_preflight_of_a_host_in_order(xen_host: FakeHost, run: Runner) -> None:
    result = run(
        "colo_preflight_info", bridges=["xenbr0"], minimum_memory_mib=256, prefix=str(xen_host.root / "opt")
    )
    assert result["problems"] == []
    assert result["ok"] is True
    assert result["changed"] is False
    assert (result["xen_release"], result["xen_version"], result["debian_release"]) == (
        "4.17",
        "4.17.7",
        "12",
    )
    assert (result["python_version"], result["free_memory_mib"]) == (PYTHON, 902)
    assert result["helper"] == {"digest": None, "releases": []}
    assert result["save_helper"] == {}
    assert len(result["findings"]) == 8


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("xen_minor              : 17", "xen_minor              : 16",
         "xa: the Xen release is 4.16, not 4.17 or 4.20: install Debian's own Xen packages; 'xl info' must answer."),
        ("hvm hap", "hvm",
         "xa: the processor's virtualisation is pv hvm gnttab-v1 gnttab-v2, not one with hvm and hap: turn on VT-x with EPT or "
         "AMD-V with NPT in the firmware."),
        (": 902", ": 100",
         "xa: Xen's free memory is 100 MiB, not 256 MiB or more: give dom0 less (dom0_mem=) or stop domains."),
    ],
)  # fmt: skip
def test_preflight_names_what_xen_lacks(
    xen_host: FakeHost, run: Runner, old: str, new: str, sentence: str
) -> None:
    xen_host.info = xen_host.info.replace(old, new)
    result = run("colo_preflight_info", minimum_memory_mib=256)
    assert result["ok"] is False
    assert result["problems"] == [sentence]


def test_an_xl_that_hangs_tells_no_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xl = tmp_path / "xl"
    xl.write_text("#!/bin/sh\nexec sleep 60\n")
    xl.chmod(0o755)

    class Module:
        def get_bin_path(self, _name: str) -> str:
            return str(xl)

        def run_command(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
            return done.returncode, done.stdout, done.stderr

    monkeypatch.setattr(utility("host"), "XL_TIMEOUT_S", 0.2)
    assert utility("host").read_domains(Module()) is None
    xl.write_text("#!/bin/sh\necho Name ID Mem VCPUs State Times; echo h1 3 128 1 -b---- 1.0\n")
    monkeypatch.setattr(utility("host"), "PROCESSES", tmp_path)
    domain = {"domid": 3, "memory_mib": 128, "state": "-b----"}
    assert utility("host").read_domains(Module()) == {"h1": {**domain, "headless": True}}
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "cmdline").write_bytes(
        b"/usr/libexec/xen-qemu-system-i386\0-xen-domid\x003\0-name\0\xff\0"
    )
    (tmp_path / "78").mkdir()
    (tmp_path / "78" / "cmdline").write_bytes(b"grep\0-xen-domid\0")
    assert utility("host").read_domains(Module()) == {"h1": {**domain, "headless": False}}


def test_preflight_of_something_else_entirely(host: FakeHost, run: Runner) -> None:
    (host.root / "etc" / "os-release").write_text('ID=ubuntu\nVERSION_ID="24.04"\n')
    result = run("colo_preflight_info", bridges=["xenbr9"])
    assert result["problems"] == [
        "xa: the kernel's place is outside Xen, not Xen's dom0: boot it into Xen (package xen-hypervisor-amd64, "
        "then the Xen entry of the boot menu).",
        "xa: the Xen release is unknown, not 4.17 or 4.20: install Debian's own Xen packages; 'xl info' must answer.",
        "xa: the distribution is ubuntu 24.04, not debian 12 or 13: COLO is proved on these releases only.",
        "xa: the processor's virtualisation is unknown, not one with hvm and hap: turn on VT-x with EPT or AMD-V with NPT "
        "in the firmware.",
        "xa: the device model is missing, not installed: apt install qemu-system-xen.",
        "xa: the bridge xenbr9 is missing, not there: make the bridge xenbr9 in /etc/network/interfaces, "
        "or name another in colo_vms.",
    ]


def entry(path: Path, **options: Any) -> dict[str, Any]:
    return {"path": str(path), "owner": OWNER, "group": GROUP, **options}


def test_files_are_made_and_the_second_run_changes_nothing(host: FakeHost, run: Runner) -> None:
    files = [
        entry(host.root / "d", state="directory", mode="0750"),
        entry(host.root / "d" / "f", content="text\n", mode="0640"),
        entry(host.root / "gone", state="absent"),
    ]
    (host.root / "gone").write_text("old")
    predicted = run("colo_files", files=files, check=True)
    assert predicted["changed"] is True
    assert not (host.root / "d").exists()
    result = run("colo_files", files=files)
    assert result["changed"] is True
    assert result["diff"] == predicted["diff"]
    assert [part["before_header"] for part in result["diff"]] == [item["path"] for item in files]
    assert (host.root / "d" / "f").read_text() == "text\n"
    assert (host.root / "d" / "f").stat().st_mode & 0o777 == 0o640
    assert (host.root / "d").stat().st_mode & 0o777 == 0o750
    assert not (host.root / "gone").exists()
    assert run("colo_files", files=files)["changed"] is False


def test_refused_files_are_put_back(host: FakeHost, run: Runner) -> None:
    (host.root / "one").write_text("old\n")
    (host.root / "one").chmod(0o644)
    host.answers["sshd"] = lambda _words: (255, "", "colo.conf line 2: Bad option\n")
    files = [entry(host.root / "one", content="new\n"), entry(host.root / "two", content="new\n")]
    result = run("colo_files", files=files, validate=["sshd", "-t"])
    assert result["failed"] is True
    assert result["msg"] == (
        "sshd -t on xa refuses the new files: colo.conf line 2: Bad option. Everything was put back as it was."
    )
    assert (host.root / "one").read_text() == "old\n"
    assert not (host.root / "two").exists()


def test_unknown_group_and_wrong_kind(host: FakeHost, run: Runner) -> None:
    path = host.root / "f"
    result = run("colo_files", files=[entry(path, content="x") | {"group": "no-such-group"}])
    assert result["msg"] == "There is no group no-such-group on xa: run playbooks/site.yml, which makes it."
    assert not path.exists()
    path.mkdir()
    result = run("colo_files", files=[entry(path, content="x")])
    assert result["msg"] == f"{path} on xa is a directory, not a file: move it away and run again."
    result = run("colo_files", files=[entry(host.root / "g")])
    assert result["msg"] == f"{host.root / 'g'} has no content: give it one, or make it a directory."
