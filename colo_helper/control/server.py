"""The server's side of the control socket, in threads of its own."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colo_helper.control.protocol import MAX_LINE_BYTES, RefusedError, Request, parse_request, refusal


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        while line := self.rfile.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                self._write(refusal("bad_request", f"A request has at most {MAX_LINE_BYTES} bytes."))
                return
            with self.server.answering():
                self._write(self._answer(line))

    def _write(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return self.server.serve(parse_request(line))
        except RefusedError as error:
            return refusal(error.code, str(error))


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, serve: Callable[[Request], dict[str, Any]]) -> None:
        self.serve = serve
        self.busy = 0
        self.quiet = threading.Condition()
        super().__init__(path, _Handler)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request until its answer is written."""
        with self.quiet:
            self.busy += 1
        try:
            yield
        finally:
            with self.quiet:
                self.busy -= 1
                self.quiet.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (socketserver's)
        """Let a client that vanished go without a traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class ControlServer:
    """Answers requests; ``serve`` gets a request, returns the answer, and may raise RefusedError."""

    def __init__(self, path: Path, serve: Callable[[Request], dict[str, Any]]) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), serve)
        path.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def close(self, timeout_s: float = 0.0) -> None:
        """Stop answering, give answers that are ready ``timeout_s`` to be written, and remove the socket."""
        self._path.unlink(missing_ok=True)
        self._server.shutdown()
        with self._server.quiet:
            self._server.quiet.wait_for(lambda: self._server.busy == 0, timeout_s)
        self._server.server_close()
