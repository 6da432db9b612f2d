"""How the primary reaches the secondary in production: two SSH connections."""

from __future__ import annotations

from colo_helper.channel.ssh import ConnectError, PeerAddress, connect_pair
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions import Cause, SessionEndedError
from colo_helper.replication.inbox import Inbox

#: SSH has to be set up on a host that may be slow, in seconds; afterwards the peer's own timeout counts.
CONNECT_TIMEOUT_S = 60.0


def connect(config: Config, inbox: Inbox) -> Conversation:
    """Connect to the peer by SSH; raises SessionEndedError with the cause as a sentence."""
    peer = PeerAddress(config.peer_name, config.peer_address, config.peer_port)
    try:
        forward, back = connect_pair(peer, config.vm, CONNECT_TIMEOUT_S)
    except ConnectError as error:
        raise SessionEndedError(Cause.PEER_LOST, str(error)) from error
    return Conversation(forward, back, config.peer_timeout_ms / 1000, inbox)
