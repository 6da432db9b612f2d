"""The witness on the clients' bridge: who was heard, when, and whether what was said ever was undone. Pure.

Every answer of a guest has a number of its own, and the guest notes it in its memory before it says it. ``said`` is told the
number and the one that stood in the memory before. So each answer has one before it, and what a client has heard is kept if
and only if it is among those that stand before everything that is heard later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

#: Of how many answers it is known what stood before them.
_KEPT = 20_000


class Heard(NamedTuple):
    """One answer on the bridge; ``at_s`` is by the clock of the leases."""

    at_s: float
    host: str
    token: int


@dataclass
class Witness:
    """``broken`` has one sentence for each thing that must not be; whoever reads it empties it."""

    last: Heard | None = None
    broken: list[str] = field(default_factory=list)
    #: The longest time between two answers, by the clock of the leases, since ``begin``.
    silence_s: float = 0.0
    heard: int = 0
    _before: dict[int, int] = field(default_factory=dict)
    #: Who has spoken in an epoch of the record, and is not the one that spoke last.
    _silent: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Forget the figures, not what was heard."""
        self.silence_s = 0.0
        self.heard = 0

    def forget(self) -> None:
        """Another VM comes."""
        self.__init__()  # type: ignore[misc]

    def said(self, token: int, before: int) -> None:
        """A guest has noted ``token`` in the place of ``before``."""
        self._before[token] = before

    def may_speak(self, host: str) -> None:
        """The copy on a host has been made anew since it was another one's turn: it may become the VM again."""
        self._silent.discard(host)

    def hear(self, heard: Heard) -> None:
        """An answer is on the bridge."""
        last = self.last
        self.heard += 1
        if heard.host in self._silent:
            self.broken.append(
                f"Both copies speak: {heard.host} says {heard.token} after another one had become the VM."
            )
        if last is None:
            self.last = heard
            return
        self.silence_s = max(self.silence_s, heard.at_s - last.at_s)
        if heard.token < last.token and self._follows(last.token, heard.token):
            return  # it was on its way when a later one overtook it
        self.last = heard
        if last.host != heard.host:
            self._silent.add(last.host)
        if not self._follows(heard.token, last.token):
            self.broken.append(
                f"What a client had heard is undone: {heard.host} says {heard.token} and knows nothing of {last.token} "
                f"({last.host})."
            )
        if len(self._before) > 2 * _KEPT:
            self._before = {token: self._before[token] for token in sorted(self._before)[-_KEPT:]}

    def _follows(self, token: int, earlier: int) -> bool:
        while token > earlier:
            token = self._before.get(token, 0)
        return token == earlier
