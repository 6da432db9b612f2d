"""The key by which a host's replicators log in to its peers, and the keys by which its own sshd is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo.base import DesiredState, Failure, host_name
from ansible.module_utils.colo.files import read_text

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


class ChannelKey(DesiredState):
    """An ed25519 key pair without passphrase; the private half never leaves the host."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.path = Path(module.params["path"])
        self.host_keys = Path(module.params["host_key_directory"])

    def read(self) -> dict[str, Any]:
        """The public half; None unless both halves are there."""
        public = read_text(self.path.with_name(self.path.name + ".pub"))
        return {"public_key": strip_comment(public) if public and self.path.is_file() else None}

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """A key: the present one stays, a new one cannot be foretold."""
        return before if before["public_key"] else {"public_key": ""}

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:  # noqa: ARG002
        """Have ssh-keygen make the pair."""
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        for half in (self.path, self.path.with_name(self.path.name + ".pub")):
            half.unlink(missing_ok=True)
        comment = self.module.params["comment"]
        rc, out, err = self.module.run_command(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(self.path)]
        )
        if rc:
            said = " ".join((err or out).split())
            raise Failure(
                f"ssh-keygen on {host_name()} made no key {self.path}: {said}. Install openssh-client there."
            )

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """The public key, and the public host keys of sshd, read from its own files."""
        host_keys = read_host_keys(self.host_keys)
        if not host_keys:
            raise Failure(
                f"sshd on {host_name()} has no host keys in {self.host_keys}: run 'ssh-keygen -A' there, then this again."
            )
        return {"public_key": state["public_key"] or "", "host_keys": host_keys}


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
