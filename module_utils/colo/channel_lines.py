"""The lines of authorized_keys and known_hosts as a pure matter: text in, text out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ansible.module_utils.colo.base import Failure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: What the key of a VM's peer may start, before the VM's name; the same as in colo_helper.channel.attach.
FORCED = "/opt/colo-helper/current/bin/colo-helper attach "
#: Stands behind the VM where its peer may also have xl receive a VM here; the same as there.
RECEIVE = "--receive"
#: Stands for a key that a dry run cannot know.
UNKNOWN_KEY = "ssh-ed25519 (made when this is not a dry run)"

AUTHORIZED_HEADER = (
    "# Each key may do one thing: attach to the replicator of its VM here; with --receive also have xl receive a VM. "
    "Written by colo_channel.\n"
)
KNOWN_HEADER = "# The peers' host keys, read over the controller's connection to each of them. Written by colo_channel.\n"

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_LINE = re.compile(
    rf'restrict,command="{re.escape(FORCED)}(?P<vm>{_NAME})(?P<receive> {RECEIVE})?" (?P<key>ssh-ed25519 [A-Za-z0-9+/]+=*) '
    rf"colo-channel (?P=vm) (?P<peer>{_NAME})"
)
_PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]+=*")
_HOST_KEY = re.compile(r"(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/]+=*")
_ADDRESS = re.compile(r"[A-Za-z0-9_.:%-]+|\[[A-Za-z0-9_.:%-]+\]:[0-9]+")


class Authorized(NamedTuple):
    """Who may attach to which VM here."""

    vm: str
    peer: str
    public_key: str
    receive: bool = False

    def line(self) -> str:
        """The line of authorized_keys. A key cannot do more than the line's options say, so nothing is taken unchecked."""
        if not re.fullmatch(_NAME, self.peer):
            raise Failure(f"{self.peer!r} is no name for a host: letters, digits, '_', '.' and '-'.")
        key = self.public_key or UNKNOWN_KEY
        if key != UNKNOWN_KEY and not _PUBLIC_KEY.fullmatch(key):
            raise Failure(f"The key of {self.peer} for {self.vm} is no ed25519 public key: {key!r:.80}.")
        what = f"{self.vm} {RECEIVE}" if self.receive else self.vm
        return f'restrict,command="{FORCED}{what}" {key} colo-channel {self.vm} {self.peer}'


def authorized(text: str) -> list[Authorized]:
    """The lines that are exactly as written here."""
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return [
        Authorized(match["vm"], match["peer"], match["key"], bool(match["receive"]))
        for match in found
        if match
    ]


def authorize(text: str, vm: str, entries: Iterable[Authorized]) -> str:
    """``text`` with exactly ``entries`` for ``vm``, and the lines of other VMs as they are.

    A line that is none of ours goes: the file says whom this host lets in as the user colo, and nobody may be let in for
    anything else.
    """
    others = [entry for entry in authorized(text) if entry.vm != vm]
    lines = [entry.line() for entry in sorted([*others, *entries], key=lambda entry: entry.vm)]
    return AUTHORIZED_HEADER + "".join(f"{line}\n" for line in dict.fromkeys(lines))


def pin(text: str, peer: str, name: str, host_keys: Iterable[str]) -> str:
    """``text`` with exactly ``host_keys`` for the host ``peer``, known as ``name`` (``address`` or ``[address]:port``)."""
    if not _ADDRESS.fullmatch(name):
        raise Failure(f"{name!r} is no address of {peer} that known_hosts can hold.")
    if not re.fullmatch(_NAME, peer):
        raise Failure(f"{peer!r} is no name for a host: letters, digits, '_', '.' and '-'.")
    lines = []
    for key in host_keys:
        if not _HOST_KEY.fullmatch(key):
            raise Failure(f"The host key of {peer} is no public key: {key!r:.80}.")
        lines.append(f"{name} {key} {peer}")
    others = [line for line in _pins(text) if line.split()[0] != name and line.split()[3:] != [peer]]
    return KNOWN_HEADER + "".join(
        f"{line}\n" for line in sorted([*others, *lines], key=lambda line: line.split()[3:])
    )


def unpin(text: str, peers: Collection[str]) -> str:
    """``text`` without the keys of the hosts ``peers``."""
    if not peers:
        return text
    others = [line for line in _pins(text) if not (len(words := line.split()) > 3 and words[3] in peers)]
    return KNOWN_HEADER + "".join(f"{line}\n" for line in others)


def _pins(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
