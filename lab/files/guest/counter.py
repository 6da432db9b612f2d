"""The guest's service: it counts, and every answer says how far, and what was written before.

One line in, one line out, on TCP port 7000, any number of connections:

    read            -> counter=812 writes=3 last=token chain=1c291ca3
    write TOKEN     -> the same, after TOKEN was written
    echo TOKEN      -> echo=TOKEN: any two copies of the guest say the same
    clock           -> clock=81364297182: no two copies say the same

`counter` goes up by one each tick, `writes` by one each write; `chain` is a CRC-32 over all tokens written so far.
A client sees from these whether the guest was lost, started again, or went back in time.
Each tick dirties `work` pages of 4096 bytes, as a guest that does something would.

Usage: counter.py WORK_PAGES TICK_MS
"""

import select
import socket
import sys
import time
import zlib

PORT = 7000
PAGE = 4096
LINE_LIMIT = 4096


class Counter:
    """What the guest remembers; it lives in memory only, so that it dies with the copy."""

    def __init__(self, work_pages: int) -> None:
        self.counter = 0
        self.writes = 0
        self.last = "-"
        self.chain = 0
        self.arena = bytearray(max(1, work_pages) * 8 * PAGE)
        self.work_pages = work_pages

    def tick(self) -> None:
        """One unit of work: count, and dirty `work_pages` pages."""
        self.counter += 1
        pages = len(self.arena) // PAGE
        for step in range(self.work_pages):
            offset = ((self.counter * self.work_pages + step) % pages) * PAGE
            self.arena[offset : offset + 8] = self.counter.to_bytes(8, "little")

    def answer(self, line: str) -> str:
        """The answer to one request line, without its newline."""
        verb, _, token = line.strip().partition(" ")
        if verb == "echo":
            return f"echo={token}"
        if verb == "clock":
            return f"clock={time.monotonic_ns()}"
        if verb == "write" and token:
            self.writes += 1
            self.last = token
            self.chain = zlib.crc32(token.encode(), self.chain)
        elif verb != "read":
            return f"error=unknown-request-{verb}"
        return f"counter={self.counter} writes={self.writes} last={self.last} chain={self.chain:08x}"


def serve(state: Counter, tick_s: float) -> None:
    """Count and answer until the guest ends."""
    listener = socket.create_server(("", PORT), backlog=16)
    pending: dict[socket.socket, bytes] = {}
    next_tick = time.monotonic() + tick_s
    while True:
        timeout = max(0.0, next_tick - time.monotonic())
        ready, _, _ = select.select([listener, *pending], [], [], timeout)
        if time.monotonic() >= next_tick:
            state.tick()
            next_tick = time.monotonic() + tick_s
            if state.counter % 5 == 0:
                print(f"counter {state.counter}", flush=True)
        for sock in ready:
            if sock is listener:
                client, _ = listener.accept()
                pending[client] = b""
            elif not receive(state, sock, pending):
                del pending[sock]
                sock.close()


def receive(state: Counter, sock: socket.socket, pending: dict[socket.socket, bytes]) -> bool:
    """One read of one client; False when the connection is over."""
    try:
        data = sock.recv(LINE_LIMIT)
        if not data or len(pending[sock]) > LINE_LIMIT:
            return False
        *lines, pending[sock] = (pending[sock] + data).split(b"\n")
        for line in lines:
            sock.sendall((state.answer(line.decode("utf-8", "replace")) + "\n").encode())
    except OSError as error:
        print(f"client gone: {error}", flush=True)
        return False
    return True


if __name__ == "__main__":
    serve(Counter(int(sys.argv[1])), int(sys.argv[2]) / 1000)
