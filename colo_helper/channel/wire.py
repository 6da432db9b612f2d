"""Frames on the channels.

A frame is a prelude, the lengths of its parts, a JSON object and the parts (all numbers little endian):

| bytes | what |
|---|---|
| 4 | ``COLO`` |
| 1 | version of the framing, 2 |
| 1 | kind, see ``Kind`` |
| 2 | number of parts, at most MAX_PARTS |
| 4 | bytes of the JSON object, at most MAX_HEAD_BYTES |
| 8 | number of the frame on its lane, from 1; 0 for those that are not repeated (``UNNUMBERED``) |
| 4 each | bytes of each part; at most MAX_PAYLOAD_BYTES together |

Every length is checked before memory is taken for it. SSH protects the bytes, so the frame has no checksum.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import Any

MAGIC = b"COLO"
VERSION = 2
PRELUDE_BYTES = 20
MAX_PARTS = 8
MAX_HEAD_BYTES = 64 << 10
#: A bitmap of 1 TiB of guest memory has 32 MiB.
MAX_PAYLOAD_BYTES = 64 << 20

_PRELUDE = struct.Struct("<4sBBHIQ")


class WireError(Exception):
    """What came is not a frame of ours; the text says why."""


@unique
class Kind(IntEnum):
    """What a frame is. F: primary to secondary (forward), B: secondary to primary (back)."""

    BEAT = 1  # both, on every lane: still here; see channel.session
    OPEN = 2  # primary, first on every connection: {session, channel, vm, received}
    HELLO = 3  # F: what the primary has; B: what the secondary has
    REFUSE = 4  # both: {code, error}; the sender gives up
    CHUNK = 5  # F: {packed, bytes}; a piece of the first copy: the stream that xl restore reads
    COPY_END = 6  # F: {bytes}; the first copy is complete
    COPIED = 7  # B: {domid, frames, pages}; the copy stands, paused
    ARM = 8  # F: {epoch, packets} + moved connections; log dirty frames, take hold of the packets, a checkpoint comes
    ARMED = 9  # B: done
    RUN = 10  # F: {epoch}; let the guest run that COMMIT wanted held
    SUSPEND = 11  # F: {epoch}; stop the guest
    BACK = 12  # B: bytes of the restoring helper's back channel: B
    STREAM = 13  # F: {packed, bytes}; bytes of the saving helper's stream: pages, CPU state
    COMMIT = 14  # F: {epoch, hold, counts} + device state (+ moved connections); all of the checkpoint has been sent
    APPLIED = 15  # B: {epoch, frames}; the secondary was made an exact copy, and runs unless it is held
    HASH = 16  # F: {start, count}; hash a window
    HASHES = 17  # B: {start, count, width, total} + frame numbers + hashes
    END = 18  # F: {reason}; protection ends in order
    ENDED = 19  # B: the copy is destroyed
    STOP = 20  # B: {reason}; the secondary asks for an orderly end
    ABORT = 21  # F: {reason, guest}; the primary gives up, its guest runs on, or has ended (keep the copy)
    OPENED = 22  # secondary, first on every connection: {received}
    ACK = 23  # both, against the way of the lane's frames: {received}
    BYE = 24  # both, on every lane: {reason}; nothing more will come, and no new connection is wanted
    RECEIVED = 25  # B: {epoch}; all of the checkpoint is here and will be applied, come what may
    COPY = 26  # F: {generation}; a first copy follows
    RESYNC = 27  # F: let the copy stand still and be compared
    HANDOVER = 28  # F: {epoch}; the guest here stands still for good: the copy is the VM from now on
    TAKEN = 29  # B: {epoch, runs}; it is, and runs, or will as soon as that can be
    STATE = 30  # F: read the state of the vCPUs and of the devices anew
    STATES = 31  # B: the HVM context + the device state, as they are now
    RENEW = 32  # F: {reason}; the guest has ended: the copy goes; another comes when the guest runs again
    PACKETS = 33  # both: {epoch, nic} + packets; F: what the guest was sent, B: what the copy has said


#: What is said about a connection itself, and not repeated on the next one.
UNNUMBERED = frozenset({Kind.BEAT, Kind.OPEN, Kind.OPENED, Kind.ACK, Kind.BYE})


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: its kind, a JSON object and binary parts."""

    kind: Kind
    head: dict[str, Any] = field(default_factory=dict)
    parts: tuple[bytes, ...] = ()
    number: int = 0


@dataclass(frozen=True, slots=True)
class Prelude:
    """The fixed start of a frame."""

    kind: Kind
    parts: int
    head_bytes: int
    number: int


def encode(
    kind: Kind, head: dict[str, Any] | None = None, parts: Sequence[bytes] = (), number: int = 0
) -> list[bytes]:
    """Return a frame as buffers to be written one after the other; raises WireError when it breaks a limit."""
    text = json.dumps(head or {}, separators=(",", ":")).encode()
    check_limits(len(parts), len(text), [len(part) for part in parts])
    lengths = struct.pack(f"<{len(parts)}I", *(len(part) for part in parts))
    return [_PRELUDE.pack(MAGIC, VERSION, kind, len(parts), len(text), number) + lengths + text, *parts]


def parse_prelude(data: bytes) -> Prelude:
    """Read the first PRELUDE_BYTES of a frame; raises WireError."""
    magic, version, kind, parts, head_bytes, number = _PRELUDE.unpack(data)
    if magic != MAGIC:
        raise WireError(f"The peer sent {magic!r} where a frame should start.")
    if version != VERSION:
        raise WireError(f"The peer speaks version {version} of the framing, we speak {VERSION}.")
    check_limits(parts, head_bytes, [])
    try:
        prelude = Prelude(Kind(kind), parts, head_bytes, number)
    except ValueError:
        raise WireError(f"The peer sent a frame of the unknown kind {kind}.") from None
    if (number == 0) != (prelude.kind in UNNUMBERED):
        raise WireError(f"The peer sent {prelude.kind.name} with the number {number}.")
    return prelude


def parse_lengths(data: bytes, prelude: Prelude) -> list[int]:
    """Read the parts' lengths; raises WireError when they are more than a frame may have."""
    lengths = list(struct.unpack(f"<{prelude.parts}I", data))
    check_limits(prelude.parts, prelude.head_bytes, lengths)
    return lengths


def parse_head(data: bytes) -> dict[str, Any]:
    """Read the JSON object of a frame; raises WireError."""
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"The head of a frame is not JSON: {error}.") from error
    if not isinstance(head, dict):
        raise WireError(f"The head of a frame is not an object but {type(head).__name__}.")
    return head


def check_limits(parts: int, head_bytes: int, lengths: Sequence[int]) -> None:
    """Raise WireError when a frame of this shape is larger than allowed."""
    if parts > MAX_PARTS:
        raise WireError(f"A frame with {parts} parts is more than the {MAX_PARTS} allowed.")
    if head_bytes > MAX_HEAD_BYTES:
        raise WireError(
            f"A frame with a head of {head_bytes} bytes is more than the {MAX_HEAD_BYTES} allowed."
        )
    if sum(lengths) > MAX_PAYLOAD_BYTES:
        raise WireError(f"A frame with {sum(lengths)} bytes is more than the {MAX_PAYLOAD_BYTES} allowed.")
