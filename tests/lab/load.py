"""What goes on with a guest while its hosts fail: writes, connections that must not break, comparisons of both copies."""

import threading

from lab.guests import Client
from tests.lab.asker import Asker

#: Pauses between two writes of the load, in seconds: as fast as the guest answers, and slower.
PACES_S = (0.0, 0.02, 0.2)
_ANSWER_TIMEOUT_S = 120
#: Connections opened at a time just before the power goes.
_YOUNG = 3


class Writer(threading.Thread):
    """Writes tokens at a pace until stopped; a guest that does not answer is asked again over a new connection."""

    def __init__(self, settings, pace_s, guest="h1"):
        super().__init__(daemon=True)
        self._client = Client(settings, guest, timeout_s=2.0)
        self._pace_s = pace_s
        self._ended = threading.Event()
        self.last = None

    def run(self):
        number = 0
        while not self._ended.wait(self._pace_s):
            number += 1
            try:
                self.last = self._client.write(f"load-{number}")
            except OSError:
                continue  # between the two hosts nobody answers; how long is the witness's to say

    def close(self):
        self._ended.set()
        self.join()
        self._client.close()


def compare_many(vm, host, count):
    """Checkpoints under load, after each of which both copies are compared; returns what must be none."""
    wrong = []
    for _ in range(count):
        found = vm.verify(host)
        parts = [found, *found["state"].values()]
        assert found["pages_compared"] > 30_000
        wrong += [one for part in parts for one in part["unexplained"]]
    return wrong


class Clients:
    """Who talks with the guest over connections that must not break: one for ever, and some that are opened before each end.

    Those are, as likely as not, younger than the last checkpoint; each lasts through two power-offs.
    """

    def __init__(self, settings, guest):
        self._settings, self._guest = settings, guest
        self.steady = Asker(settings, guest)
        self.steady.start()
        self._open, self._older = [], []

    def open_young(self):
        self._older = self._open
        self._open = [Client(self._settings, self._guest, timeout_s=_ANSWER_TIMEOUT_S) for _ in range(_YOUNG)]
        self.go_on("young")

    def go_on(self, token):
        """Ask over each connection; an error when one was reset, or gets another's answer."""
        for number, client in enumerate(self._open + self._older):
            assert client.ask(f"echo {token}-{number}") == f"echo={token}-{number}\n"

    def let_old_go(self):
        """Close those that have seen two power-offs."""
        for client in self._older:
            client.close()
        self._older = []

    def close(self):
        """Return the counters that the guest told over the connection that lasted."""
        self.go_on("last")
        self._older += self._open
        self.let_old_go()
        return self.steady.close()
