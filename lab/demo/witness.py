"""A client that never looks away: it reads the guest's counter all the time and notes gaps and steps back."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.guests import Answer, Client
from lab.settings import Settings

_PERIOD_S = 0.25
#: A new connection and its answer wait for a checkpoint each when the copies differ: seconds, on a slow host of the lab.
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Sighting:
    """An answer and the monotonic second at which the question for it was asked."""

    asked_s: float
    answer: Answer


class Witness:
    """Reads the counter in a thread until closed."""

    def __init__(self, settings: Settings, guest: str) -> None:
        self._client = Client(settings, guest, timeout_s=_TIMEOUT_S)
        self._changed = threading.Condition()
        self._last: Sighting | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)
        self._thread.start()

    @property
    def last(self) -> Sighting | None:
        """The newest answer."""
        return self._last

    def wait_answer(self, asked_after_s: float, timeout_s: float) -> Sighting | None:
        """The first answer to a question asked after the monotonic second given; None when there is none in time."""
        return self._wait(lambda seen: seen.asked_s > asked_after_s, timeout_s)

    def wait_count(self, counter: int, timeout_s: float) -> Sighting | None:
        """The first answer with a higher counter: a guest can answer and yet hang. None when there is none in time."""
        return self._wait(lambda seen: seen.answer.counter > counter, timeout_s)

    def _wait(self, wanted: Callable[[Sighting], bool], timeout_s: float) -> Sighting | None:
        with self._changed:
            found = self._changed.wait_for(lambda: self._last is not None and wanted(self._last), timeout_s)
            return self._last if found else None

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            asked = time.monotonic()
            try:
                answer = self._client.read()
            except OSError:
                continue  # no answer is what a gap looks like; the next question tells when it ends
            with self._changed:
                self._last = Sighting(asked, answer)
                self._changed.notify_all()
