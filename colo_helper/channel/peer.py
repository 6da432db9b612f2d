"""Where a peer is reached and how both sides prove who they are. Imports no SSH: the replicator starts quickly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Keys and pinned host keys of this host; see "On a host" in docs/architecture/README.md.
SSH_DIRECTORY = Path("/etc/colo/ssh")
KNOWN_HOSTS = SSH_DIRECTORY / "known_hosts"
#: The account at the peer that can do nothing but attach.
USER = "colo"
#: The channel that may take the second network.
HEARTBEAT = "heartbeat"
_SSH_PORT = 22


def key_file(vm: str) -> Path:
    """Return where the private key for the channels of ``vm`` lies on this host."""
    return SSH_DIRECTORY / vm / "id_ed25519"


class ConnectError(Exception):
    """The channel to the peer could not be made. ``cause`` is one word for programs, the text one sentence."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class End:
    """Why a connection ended: one word for programs, one sentence."""

    cause: str
    sentence: str


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where the peer's sshd listens, and how to prove who we and it are.

    ``key_file`` None stands for that of the VM. ``heartbeat_address`` is the peer on a second network; it is the same
    host and has the same host key, so only ``address`` stands in ``known_hosts``.
    """

    name: str
    address: str
    port: int
    key_file: Path | None = None
    known_hosts: Path = KNOWN_HOSTS
    heartbeat_address: str | None = None
    user: str = USER

    @property
    def host_key_name(self) -> str:
        """The name of the peer's entry in known_hosts, as OpenSSH writes it."""
        return self.address if self.port == _SSH_PORT else f"[{self.address}]:{self.port}"

    def address_of(self, channel: str) -> str:
        """Return the address to reach a channel at."""
        return self.heartbeat_address if channel == HEARTBEAT and self.heartbeat_address else self.address
