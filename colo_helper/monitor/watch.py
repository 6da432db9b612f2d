"""Whether the replicator's main thread gets on, for those who must not go on without it: lease, session, service manager."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Longer than anything takes between two looks: the end of "xl restore" is given 300 s.
STUCK_S = 330.0
_TELL_S = 10.0


class Watch:
    """``look`` is called by the main thread, or for it while what it waits for gets on; ``stuck`` by any.

    ``tell`` is called now and then while it gets on.
    """

    def __init__(
        self, tell: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._looked_s = clock()
        self._told_s = float("-inf")

    def look(self) -> None:
        """The main thread gets on."""
        self._looked_s = now_s = self._clock()
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self._tell()

    def stuck(self) -> str:
        """Return a sentence when it has not for too long, an empty text otherwise."""
        away_s = self._clock() - self._looked_s
        return f"The replicator itself has been stuck for {away_s:.0f} s." if away_s > STUCK_S else ""
