"""The thread that moves packets between sockets, a router and the peer, while the replicator's main thread does the rest."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from colo_helper.devices.filters import wait_until_taken
from colo_helper.devices.interface import FilteredNic
from colo_helper.proxy.verdicts import Checkpoint
from colo_helper.traffic.framing import FrameReader, FramingError, RawFrame, pack
from colo_helper.traffic.interface import Router

_READ_BYTES = 256 << 10
#: What may wait for a device model that does not read, in bytes, towards the guest; the network's side has no limit but
#: the router's.
_BACKLOG_BYTES = 4 << 20
#: How long a device model may take to read what is to leave before its filters go, in seconds.
_TAKEN_S = 1.0
_LOOK_S = 0.001
#: How often it is looked whether what waits for the network may leave again, in seconds.
_MUTE_LOOK_S = 0.2
#: What may wait for the peer, in bytes.
_QUEUE_BYTES = 4 << 20


class SendFrames(Protocol):
    """How packets go to the peer."""

    def __call__(self, epoch: int, nic: int, packed: bytes) -> None:
        """Send packets in QEMU's framing; may block, and may raise anything when the session is over."""


class PeerQueue:
    """Packets on their way to the peer: a queue with a thread, so that a slow channel never holds a guest back.

    What does not fit is dropped and counted; a client, or the guest, sends it again, or a checkpoint makes it void.
    """

    def __init__(self, send: SendFrames) -> None:
        self.dropped = 0
        self._send = send
        self._queue: deque[tuple[int, int, bytes]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="packets-to-peer", daemon=True).start()

    def put(self, epoch: int, nic: int, frames: Sequence[RawFrame]) -> None:
        """Queue frames."""
        packed = b"".join(map(pack, frames))
        with self._changed:
            if self._closed or self._bytes + len(packed) > _QUEUE_BYTES:
                self.dropped += len(frames)
                return
            self._bytes += len(packed)
            self._queue.append((epoch, nic, packed))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                epoch, nic, packed = self._queue.popleft()
                # What waits of the same kind goes in one frame.
                parts = [packed]
                while self._queue and self._queue[0][:2] == (epoch, nic):
                    parts.append(self._queue.popleft()[2])
                self._bytes -= sum(map(len, parts))
            try:
                self._send(epoch, nic, b"".join(parts))
            except Exception:  # the session is over, and the main thread learns from the session why
                self.close()

    def close(self) -> None:
        """Drop what waits."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify()


class _Port:
    """One NIC's sockets."""

    def __init__(self, nic: FilteredNic) -> None:
        self.nic = nic
        self.readers = {nic.from_guest: FrameReader(), nic.from_network: FrameReader()}
        #: Whether the device model has closed one of them.
        self.over = False
        self.waiting: dict[socket.socket, bytearray] = {nic.to_network: bytearray()}
        if nic.to_guest:
            self.waiting[nic.to_guest] = bytearray()

    def read(self, end: socket.socket) -> tuple[list[RawFrame], bool]:
        """Return the frames that are complete now, and whether there may be more at once.

        A device model that has gone says nothing more, which ``over`` tells. Raises FramingError.
        """
        reader = self.readers.get(end)
        if reader is None:
            return [], False
        try:
            data = end.recv(_READ_BYTES)
        except BlockingIOError:
            return [], False
        except OSError:
            data = b""
        if not data:
            del self.readers[end]
            self.over = True
            return [], False
        frames = reader.feed(data)
        return [_announcement(frame) for frame in frames] if end is self.nic.from_guest else frames, True

    def write(self, end: socket.socket, data: bytes) -> None:
        """Write now what is taken, and keep the rest."""
        self.waiting[end] += data
        self.flush(end)

    def flush(self, end: socket.socket) -> None:
        """Write what was kept; what a device model that has gone does not take is lost with its guest."""
        waiting = self.waiting[end]
        try:
            while waiting:
                del waiting[: end.send(waiting)]
        except BlockingIOError:
            return
        except OSError:
            waiting.clear()


def _announcement(frame: RawFrame) -> RawFrame:
    """Give QEMU's own announcement (RARP) its vnet header, which it is sent without while the framing claims one."""
    data = frame.data
    if frame.vnet_bytes and data[:6] == b"\xff" * 6 and data[12:14] == b"\x80\x35":
        return RawFrame(bytes(frame.vnet_bytes) + data, frame.vnet_bytes)
    return frame


class Pump:
    """Moves the packets of one guest. ``router`` is called by one thread at a time, under ``hold``.

    ``permits`` is asked before each row of packets for the network, and what it does not permit is thrown away: TCP sends
    it again, and who sends it then is the owner.

    ``wanted`` is called when the router asks for a checkpoint, ``failed`` (with a sentence) when the pump cannot go on, or
    has nobody to move packets for; by the pump's thread or by who gives it packets. Neither may block.
    """

    def __init__(
        self,
        nics: Sequence[FilteredNic],
        router: Callable[[Pump], Router],
        send: SendFrames,
        wanted: Callable[[Checkpoint], None],
        failed: Callable[[str], None],
        permits: Callable[[], bool],
    ) -> None:
        self._ports = [_Port(nic) for nic in nics]
        self._wanted = wanted
        self._failed = failed
        self._permits = permits
        #: Packets that were let go and must not leave any more.
        self.muted = 0
        self._peer = PeerQueue(send)
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._stopping = self._closed = self._over = False
        self._router = router(self)
        for number, port in enumerate(self._ports):
            for end in port.readers:
                self._selector.register(end, selectors.EVENT_READ, (number, port))
        self._thread = threading.Thread(target=self._run, name="packets", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------------------------------------------- outputs

    def to_network(self, nic: int, frames: Sequence[RawFrame]) -> None:
        """See Outputs."""
        if not self._permits():
            self.muted += len(frames)
            return
        port = self._ports[nic]
        self._write(port, port.nic.to_network, frames)

    def to_guest(self, nic: int, frames: Sequence[RawFrame]) -> None:
        """See Outputs. What a guest does not take in time is dropped, as its card would."""
        port = self._ports[nic]
        end = port.nic.to_guest
        if end is not None and len(port.waiting[end]) < _BACKLOG_BYTES:
            self._write(port, end, frames)

    def _write(self, port: _Port, end: socket.socket, frames: Sequence[RawFrame]) -> None:
        port.write(end, b"".join(map(pack, frames)))
        if port.waiting[end]:
            self._wake()  # the thread waits until there is room

    def to_peer(self, epoch: int, nic: int, frames: Sequence[RawFrame]) -> None:
        """See Outputs."""
        self._peer.put(epoch, nic, frames)

    def need_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See Outputs."""
        self._wanted(checkpoint)

    # --------------------------------------------------------------------------------------- for other threads

    @property
    def dropped(self) -> int:
        """How many packets for the peer were dropped because the channel did not keep up."""
        return self._peer.dropped

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the pump's thread away from the router for a moment."""
        with self._lock:
            yield
            self._wake()

    def drain(self) -> dict[int, RawFrame]:
        """Take all that the guest and the network have sent until now; the guest must stand still. Within ``hold``.

        Returns the last frame of each NIC that came from the network.
        """
        last: dict[int, RawFrame] = {}
        for number, port in enumerate(self._ports):
            for end in (port.nic.from_guest, port.nic.from_network):
                more = True
                while more:
                    frames, more = port.read(end)
                    self._hand_on(number, port, end, frames)
                    if frames and end is port.nic.from_network:
                        last[number] = frames[-1]
            self._look_whether_over(port)
        return last

    def flushed(self, within_s: float = _TAKEN_S) -> bool:
        """Wait until the device model has read all that was written to it; tells whether it has. Not within ``hold``."""
        deadline = time.monotonic() + within_s
        for port in self._ports:
            for end, waiting in port.waiting.items():
                while waiting and time.monotonic() < deadline:
                    time.sleep(_LOOK_S)  # the pump's thread writes it
                try:
                    if waiting or not wait_until_taken(end, max(0.0, deadline - time.monotonic())):
                        return False
                except OSError:
                    continue  # the device model has gone
        return True

    def from_peer(self, epoch: int, nic: int, packed: bytes) -> None:
        """Take packets that the peer has sent; raises FramingError."""
        reader = FrameReader()
        frames = reader.feed(packed)
        if reader.cut:
            raise FramingError("A row of packets stops within one.")
        with self.hold():
            if not self._stopping:
                self._router.from_peer(epoch, nic, frames, time.monotonic())

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            if self._closed:
                return
            self._stopping = self._closed = True
            self._poke()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._peer.close()
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    # ---------------------------------------------------------------------------------------------------- the thread

    def _wake(self) -> None:
        """Let the pump's thread look anew at what it waits for; within ``hold``."""
        if threading.current_thread() is not self._thread and not self._stopping:
            self._poke()

    def _poke(self) -> None:
        with suppress(BlockingIOError):  # then it is about to wake up anyway
            os.write(self._wake_in, b"\0")

    def _run(self) -> None:
        try:
            self._move()
        except Exception as error:  # whatever it is, a guest must not fall silent with nobody told
            # A device model whose chardevs have ended throws packets away and obeys; one that cannot write does neither.
            with self._lock:
                self._stopping = True
                for port in self._ports:
                    port.nic.close()
            self._failed(f"The guest's packets cannot be moved any more: {error!r}.")

    def _move(self) -> None:
        while not self._stopping:
            with self._lock:
                due_s = self._router.expire(time.monotonic())
                self._choose()
            timeout_s = None if due_s is None else max(0.0, due_s - time.monotonic())
            if any(port.waiting[port.nic.to_network] for port in self._ports) and not self._permits():
                # Nobody tells when it may again.
                timeout_s = _MUTE_LOOK_S if timeout_s is None else min(timeout_s, _MUTE_LOOK_S)
            for key, events in self._selector.select(timeout_s):
                if key.data is None:
                    with suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
                    continue
                with self._lock:
                    self._serve(key.fileobj, events, *key.data)  # type: ignore[arg-type]

    def _serve(self, end: socket.socket, events: int, number: int, port: _Port) -> None:
        if events & selectors.EVENT_WRITE and self._may_write(port, end):
            port.flush(end)
        if events & selectors.EVENT_READ:
            self._hand_on(number, port, end, port.read(end)[0])
            self._look_whether_over(port)

    def _look_whether_over(self, port: _Port) -> None:
        """A device model closes what we gave it only by its end: whoever waits for its guest need not find out later."""
        if port.over and not self._over:
            self._over = True
            self._failed("The device model has closed the way of the guest's packets.")

    def _hand_on(self, number: int, port: _Port, end: socket.socket, frames: list[RawFrame]) -> None:
        if frames:
            take = self._router.from_guest if end is port.nic.from_guest else self._router.from_network
            take(number, frames, time.monotonic())

    def _choose(self) -> None:
        """Listen to what may come now, and wait for room where something waits."""
        crowded = self._router.crowded
        for number, port in enumerate(self._ports):
            for end in (port.nic.from_guest, port.nic.from_network):
                reading = end in port.readers and not (crowded and end is port.nic.from_guest)
                self._listen(end, selectors.EVENT_READ if reading else 0, (number, port))
            for end, waiting in port.waiting.items():
                writing = waiting and self._may_write(port, end)
                self._listen(end, selectors.EVENT_WRITE if writing else 0, (number, port))

    def _may_write(self, port: _Port, end: socket.socket) -> bool:
        """Whether what waits for an end may be written now."""
        return end is not port.nic.to_network or self._permits()

    def _listen(self, end: socket.socket, events: int, data: tuple[int, _Port]) -> None:
        registered = self._selector.get_map().get(end)
        if registered is None:
            if events:
                self._selector.register(end, events, data)
        elif not events:
            self._selector.unregister(end)
        elif registered.events != events:
            self._selector.modify(end, events, data)
