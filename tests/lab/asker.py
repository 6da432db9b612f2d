"""A client that asks the guest over one connection all the time, and never makes another."""

import threading
import time
from itertools import pairwise

from lab.guests import Client


class Asker(threading.Thread):
    """Reads the guest's counter over one connection, again and again."""

    def __init__(self, settings, guest="h1"):
        super().__init__(daemon=True)
        self.client = Client(settings, guest, timeout_s=120)
        self.stopped = threading.Event()
        self.answers = []
        self.error = None

    def run(self):
        try:
            while not self.stopped.is_set():
                self.answers.append((time.monotonic(), self.client.read()))
        except Exception as error:
            self.error = error
        finally:
            self.client.close()

    def close(self):
        """Stop asking; returns the counters of all answers. Raises what ended the connection before."""
        self.stopped.set()
        self.join(180)
        if self.error:
            raise self.error
        return [answer.counter for _, answer in self.answers]

    def longest_silence(self, since):
        """The longest time between two answers after a moment."""
        times = [since, *(when for when, _ in list(self.answers) if when > since)]
        return max(later - earlier for earlier, later in pairwise(times))
