"""Requests and answers on the control socket."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

VERBS = (
    "status",
    "checkpoint",
    "verify",
    "capture",
    "switchover",
    "takeover",
    "maintenance",
    "automatic",
    "stop",
)
#: For how long packets are captured when nobody says it, and at most, in seconds.
CAPTURE_S, LONGEST_CAPTURE_S = 10, 600
#: Of a reason, in characters.
LONGEST_REASON = 200
MAX_LINE_BYTES = 64 << 10
CONTROL_SOCKET = "/run/colo/{vm}/control.sock"


class RefusedError(Exception):
    """A request that is not carried out. ``code`` is one word for programs, the text one sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(slots=True)
class Request:
    """A verb that waits for its answer.

    ``reason`` is an operator's, for the record. ``forced``: the operator answers for it that no other copy of the VM runs.
    ``seconds``: how long a capture is to be.
    """

    verb: str
    reason: str = ""
    forced: bool = False
    seconds: int = CAPTURE_S
    _answer: SimpleQueue[dict[str, Any]] = field(default_factory=SimpleQueue)

    def succeed(self, result: dict[str, Any]) -> None:
        """Answer with a result."""
        self._answer.put({"ok": True, **result})

    def refuse(self, code: str, sentence: str) -> None:
        """Answer with a refusal."""
        self._answer.put(refusal(code, sentence))

    def wait(self) -> dict[str, Any]:
        """Wait for the answer."""
        return self._answer.get()


def refusal(code: str, sentence: str) -> dict[str, Any]:
    """Return the answer that refuses a request."""
    return {"ok": False, "error": sentence, "code": code}


def parse_request(line: bytes) -> Request:
    """Read a request line; raises RefusedError."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise RefusedError("bad_request", "The request is not a JSON object on one line.") from None
    if not isinstance(value, dict) or not isinstance(value.get("verb"), str):
        raise RefusedError("bad_request", "The request has no 'verb'.")
    if value["verb"] not in VERBS:
        raise RefusedError("unknown_verb", f"'{value['verb']}' is none of {', '.join(VERBS)}.")
    reason, forced, seconds = (
        value.get("reason", ""),
        value.get("forced", False),
        value.get("seconds", CAPTURE_S),
    )
    if (
        not isinstance(reason, str)
        or len(reason) > LONGEST_REASON
        or not (reason.isprintable() or not reason)
    ):
        raise RefusedError("bad_request", f"A reason is one line of {LONGEST_REASON} characters at most.")
    if not isinstance(forced, bool):
        raise RefusedError("bad_request", "'forced' is true or false.")
    if type(seconds) is not int or not 1 <= seconds <= LONGEST_CAPTURE_S:
        raise RefusedError("bad_request", f"'seconds' is a whole number from 1 to {LONGEST_CAPTURE_S}.")
    if not reason.strip() and (forced or value["verb"] == "maintenance"):
        raise RefusedError("no_reason", f"Say why: '{value['verb']}' needs a reason, which is recorded.")
    return Request(value["verb"], reason.strip(), forced, seconds)
