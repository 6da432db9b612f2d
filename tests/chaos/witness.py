"""The witness on the clients' bridge: who was heard, when, and whether what was said ever was undone. Pure.

Every answer of a guest has a number of its own, and the guest notes it in its memory before it says it. ``said`` is told the
number and the one that stood in the memory before. So each answer has one before it, and what a client has heard is kept if
and only if it is among those that stand before everything that is heard later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Heard(NamedTuple):
    """One answer on the bridge. ``at_s`` is by the clock of the leases, ``real_s`` by the machine's."""

    at_s: float
    real_s: float
    host: str
    token: int


@dataclass
class Witness:
    """``broken`` has one sentence for each thing that must not be; whoever reads it empties it."""

    last: Heard | None = None
    broken: list[str] = field(default_factory=list)
    #: The longest time between two answers, by the clock of the leases and by the machine's, since ``begin``.
    silence_s: float = 0.0
    silence_real_s: float = 0.0
    heard: int = 0
    _before: dict[int, int] = field(default_factory=dict)
    #: Who has spoken in an epoch of the record, and is not the one that spoke last.
    _silent: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Forget the figures, not what was heard."""
        self.silence_s = self.silence_real_s = 0.0
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
        last, self.last = self.last, heard
        self.heard += 1
        if heard.host in self._silent:
            self.broken.append(
                f"Both copies speak: {heard.host} says {heard.token} after another one had become the VM."
            )
        if last is None:
            return
        self.silence_s = max(self.silence_s, heard.at_s - last.at_s)
        self.silence_real_s = max(self.silence_real_s, heard.real_s - last.real_s)
        if last.host != heard.host:
            self._silent.add(last.host)
        if not self._follows(heard.token, last.token):
            self.broken.append(
                f"What a client had heard is undone: {heard.host} says {heard.token} and knows nothing of {last.token} "
                f"({last.host})."
            )
        self._before = {token: before for token, before in self._before.items() if token >= last.token}

    def _follows(self, token: int, earlier: int) -> bool:
        while token > earlier:
            token = self._before.get(token, 0)
        return token == earlier
