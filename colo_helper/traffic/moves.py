"""The connections that a takeover has moved, as they go from one replicator of a guest to the next.

Their clients know numbers of a primary that is gone, and the guest that took over has its own. Whoever serves that guest later
(its replicator started anew, as a primary, or the copy that takes over from it in turn) has to go on moving them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from colo_helper.proxy.rewrite import Move

#: Of each NIC, in the order of the guest's: the connections by the guest's flow (proxy.packet).
Moves = list[dict[bytes, Move]]


def pack_moves(moves: Moves) -> bytes:
    """Return the table as it travels."""
    return json.dumps(plain(moves), separators=(",", ":")).encode()


def unpack_moves(data: bytes) -> Moves:
    """Read what ``pack_moves`` wrote; raises ValueError when it is not well-formed."""
    return from_plain(json.loads(data))


def plain(moves: Moves) -> list[dict[str, Any]]:
    """Return the table as JSON has it: of each NIC an object of [sequence, clock] by the flow in hex."""
    return [{flow.hex(): [move.sequence, move.clock] for flow, move in nic.items()} for nic in moves]


def from_plain(value: object) -> Moves:
    """Read what ``plain`` returned; raises ValueError when it is not well-formed."""
    if not isinstance(value, list) or not all(isinstance(nic, dict) for nic in value):
        raise ValueError("A table of moved connections is not a list of objects.")
    return [{bytes.fromhex(flow): _move(numbers) for flow, numbers in nic.items()} for nic in value]


def _move(numbers: Sequence[object]) -> Move:
    match numbers:
        case [int(sequence), int(clock)] if 0 <= sequence < 1 << 32 and 0 <= clock < 1 << 32:
            return Move(sequence, clock)
    raise ValueError(f"A connection is moved by {numbers!r}, which is not two numbers of 32 bits.")
