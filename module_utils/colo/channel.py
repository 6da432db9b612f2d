"""The keys by which the two hosts of a VM reach each other for that VM, and the host keys by which they know each other."""

from __future__ import annotations

import base64
import binascii
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import gate, snapshot
from ansible.module_utils.colo.base import DesiredState, Failure, host_name
from ansible.module_utils.colo.channel_lines import Authorized, authorize, authorized, pin, unpin
from ansible.module_utils.colo.files import exclusive
from ansible.module_utils.colo.filetree import diff_entries, read_entry, write_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible.module_utils.basic import AnsibleModule

DIRECTORY = Path("/etc/colo/ssh")
OWNER = "root"
#: sshd reads authorized_keys as the user who logs in.
GROUP = "colo"
KEY = "id_ed25519"
NEXT_KEY = "id_ed25519.next"
AUTHORIZED_KEYS = "authorized_keys"
KNOWN_HOSTS = "known_hosts"
_MAGIC = b"openssh-key-v1\0"


class VmChannel(DesiredState):
    """What this host has for one VM: a key of its own, the lines that let the peer in, the peer's pinned host keys."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.params: dict[str, Any] = module.params
        self.vm: str = module.params["vm"]
        self.state: str = module.params["state"]
        self.peer: dict[str, Any] = module.params["peer"] or {}
        self.directory = DIRECTORY / self.vm
        self.authorized_keys = DIRECTORY / AUTHORIZED_KEYS
        self.known_hosts = DIRECTORY / KNOWN_HOSTS
        self._connection: dict[str, Any] | None = None

    # what is

    def read(self) -> dict[str, Any]:
        """Entries by path; of a private key only mode, owner and the public half."""
        snapshot.check_name(self.vm)
        if self.vm in (KEY, AUTHORIZED_KEYS, KNOWN_HOSTS):
            raise Failure(
                f"A VM named {self.vm} cannot have channels, because {DIRECTORY} has a file of that name."
            )
        plain = (DIRECTORY, self.directory, self.known_hosts, self.authorized_keys)
        entries = {str(path): read_entry(path) for path in plain}
        return entries | {str(path): read_key(path) for path in self._key_paths()}

    def _key_paths(self) -> tuple[Path, Path]:
        return self.directory / KEY, self.directory / NEXT_KEY

    # what shall be

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """By state."""
        if self.state == "established" and not self.module.check_mode:
            gate.require_helper()  # before anything is made
        return self._absent(before) if self.state == "absent" else self._present(before)

    def _absent(self, before: dict[str, Any]) -> dict[str, Any]:
        config = snapshot.config_path(self.vm)
        if config.exists():
            raise Failure(
                f"{self.vm} is protected on {host_name()} ({config}), and its replicators need the channels: run "
                f"playbooks/unprotect.yml -e colo_vm={self.vm} first."
            )
        text = _content(before[str(self.authorized_keys)])
        without = authorize(text, self.vm, [])
        stay = {line.peer for line in authorized(without)}
        gone = {line.peer for line in authorized(text)} - stay
        known = unpin(_content(before[str(self.known_hosts)]), gone)
        return {
            str(DIRECTORY): before[str(DIRECTORY)],
            str(self.directory): None,
            str(self.known_hosts): _replaced(before[str(self.known_hosts)], known),
            str(self.authorized_keys): _replaced(before[str(self.authorized_keys)], without),
            **{str(path): None for path in self._key_paths()},
        }

    def _present(self, before: dict[str, Any]) -> dict[str, Any]:
        key, next_key = self._wanted_keys(*(before[str(path)] for path in self._key_paths()))
        known, keys = before[str(self.known_hosts)], before[str(self.authorized_keys)]
        if self.peer.get("host_keys"):
            known = _file("0644", OWNER, self._pinned(_content(known)))
        if self.peer.get("public_keys") is not None:
            keys = _file("0640", GROUP, self._authorizing(_content(keys)))
        return {
            str(DIRECTORY): _directory("0750", GROUP),
            str(self.directory): _directory("0700", OWNER),
            str(self.known_hosts): known,
            str(self.authorized_keys): keys,
            **dict(zip(map(str, self._key_paths()), (key, next_key), strict=True)),
        }

    def _wanted_keys(
        self, key: dict[str, Any] | None, next_key: dict[str, Any] | None
    ) -> tuple[dict[str, Any] | None, ...]:
        """The two keys that shall be there; a new one cannot be foretold, its public half is empty."""
        if self.params["rotation"] == "switch" and next_key:
            return _private(next_key["public_key"]), None
        wanted = _private(key["public_key"] if key else "")
        if next_key or self.params["rotation"] == "prepare":
            return wanted, _private(next_key["public_key"] if next_key else "")
        return wanted, None

    def _pinned(self, text: str) -> str:
        port: int = self.peer["port"]
        address = self.peer["address"]
        if not address:
            raise Failure(
                f"The host keys of {self.peer['name']} cannot be pinned without its address: give peer.address."
            )
        return pin(
            text, self.peer["name"], address if port == 22 else f"[{address}]:{port}", self.peer["host_keys"]
        )

    def _authorizing(self, text: str) -> str:
        keys = [key for key in self.peer["public_keys"] if key or self.module.check_mode]
        if not keys:
            raise Failure(
                f"No key of {self.peer['name']} for {self.vm} is given, so {host_name()} cannot let it in: run "
                "playbooks/site.yml, which makes one there."
            )
        receive = self.peer.get("receive")
        if receive is None:
            receive = any(line.receive for line in authorized(text) if line.vm == self.vm)
        name = self.peer["name"]
        return authorize(
            text, self.vm, [Authorized(self.vm, name, strip_comment(key), receive) for key in keys]
        )

    # from one to the other

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:  # noqa: ARG002
        """Write what differs, while no other run of this module does: both files are shared by all VMs."""
        with exclusive(DIRECTORY / ".lock"):
            now = self.read()
            wanted = self.desired(now)
            if self.state == "absent":
                # Whom it lets in first; the key last, so that an interrupted run is finished by the next.
                for path in (self.authorized_keys, self.known_hosts):
                    self._write(path, now, wanted)
                if self.directory.exists():
                    shutil.rmtree(self.directory)
                return
            for path in (DIRECTORY, self.directory):
                self._write(path, now, wanted)
            if self.params["rotation"] == "switch" and now[str(self.directory / NEXT_KEY)]:
                (self.directory / NEXT_KEY).rename(self.directory / KEY)
            for path in self._key_paths():
                if wanted[str(path)]:
                    self._have_key(path)
            for path in (self.known_hosts, self.authorized_keys):
                self._write(path, now, wanted)

    def _write(self, path: Path, now: dict[str, Any], wanted: dict[str, Any]) -> None:
        if now[str(path)] != wanted[str(path)]:
            write_entry(path, wanted[str(path)])

    def _have_key(self, path: Path) -> None:
        """Give a key its mode and owner, or make one: in a directory of its own, so that it is there whole or not at all."""
        if read_key(path) is None:
            for stale in path.parent.glob(".new-*"):
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as name:
                new = Path(name) / KEY
                self._keygen(new, f"colo-channel {self.vm} {host_name()}")
                new.rename(path)
        path.chmod(0o600)
        shutil.chown(path, OWNER, OWNER)

    def _keygen(self, path: Path, comment: str) -> None:
        rc, out, err = self.module.run_command(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
        )
        if rc:
            said = " ".join((err or out).split())
            raise Failure(
                f"ssh-keygen on {host_name()} made no key for {self.vm}: {said}. Install openssh-client there."
            )

    def finish(self) -> None:
        """Prove the way to the peer; with the next key while a rotation prepares one."""
        if self.state != "established":
            return
        key = self.directory / (NEXT_KEY if self.params["rotation"] == "prepare" else KEY)
        report = probe(self.module, self.vm, self.peer, ["--echoes=1", "--size-bytes=0", f"--key-file={key}"])
        for path in (report, report["heartbeat"]):
            if path and path["error"]:
                raise Failure(
                    f"{host_name()} has no channel to {self.peer['name']} for {self.vm}: {path['error']['sentence']}",
                    cause=path["error"]["cause"],
                )
        self._connection = {name: report[name] for name in ("cipher", "host_key", "own_key", "connect_ms")}

    # what is told

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """Public halves only."""
        host_keys = read_host_keys(Path(self.params["host_key_directory"]))
        if not host_keys:
            raise Failure(
                f"sshd on {host_name()} has no host keys in {self.params['host_key_directory']}: run 'ssh-keygen -A' "
                "there, then this again."
            )
        key, next_key = (state[str(path)] for path in self._key_paths())
        lines = authorized(_content(state[str(self.authorized_keys)]))
        return {
            "vm": self.vm,
            "public_key": key["public_key"] if key else "",
            "next_public_key": next_key["public_key"] if next_key else "",
            "host_keys": host_keys,
            "authorized": [
                {"peer": line.peer, "public_key": line.public_key, "receive": line.receive}
                for line in lines
                if line.vm == self.vm
            ],
            "connection": self._connection,
        }

    def diff(self, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
        """One diff a path."""
        return diff_entries(before, after)


def probe(module: AnsibleModule, vm: str, peer: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """What ``colo-helper probe`` of this host tells about the way to the peer; ``error`` is None when it works.

    ``peer`` may be empty: then the address is what the VM's replicator uses.
    """
    program = gate.PREFIX / "current" / "bin" / "colo-helper"
    where = []
    if peer.get("address"):
        where = [f"--name={peer['name']}", f"--address={peer['address']}", f"--port={peer['port']}"]
        if peer.get("heartbeat_address"):
            where.append(f"--heartbeat-address={peer['heartbeat_address']}")
    rc, out, err = module.run_command([str(program), "probe", vm, "--json", *where, *options])
    try:
        report: dict[str, Any] = module.from_json(out)
    except ValueError:
        said = (err or out).strip().splitlines()[-1:] or ["nothing"]
        raise Failure(f"'{program} probe {vm}' failed on {host_name()} (exit {rc}): {said[0]}") from None
    return report


def measure(module: AnsibleModule) -> dict[str, Any]:
    """What colo_channel_info does and returns."""
    params = module.params
    names = params["names"] or known_vms()
    for vm in names:
        snapshot.check_name(vm)
    gate.require_helper()
    options = [
        f"--echoes={params['echoes']}",
        f"--size-bytes={params['size_bytes']}",
        f"--timeout-s={params['timeout_s']}",
    ]
    return {"changed": False, "vms": [probe(module, vm, params["peer"] or {}, options) for vm in names]}


def known_vms() -> list[str]:
    """The VMs that this host has a key for."""
    return sorted(
        path.parent.name for path in DIRECTORY.glob(f"*/{KEY}") if snapshot.NAME.fullmatch(path.parent.name)
    )


def strip_comment(line: str) -> str:
    """Type and base64 text of a public key line."""
    return " ".join(line.split()[:2])


def read_host_keys(directory: Path) -> list[str]:
    """The public host keys, without comments, in a fixed order. DSA and RSA are left out when there is better."""
    keys = [
        strip_comment(path.read_text(encoding="utf-8"))
        for path in sorted(directory.glob("ssh_host_*_key.pub"))
    ]
    modern = [key for key in keys if key.startswith(("ssh-ed25519 ", "ecdsa-"))]
    return modern or keys


def read_key(path: Path) -> dict[str, Any] | None:
    """Mode, owner and public half of a private key; None when there is none, or what is there is no key."""
    try:
        entry = read_entry(path)
    except UnicodeDecodeError:
        return None
    public = public_half(entry["content"]) if entry and entry["kind"] == "file" else None
    if entry is None or public is None:
        return None
    return _private(public) | {key: entry[key] for key in ("mode", "owner", "group")}


def public_half(text: str) -> str | None:
    """The public key that a private one in OpenSSH's format carries beside it; None when it is not in that format.

    OpenSSH, PROTOCOL.key: magic, then as strings cipher, KDF and its options, a count, and the public key. So there is
    no second file that could be another key's.
    """
    lines = text.strip().splitlines()
    if len(lines) < 3 or "BEGIN OPENSSH PRIVATE KEY" not in lines[0]:
        return None
    try:
        data = base64.b64decode("".join(lines[1:-1]), validate=True)
        if not data.startswith(_MAGIC):
            return None
        *_, public = _strings(data[len(_MAGIC) :])
        kind = next(_strings(public, 1)).decode("ascii")
    except (binascii.Error, struct.error, ValueError):
        return None
    return f"{kind} {base64.b64encode(public).decode()}"


def _strings(data: bytes, count: int = 4) -> Iterator[bytes]:
    """The first strings of a private key's data: three, the number of keys (skipped), and the public one."""
    offset = 0
    for index in range(count):
        if index == 3:
            offset += 4
        (length,) = struct.unpack_from(">I", data, offset)
        offset += 4
        if offset + length > len(data):
            raise ValueError("a string goes beyond the end")
        yield data[offset : offset + length]
        offset += length


def _private(public_key: str) -> dict[str, Any]:
    return {
        "kind": "key",
        "mode": "0600",
        "owner": OWNER,
        "group": OWNER,
        "content": None,
        "public_key": public_key,
    }


def _directory(mode: str, group: str) -> dict[str, Any]:
    return {"kind": "directory", "mode": mode, "owner": OWNER, "group": group, "content": None}


def _file(mode: str, group: str, content: str) -> dict[str, Any]:
    return {"kind": "file", "mode": mode, "owner": OWNER, "group": group, "content": content}


def _content(entry: dict[str, Any] | None) -> str:
    return (entry or {}).get("content") or ""


def _replaced(entry: dict[str, Any] | None, content: str) -> dict[str, Any] | None:
    return {**entry, "content": content} if entry else None
