"""How replicators reach each other in production: three SSH connections, which the program colo-channel makes."""

from __future__ import annotations

import secrets

from colo_helper.channel.dialer import ConnectError, Dialer, PeerAddress
from colo_helper.channel.opening import Opening
from colo_helper.channel.session import BACK, FORWARD, Opener, Session, Timing
from colo_helper.channel.stream import ChannelLostError
from colo_helper.monitor.monitor import Monitor
from colo_helper.replication.config import Config
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.inbox import Inbox

#: SSH and the forced command have to be set up on a host that may be slow, in seconds.
CONNECT_TIMEOUT_S = 60.0


def session(
    config: Config, monitor: Monitor, inbox: Inbox, name: str, opener: Opener | None = None
) -> Session:
    """Return a session of this VM that is not connected yet; the primary has an opener."""
    return Session(
        name,
        FORWARD if opener else BACK,
        Timing(config.peer_timeout_ms / 1000, config.heartbeat_misses),
        opener=opener,
        epoch=lambda: monitor.state.epoch,
        event=monitor.event,
        stuck=inbox.watch.stuck,
    )


def connect(config: Config, monitor: Monitor, inbox: Inbox) -> Conversation:
    """Connect to the peer; raises SessionEndedError with the cause as a sentence."""
    peer = PeerAddress(
        config.peer_name,
        config.peer_address,
        config.peer_port,
        heartbeat_address=config.peer_heartbeat_address or None,
    )
    try:
        dialer = Dialer.start(peer, config.vm)
    except ConnectError as error:
        raise SessionEndedError(Cause.PEER_LOST, str(error)) from error
    made = session(
        config, monitor, inbox, secrets.token_hex(8), Opening(config.vm, dialer, CONNECT_TIMEOUT_S)
    )
    try:
        made.open()
    except ChannelLostError as error:
        made.close()
        raise SessionEndedError(Cause.PEER_LOST, str(error)) from error
    return Conversation(made, inbox)
