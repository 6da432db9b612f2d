"""Keys, lines and pins of a VM's channels; their rotation; what colo_channel_info tells."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from colo_helper.channel import attach
from tests.unit.ansible.module_host import REPOSITORY, FakeHost, Runner, utility
from tests.unit.ansible.test_host_modules import GROUP, OWNER

KEY_B = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPeerB"
KEY_C = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPeerC"
HOST_B = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostB"
HOST_C = "ecdsa-sha2-nistp256 AAAAE2VjZHNhHostC="
PEER = {"name": "xb", "address": "192.168.77.2", "public_keys": [KEY_B], "host_keys": [HOST_B]}
OF_H2 = f'restrict,command="{attach.FORCED}h2" {KEY_C} colo-channel h2 xc'


def new_key(path: Path) -> str:
    """Write a key pair as ssh-keygen does; returns the public half."""
    key = Ed25519PrivateKey.generate()
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


@pytest.fixture
def ssh(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/etc/colo/ssh of the host, which is not there yet; sshd has host keys."""
    channel = utility("channel")
    directory = host.root / "colo" / "ssh"
    monkeypatch.setattr(channel, "DIRECTORY", directory)
    monkeypatch.setattr(channel, "OWNER", OWNER)
    monkeypatch.setattr(channel, "GROUP", GROUP)
    (host.root / "sshd").mkdir()
    (host.root / "sshd" / "ssh_host_rsa_key.pub").write_text("ssh-rsa AAAAB3 root@xa\n")
    (host.root / "sshd" / "ssh_host_ed25519_key.pub").write_text("ssh-ed25519 AAAAC3 root@xa\n")

    def keygen(words: list[str]) -> tuple[int, str, str]:
        path = Path(words[-1])
        path.with_name(path.name + ".pub").write_text(new_key(path) + f" {words[words.index('-C') + 1]}\n")
        return 0, "", ""

    host.answers["ssh-keygen"] = keygen
    return directory


@pytest.fixture
def keep(host: FakeHost, run: Runner, ssh: Path) -> Any:
    def call(vm: str = "h1", **options: Any) -> dict[str, Any]:
        return run("colo_channel", vm=vm, host_key_directory=str(host.root / "sshd"), **options)

    return call


def tree(ssh: Path) -> dict[str, str]:
    """Every file and its content; of a private key that there is one."""
    return {
        str(path.relative_to(ssh)): "key" if path.name.startswith("id_") else path.read_text()
        for path in sorted(ssh.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_key_is_made_once_and_never_shown(keep: Any, ssh: Path, host: FakeHost) -> None:
    predicted = keep(check=True)
    assert (predicted["changed"], predicted["public_key"], predicted["host_keys"]) == (
        True,
        "",
        ["ssh-ed25519 AAAAC3"],
    )
    assert host.calls == []
    assert not ssh.exists()
    made = keep()
    private = (ssh / "h1" / "id_ed25519").read_text()
    assert made["changed"] is True
    assert made["public_key"].startswith("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI")
    assert not set(private.splitlines()[1:-1]) & set(json.dumps(made).split("\\n"))
    assert tree(ssh) == {"h1/id_ed25519": "key"}, "no second file that could be another key's"
    assert (ssh / "h1" / "id_ed25519").stat().st_mode & 0o777 == 0o600
    assert (ssh / "h1").stat().st_mode & 0o777 == 0o700
    assert ssh.stat().st_mode & 0o777 == 0o750
    again = keep()
    assert (again["changed"], again["public_key"]) == (False, made["public_key"])


def test_the_public_half_is_ssh_keygens(tmp_path: Path) -> None:
    public = new_key(tmp_path / "key")
    assert utility("channel").public_half((tmp_path / "key").read_text()) == public


@pytest.mark.parametrize("body", ["", "x", "AAAA", "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU="])
def test_what_is_no_key_is_made_anew(keep: Any, ssh: Path, body: str) -> None:
    keep()
    text = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n"
    (ssh / "h1" / "id_ed25519").write_text(text)
    result = keep()
    assert result["changed"] is True
    assert result["public_key"].startswith("ssh-ed25519 ")


def test_a_key_that_others_could_read_is_closed(keep: Any, ssh: Path) -> None:
    first = keep()
    (ssh / "h1" / "id_ed25519").chmod(0o644)
    assert keep(check=True)["changed"] is True
    second = keep()
    assert (second["changed"], second["public_key"]) == (True, first["public_key"])
    assert (ssh / "h1" / "id_ed25519").stat().st_mode & 0o777 == 0o600


def test_the_peer_is_let_in_for_this_vm_only(keep: Any, ssh: Path) -> None:
    predicted = keep(peer=PEER, check=True)
    made = keep(peer=PEER)
    assert made["changed"] is True
    headers = [part["before_header"] for part in made["diff"]]
    assert headers == [part["before_header"] for part in predicted["diff"]]
    assert (ssh / "authorized_keys").read_text().splitlines()[1:] == [
        f'restrict,command="/opt/colo-helper/current/bin/colo-helper attach h1" {KEY_B} colo-channel h1 xb'
    ]
    assert (ssh / "known_hosts").read_text().splitlines()[1:] == [f"192.168.77.2 {HOST_B} xb"]
    assert (ssh / "authorized_keys").stat().st_mode & 0o777 == 0o640
    assert made["authorized"] == [{"peer": "xb", "public_key": KEY_B, "receive": False}]
    assert keep(peer=PEER)["changed"] is False
    assert keep(peer=PEER, check=True)["changed"] is False
    assert keep()["changed"] is False, "what is not told stays"


def test_the_command_is_the_one_that_the_shell_runs() -> None:
    assert utility("channel_lines").FORCED == attach.FORCED
    assert utility("channel_lines").RECEIVE == attach.RECEIVE


def test_a_key_receives_vms_only_while_the_operator_says_so(keep: Any, ssh: Path) -> None:
    keep("h2", peer={**PEER, "public_keys": [KEY_C]})
    allowed = keep(peer={**PEER, "receive": True})
    assert allowed["authorized"] == [{"peer": "xb", "public_key": KEY_B, "receive": True}]
    marked = f'restrict,command="{attach.FORCED}h1 --receive" {KEY_B} colo-channel h1 xb'
    assert (ssh / "authorized_keys").read_text().splitlines()[1:] == [marked, OF_H2.replace(" xc", " xb")]
    rotated = keep(peer={**PEER, "public_keys": [KEY_B, KEY_C]})
    assert [line["receive"] for line in rotated["authorized"]] == [True, True], "left as it is"
    assert keep(peer={**PEER, "receive": True})["changed"] is True
    assert keep(peer={**PEER, "receive": True})["changed"] is False
    (ssh / "authorized_keys").write_text(marked.replace("--receive", "--receive --more") + "\n")
    assert keep()["authorized"] == []
    keep(peer={**PEER, "receive": True})
    assert keep(peer={**PEER, "receive": False})["authorized"][0]["receive"] is False
    assert '--receive"' not in (ssh / "authorized_keys").read_text()


def test_the_units_are_what_the_programs_expect() -> None:
    role = REPOSITORY / "roles" / "colo_channel"
    socket_unit = (role / "files" / "colo-receive.socket").read_text()
    service = (role / "files" / "colo-receive@.service").read_text()
    assert f"ListenStream={attach.RECEIVE_SOCKET}\n" in socket_unit
    for line in ("Accept=yes", "SocketUser=root", "SocketGroup=colo", "SocketMode=0660"):
        assert f"{line}\n" in socket_unit
    assert f"ExecStart={attach.FORCED.removesuffix('attach ')}receive\n" in service
    assert "StandardInput=socket\n" in service
    assert "KillMode=process\n" in service
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    assert defaults["colo_channel_receive"] is False


def test_lines_of_other_vms_stay_and_strangers_go(keep: Any, ssh: Path) -> None:
    keep("h2")
    old = f'restrict,command="/opt/colo-helper/current/bin/colo-helper attach" {KEY_B} colo-channel xb\n'
    strangers = f"{KEY_B} root@somewhere\n{OF_H2.replace('attach h2', 'attach h1')}\n{OF_H2.replace('restrict,', '')}\n"
    (ssh / "authorized_keys").write_text(old + strangers + OF_H2 + "\n")
    (ssh / "known_hosts").write_text(
        f"192.168.77.2 {HOST_C}\n192.168.77.3 {HOST_C} xc\n[192.168.77.9]:22 {HOST_B} xb\n"
    )
    keep(peer={**PEER, "port": 2222})
    text = (ssh / "authorized_keys").read_text()
    assert text.splitlines()[1:] == [
        f'restrict,command="{attach.FORCED}h1" {KEY_B} colo-channel h1 xb',
        OF_H2,
    ]
    assert (ssh / "known_hosts").read_text().splitlines()[1:] == [
        f"192.168.77.2 {HOST_C}",
        f"[192.168.77.2]:2222 {HOST_B} xb",
        f"192.168.77.3 {HOST_C} xc",
    ]
    keep(peer=PEER)
    assert f"192.168.77.2 {HOST_C}" not in (ssh / "known_hosts").read_text()


def test_two_vms_do_not_take_turns(keep: Any) -> None:
    peers = {"h1": PEER, "h2": {**PEER, "name": "xc", "address": "192.168.77.3", "public_keys": [KEY_C]}}
    assert [keep(vm, peer=peer)["changed"] for vm, peer in [*peers.items(), *peers.items()]] == [
        True,
        True,
        False,
        False,
    ]


def test_removing_one_vm_leaves_the_others(keep: Any, ssh: Path, host: FakeHost) -> None:
    keep("h1", peer=PEER)
    keep("h3", peer=PEER)
    keep("h2", peer={"name": "xc", "address": "192.168.77.3", "public_keys": [KEY_C], "host_keys": [HOST_C]})
    before = tree(ssh)
    assert keep("h3", state="absent", check=True)["changed"] is True
    assert tree(ssh) == before
    gone = keep("h3", state="absent")
    assert (gone["changed"], gone["public_key"], gone["authorized"]) == (True, "", [])
    assert not (ssh / "h3").exists()
    assert " h3 " not in (ssh / "authorized_keys").read_text()
    assert f"192.168.77.2 {HOST_B} xb" in (ssh / "known_hosts").read_text(), "h1 has the same peer"
    assert keep("h3", state="absent")["changed"] is False
    keep("h1", state="absent")
    assert (ssh / "known_hosts").read_text().splitlines()[1:] == [f"192.168.77.3 {HOST_C} xc"]
    assert (ssh / "authorized_keys").read_text().splitlines()[1:] == [OF_H2]
    (host.root / "vms" / "h2.json").write_text("{}")
    refused = keep("h2", state="absent")
    assert refused["msg"] == (
        f"h2 is protected on xa ({host.root / 'vms' / 'h2.json'}), and its replicators need the channels: run "
        "playbooks/unprotect.yml -e colo_vm=h2 first."
    )


@pytest.mark.usefixtures("ssh")
def test_removing_what_never_was(keep: Any, ssh: Path) -> None:
    assert keep(state="absent")["changed"] is False
    assert not ssh.exists()


@pytest.mark.parametrize(
    ("vm", "peer", "sentence"),
    [
        ("../h1", {}, "'../h1' is no name for a protected VM"),
        ("authorized_keys", {}, "A VM named authorized_keys cannot have channels"),
        (
            "h1",
            {"public_keys": []},
            "No key of xb for h1 is given, so xa cannot let it in: run playbooks/site.yml",
        ),
        ("h1", {"public_keys": [""]}, "No key of xb for h1 is given"),
        (
            "h1",
            {"public_keys": ["ssh-rsa AAAA"]},
            "The key of xb for h1 is no ed25519 public key: 'ssh-rsa AAAA'.",
        ),
        (
            "h1",
            {"public_keys": ['ssh-ed25519 AAAA",command="sh']},
            "The key of xb for h1 is no ed25519 public key",
        ),
        ("h1", {"name": "x b"}, "'x b' is no name for a host"),
        (
            "h1",
            {"address": ""},
            "The host keys of xb cannot be pinned without its address: give peer.address.",
        ),
        ("h1", {"address": "a,b *"}, "'a,b *' is no address of xb that known_hosts can hold."),
        (
            "h1",
            {"host_keys": ["@cert-authority x"]},
            "The host key of xb is no public key: '@cert-authority x'.",
        ),
    ],
)
def test_what_is_refused_changes_nothing(
    keep: Any, ssh: Path, vm: str, peer: dict[str, Any], sentence: str
) -> None:
    result = keep(vm, peer={**PEER, **peer})
    assert result["failed"] is True
    assert result["msg"].startswith(sentence)
    assert not (ssh / "authorized_keys").exists()


def test_a_dry_run_on_fresh_hosts_needs_no_key(keep: Any) -> None:
    result = keep(peer={**PEER, "public_keys": [""]}, check=True)
    assert result["changed"] is True
    assert "(made when this is not a dry run) colo-channel h1 xb" in json.dumps(result["diff"])


def test_keygen_fails(keep: Any, host: FakeHost, ssh: Path) -> None:
    host.answers["ssh-keygen"] = lambda _words: (1, "", "No space left on device\n")
    result = keep()
    assert result["msg"] == (
        "ssh-keygen on xa made no key for h1: No space left on device. Install openssh-client there."
    )
    assert list((ssh / "h1").iterdir()) == []


def test_sshd_without_host_keys(keep: Any, host: FakeHost) -> None:
    shutil.rmtree(host.root / "sshd")
    (host.root / "sshd").mkdir()
    assert keep(check=True)["msg"] == (
        f"sshd on xa has no host keys in {host.root / 'sshd'}: run 'ssh-keygen -A' there, then this again."
    )


# ----------------------------------------------------------------------------------------------- rotation


def test_a_next_key_takes_the_place_of_the_key(keep: Any, ssh: Path) -> None:
    first = keep()["public_key"]
    predicted = keep(rotation="prepare", check=True)
    assert (predicted["changed"], predicted["next_public_key"]) == (True, "")
    prepared = keep(rotation="prepare")
    second = prepared["next_public_key"]
    assert (prepared["changed"], prepared["public_key"]) == (True, first)
    assert second not in ("", first)
    again = keep(rotation="prepare")
    assert (again["changed"], again["next_public_key"]) == (False, second), (
        "an interrupted one goes on with the same"
    )
    assert keep()["changed"] is False, "site.yml in between leaves it"
    predicted = keep(rotation="switch", check=True)
    assert (predicted["changed"], predicted["public_key"], predicted["next_public_key"]) == (True, second, "")
    switched = keep(rotation="switch")
    assert (switched["changed"], switched["public_key"], switched["next_public_key"]) == (True, second, "")
    assert tree(ssh) == {"h1/id_ed25519": "key"}
    assert keep(rotation="switch")["changed"] is False


def test_both_keys_of_a_peer_and_then_one(keep: Any) -> None:
    keep(peer=PEER)
    both = keep(peer={**PEER, "public_keys": [KEY_B, KEY_C], "host_keys": None})
    assert [line["public_key"] for line in both["authorized"]] == [KEY_B, KEY_C]
    one = keep(peer={**PEER, "public_keys": [KEY_C]})
    assert [line["public_key"] for line in one["authorized"]] == [KEY_C]


PAIR = (("xa", "xb"), ("xb", "xa"))


class TwoHosts:
    """Two hosts with channels to each other, and the steps of playbooks/rotate.yml."""

    def __init__(self, keep: Any, use: Any) -> None:
        self.keep, self.use = keep, use
        self.first = {side: self.on(side)["public_key"] for side, _ in PAIR}
        for side, other in PAIR:
            self.let_in(side, [self.first[other]])

    def on(self, side: str, **options: Any) -> dict[str, Any]:
        self.use(side)
        result: dict[str, Any] = self.keep(**options)
        assert "failed" not in result
        return result

    def let_in(self, side: str, keys: list[str]) -> None:
        self.on(side, peer={"name": "peer", "address": "192.168.77.9", "public_keys": keys})

    def rotate(self) -> Iterator[None]:
        """One step after the other, each on one host."""
        prepared, switched = {}, {}
        for side, _ in PAIR:
            prepared[side] = self.on(side, rotation="prepare")
            yield
        for side, other in PAIR:
            self.let_in(side, [prepared[other]["public_key"], prepared[other]["next_public_key"]])
            yield
        for side, _ in PAIR:
            switched[side] = self.on(side, rotation="switch")
            yield
        for side, other in PAIR:
            self.let_in(side, [switched[other]["public_key"]])
            yield

    def require_ways(self) -> None:
        for side, other in PAIR:
            mine = self.on(side)["public_key"]
            assert mine in [line["public_key"] for line in self.on(other)["authorized"]], (
                f"{side} is shut out"
            )


@pytest.mark.parametrize("steps", range(8))
def test_a_rotation_that_stops_anywhere_leaves_keys_that_work(
    keep: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    channel = utility("channel")
    hosts = TwoHosts(
        keep, lambda side: monkeypatch.setattr(channel, "DIRECTORY", host.root / f"colo-{side}" / "ssh")
    )
    for _ in itertools.islice(hosts.rotate(), steps):
        hosts.require_ways()
    for _ in hosts.rotate():
        hosts.require_ways()
    for side, other in PAIR:
        mine = hosts.on(side)
        assert mine["public_key"] != hosts.first[side]
        assert mine["next_public_key"] == ""
        assert [line["public_key"] for line in hosts.on(other)["authorized"]] == [mine["public_key"]]


# ---------------------------------------------------------------------------------------------- the probe

REPORT = {
    "vm": "h1", "peer": "xb", "address": "192.168.77.2", "port": 22, "own_key": "SHA256:o", "host_key": "SHA256:h",
    "cipher": "aes128-gcm@openssh.com", "connect_ms": 200.0, "rtt_ms": {"p50": 0.4, "p99": 0.9, "echoes": 1},
    "throughput_mb_s": None, "heartbeat": None, "error": None,
}  # fmt: skip
BROKEN = {"cause": "unreachable", "sentence": "xb (192.168.77.2 port 22) cannot be reached: timed out."}


@pytest.fixture
def helper(host: FakeHost) -> list[dict[str, Any]]:
    """colo_helper is installed; what its probe reports, one after the other."""
    (host.root / "opt" / "current" / "site-packages" / "colo_helper").mkdir(parents=True)
    reports: list[dict[str, Any]] = []
    host.answers["colo-helper"] = lambda _words: (0, json.dumps(reports.pop(0)), "")
    return reports


def test_established_is_proved_by_a_connection(
    keep: Any, host: FakeHost, ssh: Path, helper: list[Any]
) -> None:
    helper += [REPORT, REPORT]
    made = keep(state="established", peer={**PEER, "heartbeat_address": "192.168.78.2"})
    assert made["changed"] is True
    assert made["connection"] == {
        "cipher": "aes128-gcm@openssh.com", "host_key": "SHA256:h", "own_key": "SHA256:o", "connect_ms": 200.0,
    }  # fmt: skip
    assert host.calls[-1] == [
        "colo-helper", "probe", "h1", "--json", "--name=xb", "--address=192.168.77.2", "--port=22",
        "--heartbeat-address=192.168.78.2", "--echoes=1", "--size-bytes=0", f"--key-file={ssh / 'h1' / 'id_ed25519'}",
    ]  # fmt: skip
    assert keep(state="established", peer=PEER, check=True)["connection"] is None
    keep(state="established", peer=PEER, rotation="prepare")
    assert host.calls[-1][-1] == f"--key-file={ssh / 'h1' / 'id_ed25519.next'}"


@pytest.mark.parametrize("report", [{"error": BROKEN}, {"heartbeat": {"error": BROKEN}}])
def test_established_fails_with_the_cause(keep: Any, helper: list[Any], report: dict[str, Any]) -> None:
    helper.append(REPORT | report)
    result = keep(state="established", peer=PEER)
    assert (result["failed"], result["cause"]) == (True, "unreachable")
    assert result["msg"] == f"xa has no channel to xb for h1: {BROKEN['sentence']}"


def test_established_needs_the_helper_and_a_peer(keep: Any, ssh: Path) -> None:
    assert keep(state="established", peer=PEER)["msg"] == (
        "colo_helper is not installed on xa: run playbooks/site.yml first."
    )
    assert (
        "state is established but all of the following are missing: peer" in keep(state="established")["msg"]
    )


def test_info_of_all_vms(keep: Any, run: Runner, host: FakeHost, helper: list[Any]) -> None:
    keep("h1")
    keep("h2")
    helper += [REPORT, REPORT | {"vm": "h2", "error": BROKEN}]
    result = run("colo_channel_info", size_bytes=0)
    assert result == {"changed": False, "vms": [REPORT, REPORT | {"vm": "h2", "error": BROKEN}]} | {
        key: result[key] for key in result if key not in ("changed", "vms")
    }
    assert host.calls[-1] == [
        "colo-helper", "probe", "h2", "--json", "--echoes=100", "--size-bytes=0", "--timeout-s=20",
    ]  # fmt: skip
    helper.append(REPORT)
    run("colo_channel_info", names=["h1"], peer={"name": "xa", "address": "192.168.77.1"}, check=True)
    assert host.calls[-1][:7] == [
        "colo-helper", "probe", "h1", "--json", "--name=xa", "--address=192.168.77.1", "--port=22",
    ]  # fmt: skip


@pytest.mark.usefixtures("ssh")
def test_info_where_the_probe_does_not_start(run: Runner, host: FakeHost, helper: list[Any]) -> None:
    host.answers["colo-helper"] = lambda _words: (
        2,
        "",
        "usage: colo-helper\ncolo-helper: error: argument command\n",
    )
    result = run("colo_channel_info", names=["h1"])
    assert result["msg"].endswith("probe h1' failed on xa (exit 2): colo-helper: error: argument command")
    assert run("colo_channel_info", names=["../h1"])["msg"].startswith("'../h1' is no name")
