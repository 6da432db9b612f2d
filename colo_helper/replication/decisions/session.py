"""What both sides agree on: the protocol, which releases go together, and how a session ends."""

from __future__ import annotations

from enum import Enum, unique

PROTOCOL = 6


#: (primary's release, secondary's release) that were seen to work beside equal releases. A guest goes to a newer Xen,
#: never back: that way was not tried.
UPGRADE_PAIRS = frozenset({("4.17", "4.20")})


@unique
class Cause(Enum):
    """Why a session ended."""

    PEER_LOST = "the channel is gone or the peer is silent"
    PEER_REFUSED = "the peer said that it will not go on"
    PEER_FAILED = "something failed on the peer, and its copy is gone"
    GUEST_ENDED = "the guest has rebooted or was shut down, in order"
    GUEST_DIED = "the guest has crashed, or its domain is gone without a word"
    NO_DEVICES = "the guest's device model has ended, so that it can do and say nothing any more"
    RENEW = "the primary's guest has ended, and another copy will come"
    LOCAL_ERROR = "something failed on this host"
    STOP = "somebody asked this side to stop"
    END = "the primary ended the protection in order"
    ABORT = "the primary gave up and its guest runs on"
    SUCCEEDED = "the VM is another host's: the arbiter says so, or, without one, that host"
    GIVEN_UP = "the guest here is gone, and its copy is the VM from now on"
    LEFT = "the service manager ends this program before the arbiter has answered"
    SWITCHED = "the roles have been swapped"


class SessionEndedError(Exception):
    """The session is over; ``cause`` and the sentence say why."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


def pair_refusal(primary: str, secondary: str) -> str:
    """Return why a guest of one Xen release cannot be copied to another, or an empty string."""
    if primary == secondary or (primary, secondary) in UPGRADE_PAIRS:
        return ""
    return (
        f"A primary on Xen {primary} cannot have a secondary on Xen {secondary}; only equal releases and 4.17 to 4.20. Upgrade "
        "the host with the older one, then run playbooks/protect.yml."
    )
