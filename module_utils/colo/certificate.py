"""A host's key and certificate as a state: the key is made where it is used, and nothing but its public half leaves."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import host, snapshot
from ansible.module_utils.colo.base import DesiredState, Failure, host_name
from ansible.module_utils.colo.files import read_json
from ansible.module_utils.colo.filetree import diff_entries, read_entry, write_entry

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

AUTHORITY = "ca.pem"
CERTIFICATE = "certificate.pem"
KEY = "key.pem"
OWNER = "root"
#: Stands in a diff for a certificate that is not signed yet.
FORETOLD = "(signed when this is no dry run)\n"


class HostCertificate(DesiredState):
    """Entries by path; of the key only that it is there, its mode and its owner."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.params: dict[str, Any] = module.params
        self.directory = Path(module.params["directory"])
        self.authority, self.certificate, self.key = (
            self.directory / name for name in (AUTHORITY, CERTIFICATE, KEY)
        )

    def read(self) -> dict[str, Any]:
        """What stands at the four paths."""
        plain = {str(path): read_entry(path) for path in (self.directory, self.authority, self.certificate)}
        return plain | {str(self.key): read_key(self.key)}

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """By state."""
        if self.params["state"] == "absent":
            return self._absent(before)
        group = self.params["group"]
        shared = group != OWNER
        mode = "0640" if shared else "0600"
        return {
            str(self.directory): _entry("directory", "0750" if shared else "0700", group),
            str(self.authority): self._file(before, self.authority, "authority", mode),
            str(self.certificate): self._file(before, self.certificate, "certificate", mode),
            str(self.key): _entry("key", mode, group),
        }

    def _file(self, before: dict[str, Any], path: Path, name: str, mode: str) -> dict[str, Any] | None:
        """The text that was given; without one only mode and owner of the file that is there."""
        given: str | None = self.params[name]
        if given is None:
            present = before[str(path)]
            return present and {**present, "mode": mode, "owner": OWNER, "group": self.params["group"]}
        if not given and not self.module.check_mode:
            raise Failure(f"The {name} for {path} on {host_name()} is empty: sign it with colo_authority.")
        return {**_entry("file", mode, self.params["group"]), "content": given or FORETOLD}

    def _absent(self, before: dict[str, Any]) -> dict[str, Any]:
        users = sorted(
            path.stem
            for path in snapshot.CONFIGURATIONS.glob("*.json")
            if ((read_json(path) or {}).get("arbiter") or {}).get("key") == str(self.key)
        )
        if users:
            raise Failure(
                f"{', '.join(users)} on {host_name()} asks its arbiter with {self.key}: run playbooks/unprotect.yml "
                f"-e colo_vm={users[0]} first."
            )
        ours = {path.name for path in (self.authority, self.certificate, self.key)}
        there = {path.name for path in self.directory.iterdir()} if self.directory.is_dir() else set()
        return {
            path: before[path] if path == str(self.directory) and there - ours else None for path in before
        }

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:
        """The key first, so that nobody finds a certificate without it; the directory goes last."""
        paths = [str(path) for path in (self.directory, self.key, self.authority, self.certificate)]
        for path in paths if self.params["state"] == "present" else reversed(paths):
            if before[path] == desired[path]:
                continue
            if path == str(self.key) and desired[path]:
                self._have_key(before[path] is None, desired[path])
            else:
                write_entry(Path(path), desired[path])

    def _have_key(self, missing: bool, entry: dict[str, Any]) -> None:
        """Make a key in a directory of its own, so that it is there whole or not at all; then its mode and owner."""
        if missing:
            for stale in self.directory.glob(".new-*"):
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=".new-") as name:
                new = Path(name) / KEY
                self._openssl(
                    "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(new)
                )
                shutil.chown(new, OWNER, entry["group"])
                new.chmod(int(entry["mode"], 8))
                new.rename(self.key)
        shutil.chown(self.key, OWNER, entry["group"])
        self.key.chmod(int(entry["mode"], 8))

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """What the controller signs, and what is there. Never the key."""
        request = ""
        if self.params["state"] == "present" and self.key.is_file():
            request = self._openssl("req", "-new", "-batch", "-key", str(self.key), "-subj", "/CN=colo")
        found = [(state[str(path)] or {}).get("content") or "" for path in (self.certificate, self.authority)]
        certificate, authority = ("" if text == FORETOLD else text for text in found)
        return {"request": request, "certificate": certificate, "authority": authority}

    def diff(self, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
        """One diff a path."""
        return diff_entries(before, after)

    def _openssl(self, *arguments: str) -> str:
        rc, out, err = host.run_tool(self.module, ["openssl", *arguments])
        if rc == 127:
            raise Failure(f"There is no openssl on {host_name()}, which makes its key: apt install openssl.")
        if rc:
            said = " ".join((err or out).split())
            raise Failure(
                f"openssl {arguments[0]} on {host_name()} fails: {said}. If {self.key} is no private key, remove it, and a "
                "new one is made."
            )
        return out


def read_key(path: Path) -> dict[str, Any] | None:
    """Mode and owner of a private key, never its content; None when there is none."""
    entry = read_entry(path, content=False)
    if entry is None:
        return None
    if entry["kind"] != "file":
        raise Failure(f"{path} on {host_name()} is a {entry['kind']}, not a key: move it away and run again.")
    return {**entry, "kind": "key"}


def _entry(kind: str, mode: str, group: str) -> dict[str, Any]:
    return {"kind": kind, "mode": mode, "owner": OWNER, "group": group, "content": None}
