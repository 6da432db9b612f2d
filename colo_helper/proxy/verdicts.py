"""What the comparator says, and within which limits it works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import NamedTuple

from colo_helper.proxy.packet import Packet

#: How many bytes of each side a sentence shows.
SHOWN_BYTES = 16


@unique
class Cause(Enum):
    """Why a checkpoint is needed."""

    DIVERGENCE = "the two copies said different things"
    SECONDARY_SILENT = "the secondary did not say in time what the primary said"
    PRIMARY_SILENT = "the primary did not say in time what the secondary said"
    UNCOMPARABLE = "the primary said something that cannot be compared"
    MEMORY = "a limit of what may be held is reached"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint is needed; ``sentence`` names the flow and the place."""

    cause: Cause
    sentence: str


class Verdict(NamedTuple):
    """What to do now: let these packets of the primary go, in this order; and make a checkpoint, if one is named."""

    release: Sequence[Packet]
    checkpoint: Checkpoint | None


#: Nothing to do.
NOTHING = Verdict((), None)


class DisagreementError(Exception):
    """The flow cannot go on without a checkpoint."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Limits:
    """What a comparator may hold, and for how long.

    ``packets`` and ``bytes`` are of all that waits: the primary's packets, and what only the secondary has said.
    ``history_bytes`` is for what both said, so that the primary's retransmissions are compared too. ``connections`` are TCP's.
    The primary's packets wait ``secondary_s`` at most; what only the secondary said, ``primary_s`` without any progress.
    """

    packets: int = 4096
    bytes: int = 16 << 20
    history_bytes: int = 8 << 20
    connections: int = 16_384
    secondary_s: float = 0.5
    primary_s: float = 1.0


@dataclass(slots=True)
class Counters:
    """What has been since the comparator was made. ``released`` includes what went after a checkpoint."""

    primary: int = 0
    secondary: int = 0
    released: int = 0
    checkpoints: Counter[Cause] = field(default_factory=Counter)


def differing(where: str, at: int, primary: bytes, secondary: bytes) -> str:
    """Return the sentence about two texts that differ; ``at`` is what the first byte of both is called.

    Of each, the bytes from the first difference on are shown.
    """
    same = 0
    shorter = min(len(primary), len(secondary))
    while same < shorter and primary[same] == secondary[same]:
        same += 1
    ours, theirs = primary[same : same + SHOWN_BYTES].hex(), secondary[same : same + SHOWN_BYTES].hex()
    return (
        f"On {where} the copies differ at offset {at + same}: the primary said {ours or 'no more'}, "
        f"the secondary {theirs or 'no more'}."
    )
