"""A client that asks the guest over one connection again and again, and never makes another."""

import threading
import time
from itertools import pairwise

from lab.guests import Client

_ANSWER_TIMEOUT_S = 120
#: Between an answer and the next question: without it guest and replicator take all of a host's only CPU.
PACE_S = 0.05


class Asker(threading.Thread):
    """Reads the guest's counter over one connection, again and again."""

    def __init__(self, settings, guest="h1"):
        super().__init__(daemon=True)
        self.client = Client(settings, guest, timeout_s=_ANSWER_TIMEOUT_S)
        self.stopped = threading.Event()
        self.answers = []
        self.answered = threading.Condition()
        self.error = None

    def run(self):
        try:
            while not self.stopped.wait(PACE_S):
                answer = self.client.read()
                with self.answered:
                    self.answers.append((time.monotonic(), answer))
                    self.answered.notify_all()
        except Exception as error:
            self.error = error
        finally:
            self.client.close()
            with self.answered:
                self.answered.notify_all()

    def begin(self):
        """Start, and wait for the first answer."""
        self.start()
        with self.answered:
            self.answered.wait_for(lambda: self.error or self.answers, _ANSWER_TIMEOUT_S)
        return self

    def close(self):
        """Stop asking; returns the counters of all answers. Raises what ended the connection before."""
        self.stopped.set()
        self.join(180)
        if self.error:
            raise self.error
        return [answer.counter for _, answer in self.answers]

    def longest_silence(self, since):
        """The longest time between two answers after a moment, waiting for the first; raises what ended the connection."""
        with self.answered:
            self.answered.wait_for(
                lambda: self.error or (self.answers and self.answers[-1][0] > since), _ANSWER_TIMEOUT_S
            )
            if self.error:
                raise self.error
            times = [since, *(when for when, _ in self.answers if when > since)]
        return max(later - earlier for earlier, later in pairwise(times))
