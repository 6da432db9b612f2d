"""A client whose one connection must outlive every fault, and that knows what each answer has to be."""

from __future__ import annotations

import threading
import zlib

from lab.guests import Answer, Client, parse_answer
from lab.settings import Settings

#: Between an answer and the next write: a guest that is asked without a pause takes an emulated host's only CPU.
_PACE_S = 0.1
#: Longer than any silence that a fault may cause: retransmissions come seldom after a long one.
_ANSWER_TIMEOUT_S = 240.0


class Writer(threading.Thread):
    """Writes tokens in order over one connection, and holds every answer against all that was written before.

    ``problem`` has a sentence once an answer was not what it has to be, or the connection broke.
    """

    def __init__(self, settings: Settings, guest: str) -> None:
        super().__init__(daemon=True, name="writer")
        self._client = Client(settings, guest, _ANSWER_TIMEOUT_S)
        self._closed = threading.Event()
        self.problem = ""

    def run(self) -> None:
        """Write until closed."""
        try:
            before = self._client.read()
            while not self._closed.wait(_PACE_S):
                token = f"t-{before.writes + 1}"
                answer = parse_answer(self._client.ask(f"write {token}"))
                self.problem = undone(before, token, answer)
                if self.problem:
                    return
                before = answer
        except (OSError, ValueError) as error:
            if not self._closed.is_set():
                self.problem = f"The client's connection broke: {error}"
        finally:
            self._client.close()

    def close(self) -> None:
        """Write no more; waits for an answer that is due."""
        self._closed.set()
        self.join(_ANSWER_TIMEOUT_S)


def undone(before: Answer, token: str, answer: Answer) -> str:
    """Return what is wrong with the answer to a write of ``token`` that followed ``before``; an empty text if nothing."""
    expected = (before.writes + 1, token, zlib.crc32(token.encode(), before.chain))
    if (answer.writes, answer.last, answer.chain) != expected:
        return (
            f"What a client had heard is undone: after {before} and 'write {token}' the guest says {answer}."
        )
    if answer.counter < before.counter:
        return f"What a client had heard is undone: the guest's clock went from {before.counter} to {answer.counter}."
    return ""
