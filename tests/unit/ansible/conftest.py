"""Calls the real main() of a module, in this process, on a host that the test describes."""

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from tests.unit.ansible.module_host import REPOSITORY, FakeHost, Runner, load, utility


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    """``run("colo_vm", check=False, **args)`` returns the module's result, ``failed`` among it."""

    def call(module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        arguments |= {"_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            load(REPOSITORY / "library" / f"{module}.py").main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return call


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host named xa whose files are below a temporary directory."""
    names = (
        *(
            "base",
            "certificate",
            "channel",
            "filetree",
            "gate",
            "host",
            "preflight",
            "release",
            "save_helper",
            "snapshot",
            "vm",
        ),
    )
    modules = {name: utility(name) for name in names}
    gate, preflight, release, snapshot = (
        modules[name] for name in ("gate", "preflight", "release", "snapshot")
    )

    fake = FakeHost(tmp_path)
    monkeypatch.setattr(AnsibleModule, "run_command", fake.run_command)
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, name, **_options: f"/usr/sbin/{name}")
    for module in modules.values():
        if hasattr(module, "host_name"):
            monkeypatch.setattr(module, "host_name", lambda: "xa")
    monkeypatch.setattr(preflight.platform, "node", lambda: "xa")
    for name in ("vms", "states", "etc", "proc", "net", "lib"):
        (tmp_path / name).mkdir()
    (tmp_path / "boot_id").write_text("boot-1\n")
    monkeypatch.setattr(snapshot, "CONFIGURATIONS", tmp_path / "vms")
    monkeypatch.setattr(snapshot, "STATES", tmp_path / "states")
    monkeypatch.setattr(snapshot, "BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setattr(gate, "PREFIX", tmp_path / "opt")
    monkeypatch.setattr(release, "PROC", tmp_path / "proc")
    monkeypatch.setattr(modules["host"], "PROCESSES", tmp_path / "proc")
    monkeypatch.setattr(modules["save_helper"], "LIBRARIES", tmp_path / "lib")
    monkeypatch.setattr(preflight, "CAPABILITIES", tmp_path / "etc" / "capabilities")
    monkeypatch.setattr(preflight, "OS_RELEASE", tmp_path / "etc" / "os-release")
    monkeypatch.setattr(preflight, "DEVICE_MODEL", tmp_path / "etc" / "device-model")
    monkeypatch.setattr(preflight, "NETWORK", tmp_path / "net")
    monkeypatch.setattr(modules["vm"], "_POLL_S", 0.01)
    monkeypatch.setattr(modules["vm"], "_LOOK_S", 0.05)
    return fake
