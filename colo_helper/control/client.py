"""The client's side of the control socket."""

from __future__ import annotations

import json
import socket
from typing import Any

from colo_helper.control.protocol import CAPTURE_S, CONTROL_SOCKET, RefusedError


def ask(
    vm: str,
    verb: str,
    path: str | None = None,
    timeout_s: float | None = None,
    *,
    reason: str = "",
    forced: bool = False,
    seconds: int = CAPTURE_S,
) -> dict[str, Any]:
    """Send one request (see protocol.Request) to a VM's replicator and return its answer.

    Raises RefusedError when there is none.
    """
    where = path or CONTROL_SOCKET.format(vm=vm)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(timeout_s)
        try:
            channel.connect(where)
            request = {"verb": verb, "reason": reason, "forced": forced, "seconds": seconds}
            channel.sendall(json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as file:
                line = file.readline()
        except OSError as error:
            raise RefusedError(
                "not_running", f"No replicator of {vm} answers at {where}: {error}."
            ) from error
    if not line:
        raise RefusedError("ended", f"The replicator of {vm} ended before it answered '{verb}'.")
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise RefusedError("bad_answer", f"The replicator of {vm} did not answer with a JSON object.")
    return answer
