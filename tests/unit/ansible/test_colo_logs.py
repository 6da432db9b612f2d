"""What is gathered from a host: all that tells what happened, and no secret."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.unit.ansible.module_host import REPOSITORY, FakeHost, Runner, load, utility

CONFIG = {
    "vm": "h1",
    "peer": {"name": "xb"},
    "arbiter": {"endpoints": ["https://192.0.2.1:2379"], "key": "/etc/colo/arbiter/key.pem"},
    "fencing": {
        "devices": [
            {
                "agent": "fence_ipmilan",
                "options": {"username": "colo", "password": "hunter2", "ip": "192.0.2.9"},
            }
        ]
    },
}


@pytest.fixture
def told(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a VM that has a history; returns where the archive shall be."""
    logs = utility("logs")
    monkeypatch.setattr(logs, "CONFIGURATIONS", tmp_path / "vms")
    monkeypatch.setattr(logs, "STATES", tmp_path / "states")
    monkeypatch.setattr(logs, "XEN_LOGS", tmp_path / "xen")
    monkeypatch.setattr(logs, "host_name", lambda: "xa")
    (tmp_path / "vms" / "h1.json").write_text(json.dumps(CONFIG))
    (tmp_path / "states" / "h1").mkdir()
    (tmp_path / "states" / "h1" / "state.json").write_text('{"phase": "replicating"}')
    (tmp_path / "states" / "h1" / "events.jsonl").write_text("x" * 10)
    (tmp_path / "xen").mkdir()
    (tmp_path / "xen" / "qemu-dm-h1.log").write_text("device model")
    host.answers["journalctl"] = lambda words: (0, "journal " + " ".join(words[3:]), "")
    for name in ("ip", "bridge", "timedatectl", "dpkg-query"):
        host.answers[name] = lambda words: (1, "", f"{words[0]} failed")
    host.answers["xl"] = lambda words: (0, " ".join(words), "")
    return tmp_path / "colo.tar.gz"


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def test_everything_that_tells_what_happened_is_there_and_no_password(run: Runner, told: Path) -> None:
    result = run("colo_logs", path=str(told), since="-1h")
    held = unpacked(told)
    assert sorted(held) == sorted(f"xa/{name}" for name in result["files"])
    assert held["xa/h1/state.json"] == b'{"phase": "replicating"}'
    assert held["xa/h1/journal.txt"] == b"journal --since=-1h --unit=colo-replicator@h1.service"
    assert held["xa/starts.txt"] == b"journal --since=-1h --unit=xendomains"
    assert held["xa/h1/qemu-dm-h1.log"] == b"device model"
    assert held["xa/xl-list.txt"] == b"xl list -v"
    assert held["xa/bridges.txt"] == b"bridge failed", "what a tool complains of is kept"
    config = json.loads(held["xa/h1/config.json"])
    assert config["arbiter"]["key"] == "/etc/colo/arbiter/key.pem", "a path is no secret"
    options = config["fencing"]["devices"][0]["options"]
    assert options == {"username": "colo", "password": "(not gathered)", "ip": "192.0.2.9"}
    assert not any(b"hunter2" in contents for contents in held.values())
    assert told.stat().st_mode & 0o777 == 0o600


def test_of_a_large_log_the_end_is_kept(run: Runner, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = utility("logs")
    monkeypatch.setattr(logs.end_of, "__defaults__", (4,))
    (told.parent / "states" / "h1" / "events.jsonl").write_text("begin-end\n")
    run("colo_logs", path=str(told))
    assert unpacked(told)["xa/h1/events.jsonl"] == b"end\n"


def test_a_dry_run_writes_nothing(run: Runner, told: Path) -> None:
    assert run("colo_logs", path=str(told), check=True)["changed"] is True
    assert not told.exists()


def test_a_full_disk_leaves_no_half_archive(run: Runner, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utility("logs").tarfile.TarFile, "addfile", full)
    result = run("colo_logs", path=str(told))
    assert result["msg"] == f"xa: {told} cannot be written: No space left on device."
    assert not told.exists()


def test_what_keeps_a_host_from_being_purged() -> None:
    problems = (
        load(REPOSITORY / "filter_plugins" / "colo_reports.py")
        .FilterModule()
        .filters()["colo_purge_problems"]
    )
    ended = {
        "name": "h0",
        "alive": False,
        "config": None,
        "protection": "stopped",
        "phase": "stopped",
        "domain": None,
        "stale": False,
        "state": None,
    }
    unprotected = {**ended, "domain": {"domid": 3}}
    assert problems({"vms": [ended, unprotected, {**ended, "phase": "active"}]}, "xa") == []
    for change in ({"alive": True}, {"config": {"role": "primary"}}):
        assert problems({"vms": [{**ended, **change}]}, "xa") == [
            "h0 is still protected on xa (stopped): end that first with playbooks/unprotect.yml -e colo_vm=h0."
        ]
    assert problems({"vms": [{**unprotected, "protection": "active"}]}, "xa") == [
        "h0 runs on xa since it took over, and its protection has ended: shut it down with 'xl shutdown h0', or move it with "
        "'xl migrate h0 HOST', then run this again."
    ]
    left = {**unprotected, "phase": "peer_lost", "state": {"role": "secondary", "domid": 3}}
    assert problems({"vms": [left]}, "xa") == [
        "A copy of h0 is left on xa (peer_lost), and nobody keeps it: when h0 runs on another host, remove it with "
        "'xl destroy h0', then run this again."
    ]
    assert problems({"vms": [{**left, "stale": True}]}, "xa") == [], "its host was started since"
    assert problems({"vms": [{**unprotected, "protection": "standby"}]}, "xa") == [
        "A copy of h0 stands still on xa since a switch-over, and nobody keeps it: when h0 runs on another host, remove it "
        "with 'xl destroy h0', then run this again."
    ]


@pytest.mark.parametrize(
    ("host", "confirm", "said"),
    [
        ("", "", ["Say which host: -e colo_host=NAME. The group colo_hosts has: xa, xb."]),
        ("xc", "xc", ["colo_hosts has no host xc; it has: xa, xb."]),
        (
            "xa",
            "xb",
            ["Confirm it with the host's name, playbooks/purge.yml -e colo_host=xa -e colo_confirm=xa."],
        ),
        ("xa", "xa", []),
    ],
)
def test_a_host_is_named_twice(host: str, confirm: str, said: list[str]) -> None:
    problems = (
        load(REPOSITORY / "filter_plugins" / "colo.py")
        .FilterModule()
        .filters()["colo_host_selection_problems"]
    )
    assert problems(["xb", "xa"], host, confirm, "playbooks/purge.yml") == said
