"""What a comparator was given, kept in memory for a while: packets of both copies and of the network, and the checkpoints.

As a file it is pcapng: for each NIC the interfaces ``nic0 primary``, ``nic0 secondary`` and ``nic0 network``, with frames as
the guests sent and got them, and one interface ``checkpoints`` (LINKTYPE_USER0), whose packets are words of ASCII:
``limits SECONDARY_MS PRIMARY_MS`` at first, how long either side is waited for; then ``cut EPOCH`` when the primary stands
still for a checkpoint, ``run EPOCH`` when the secondary runs from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import BinaryIO, NamedTuple

from colo_helper.proxy.pcapng import Captured, Interface, LinkType, PcapngError, read_pcapng, write_pcapng

#: What Python needs for a packet beside its bytes, about.
_PACKET_BYTES = 200
_LIMITS = b"limits"
_CHECKPOINTS = Interface("checkpoints", LinkType.PRIVATE)


class Whose(Enum):
    """Who has sent a packet."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    NETWORK = "network"


class Mark(Enum):
    """What happens at a checkpoint that a comparator is told of."""

    CUT = "cut"
    RUN = "run"


class Sent(NamedTuple):
    """A frame that was sent at a time in seconds."""

    time_s: float
    whose: Whose
    nic: int
    frame: bytes


class Reached(NamedTuple):
    """A checkpoint that has come so far at a time in seconds."""

    time_s: float
    mark: Mark
    epoch: int


class Patience(NamedTuple):
    """How long a comparator waits for either side, in milliseconds; see verdicts.Limits."""

    secondary_ms: int
    primary_ms: int


@dataclass
class Capture:
    """``most_bytes``: what is kept, with Python's share; then it is ``full``, and nothing more is taken.

    Times are a clock's to which ``ahead_s`` is added for the seconds since 1970.
    """

    nics: int
    most_bytes: int
    patience: Patience
    ahead_s: float = 0.0
    full: bool = False
    packets: int = 0
    _kept_bytes: int = 0
    _kept: list[Sent | Reached] = field(default_factory=list)

    def sent(self, whose: Whose, nic: int, frame: bytes, now_s: float) -> None:
        """Take a frame, without a vnet header."""
        room = _PACKET_BYTES + len(frame)
        self.full = self.full or self._kept_bytes + room > self.most_bytes
        if not self.full:
            self._kept_bytes += room
            self.packets += 1
            self._kept.append(Sent(now_s + self.ahead_s, whose, nic, frame))

    def reached(self, mark: Mark, epoch: int, now_s: float) -> None:
        """Take note of a checkpoint; few come, and always fit."""
        self._kept.append(Reached(now_s + self.ahead_s, mark, epoch))

    def write(self, file: BinaryIO) -> None:
        """Write it as pcapng; raises OSError."""
        frames = [_interface(nic, whose) for nic in range(self.nics) for whose in Whose]
        start_s = self._kept[0].time_s if self._kept else self.ahead_s
        first = Captured(start_s, _CHECKPOINTS, b"%s %d %d" % (_LIMITS, *self.patience))
        write_pcapng(file, [*frames, _CHECKPOINTS], chain([first], map(_captured, self._kept)))


def read_capture(name: str, file: BinaryIO) -> Iterator[Sent | Reached | Patience]:
    """Yield what ``Capture.write`` has written. Raises PcapngError with a sentence that names the file."""
    for time_s, interface, data in read_pcapng(name, file):
        try:
            if interface == _CHECKPOINTS:
                word, *numbers = data.split()
                if word == _LIMITS:
                    yield Patience(*map(int, numbers))
                else:
                    yield Reached(time_s, Mark(word.decode("ascii")), *map(int, numbers))
            else:
                nic, _, whose = interface.name.removeprefix("nic").partition(" ")
                yield Sent(time_s, Whose(whose), int(nic), data)
        except (ValueError, TypeError):
            raise PcapngError(
                f"{name} is no capture of a comparator: 'colo-helper ctl VM capture' writes those. It has "
                f"{data[:16]!r} on the interface '{interface.name}'."
            ) from None


def _interface(nic: int, whose: Whose) -> Interface:
    return Interface(f"nic{nic} {whose.value}", LinkType.ETHERNET)


def _captured(kept: Sent | Reached) -> Captured:
    if isinstance(kept, Sent):
        return Captured(kept.time_s, _interface(kept.nic, kept.whose), kept.frame)
    return Captured(kept.time_s, _CHECKPOINTS, f"{kept.mark.value} {kept.epoch}".encode())
