"""What the fuzzer calls: every reader of bytes that a peer sent, each with the memory it may take.

A target takes any bytes. It returns when they were read or refused with a sentence; every other exception is a find,
and so is an allocation beyond ``bound_bytes``.
"""

from __future__ import annotations

import io
import os
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from colo_helper.channel import wire
from colo_helper.channel.wire import WireError
from colo_helper.helper import messages
from colo_helper.helper.argv import RestoreRequest, StreamType
from colo_helper.helper.back_channel import DirtyReader
from colo_helper.helper.errors import HelperError
from colo_helper.helper.fds import Fd, Stop
from colo_helper.helper.messages import Callback, MessageError
from colo_helper.helper.restore import Restorer
from colo_helper.helper.spool import MEMORY_BYTES
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES, HypervisorError, SpecialFrame
from colo_helper.memory.encoding import (
    UNPACK_COPIES,
    UNPACK_FIXED_BYTES,
    EncodingError,
    max_packed_bytes,
    pack_bitmap,
    unpack_bitmap,
)
from colo_helper.proxy.capture import read_capture
from colo_helper.proxy.compare import Comparator
from colo_helper.proxy.packet import parse
from colo_helper.proxy.pcapng import PcapngError
from colo_helper.proxy.rewrite import Rewriter
from colo_helper.proxy.verdicts import Limits, Verdict
from colo_helper.stream import device_state, hvm_context, libxl, walk
from colo_helper.stream.device_state import DeviceStateError
from colo_helper.stream.dirty_list import check_list_length, mend_shifted, parse_dirty_list
from colo_helper.stream.hvm_context import ContextError
from colo_helper.stream.libxc import (
    MAX_RECORD_ENTRIES,
    MAX_SMALL_RECORD_BYTES,
    StreamError,
    parse_record_header,
)
from colo_helper.stream.pieces import compare_pieces
from tests.fuzz import seeds

#: What the proxy may hold here.
_HELD = Limits(
    packets=64, bytes=1 << 18, history_bytes=1 << 16, connections=16, secondary_s=8.0, primary_s=8.0
)
#: The guest that all of this is about; its peer's words must not cost more than it warrants.
FRAMES = 100_000
_MAX_PAGES = 512
#: Python's objects around the buffers: small beside any of the bounds, but not nothing.
_OBJECTS_BYTES = 1 << 20
_STOP = Stop()


@dataclass(frozen=True)
class Target:
    """One reader. ``bound_bytes`` is beside the input itself."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    bound_bytes: int


class BoundError(AssertionError):
    """An input took more memory than its reader may take."""


def measure(target: Target, data: bytes) -> int:
    """Run a target and return the most memory it had, in bytes; tracemalloc must be on."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    target.run(data)
    taken = tracemalloc.get_traced_memory()[1] - before
    if taken > target.bound_bytes:
        raise BoundError(
            f"An input of {len(data)} bytes took {taken} bytes; {target.bound_bytes} are the bound."
        )
    return taken


# ----------------------------------------------------------------------------------------------------- the sources


class _Source:
    """Reads exactly from bytes, and takes memory for what is asked before it looks whether it is there: as a pipe does."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def __call__(self, length: int) -> bytes:
        buffer = bytearray(length)
        if length > len(self._left):
            raise EOFError
        buffer[:] = self._left[:length]
        self._left = self._left[length:]
        return bytes(buffer)


@contextmanager
def _file(data: bytes, name: str, *, writing: bool = False) -> Iterator[Fd]:
    fd = os.memfd_create(name)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield Fd(fd, name, _STOP, writing=writing)
    finally:
        os.close(fd)


# ----------------------------------------------------------------------------------------------------- the targets


def _walk(walker: Callable[..., Iterator[object]], data: bytes, colo: bool) -> None:
    with suppress(StreamError, EOFError):
        for _ in walker(_Source(data), colo=colo):
            pass


def libxc_image(data: bytes) -> None:
    """Walk through an image; the first byte says whether it is COLO's."""
    _walk(walk.walk_image, data[1:], bool(data[:1] > b"\x7f"))


def saved_file(data: bytes) -> None:
    """Walk through what xl saves."""
    _walk(walk.walk_xl, data[1:], bool(data[:1] > b"\x7f"))


class _Libxl:
    """The restoring helper's parent: takes libxl's records out of the stream, answers yes as long as they are good."""

    def __init__(self, domain: EmulatedDomain, stream: Fd, stream_type: StreamType) -> None:
        self._domain, self._stream, self._type = domain, stream, stream_type

    def log(self, level: messages.Level, text: str, errnoval: int | None = None) -> None:
        assert text, (level, errnoval)

    def progress(self, what: str, done: int, total: int, context: str = "") -> None:
        assert 0 <= done <= total, (what, context)

    def serves(self, callback: Callback) -> bool:
        return callback is not Callback.SWITCH_QEMU_LOGDIRTY

    def ask(self, callback: Callback, *arguments: int) -> int:
        if callback is Callback.STATIC_DATA_DONE:
            return int(arguments[0] > 3)
        try:
            if callback is Callback.CHECKPOINT:
                while self._record() != libxl.LibxlRecordType.CHECKPOINT_END:
                    pass
            elif callback is Callback.WAIT_CHECKPOINT:
                self._record()
                self._domain.guest_write(min(self._domain.memory, default=0), b"the copy's own")
        except (StreamError, HelperError):
            return 2
        return 1

    def tell(self, callback: Callback, *arguments: int) -> None:
        assert callback is Callback.RESTORE_RESULTS, arguments

    def _record(self) -> int:
        kind, length = libxl.parse_record_header(self._stream.read_exact(8))
        self._stream.read_exact(length + -length % 8)
        return kind


def restorer(data: bytes) -> EmulatedDomain:
    """Restore into a domain and return it; the first byte says which kind of stream it is, and what was there before."""
    kind = data[0] if data else 0
    stream_type = StreamType((kind & 0x7F) % 3)
    domain = EmulatedDomain(9, size_frames=None, max_pages=_MAX_PAGES)
    if kind & 0x80:  # a copy made before the stream, with a ring of its own
        for gfn in range(8):
            domain.guest_write(gfn, b"the copy's own")
        domain.specials = {5: SpecialFrame(5, "ring", "belongs to the host")}
    with _file(data[1:], "the stream") as stream, _file(b"", "the back channel", writing=True) as back:
        request = RestoreRequest(9, 5, 6, stream_type=stream_type)
        parent = _Libxl(domain, stream, stream_type)
        restore = Restorer(domain, request, parent, stream, back, Path(tempfile.gettempdir()))
        with suppress(HelperError, StreamError, HypervisorError):
            restore.run()
    assert len(domain.memory) <= _MAX_PAGES
    assert all(gfn < restore._frames.limit for gfn in domain.memory)
    return domain


def dirty_list(data: bytes) -> None:
    """Read upstream's list, sound and shifted."""
    with suppress(StreamError):
        _kind, length = parse_record_header(data[:8].ljust(8, b"\0"))
        check_list_length(length, FRAMES)
        entries = parse_dirty_list(data[8 : 8 + length], FRAMES)
        assert all(gfn < FRAMES for gfn in entries)
        tail = data[8 + length : 16 + length]
        mended = mend_shifted(entries, int.from_bytes(tail, "little"))
        assert len(mended) == len(entries)
        assert parse_dirty_list(mended.tobytes(), FRAMES) == mended


def packed_bitmap(data: bytes) -> None:
    """Unpack a bitmap; then again with the right checksum, which keeps nearly all damage from the decoders."""
    checked, payload = data[:24], data[28:]
    crc32 = zlib.crc32(payload, zlib.crc32(checked))
    for whole in (data, checked + crc32.to_bytes(4, "little") + payload):
        with suppress(EncodingError):
            bitmap = unpack_bitmap(whole, FRAMES)
            assert bitmap.bits.find(1, FRAMES) < 0
            assert unpack_bitmap(pack_bitmap(bitmap), FRAMES) == bitmap


def back_channel(data: bytes) -> None:
    """Read checkpoint after checkpoint from the back channel, as the saving helper does."""
    with _file(data, "the back channel") as back:
        reader = DirtyReader(back)
        with suppress(HelperError, StreamError):
            while True:
                dirty = reader.read(FRAMES)
                assert dirty.bits.find(1, FRAMES) < 0


def helper_message(data: bytes) -> None:
    """Read messages as a parent does; what was understood can be said again."""
    source, modern = _Source(data[1:]), data[:1] < b"\x80"
    with suppress(MessageError, EOFError):
        while True:
            message = messages.read_message(source, modern)
            again = messages.read_message(_Source(messages.pack(message, modern)), modern)
            assert again.callback is message.callback


def frames(data: bytes) -> None:
    """Read frames of a channel as a lane does; what was understood can be said again."""
    source = _Source(data)
    with suppress(WireError, EOFError):
        while True:
            prelude = wire.parse_prelude(source(wire.PRELUDE_BYTES))
            lengths = wire.parse_lengths(source(4 * prelude.parts), prelude)
            head = wire.parse_head(source(prelude.head_bytes))
            parts = [source(length) for length in lengths]
            again = b"".join(wire.encode(prelude.kind, head, parts, prelude.number))
            assert wire.parse_prelude(again[: wire.PRELUDE_BYTES]).number == prelude.number


def hvm_context_records(data: bytes) -> None:
    """Split an HVM context and compare it with a good one; what was understood is all there."""
    with suppress(ContextError):
        pieces = hvm_context.split(data)
        compare_pieces(pieces, hvm_context.split(seeds.hvm_context()))
        assert sum(8 + len(piece.body) for piece in pieces) + 8 <= len(data)


def device_state_sections(data: bytes) -> None:
    """Split a device state and compare it with a good one; every byte is in some section's head or body."""
    with suppress(DeviceStateError):
        pieces = device_state.split(data)
        compare_pieces(pieces, device_state.split(seeds.device_state()))
        assert sum(len(piece.body) for piece in pieces) < len(data)


def proxy(data: bytes) -> None:
    """Compare what two guests send, by a script: see `seeds.proxy_script`. What the primary sends leaves once, in the end."""
    comparator, rewriter = Comparator(_HELD), Rewriter(16)
    sent: list[int] = []
    left: list[int] = []

    def take(verdict: Verdict) -> None:
        left.extend(id(packet) for packet in verdict.release)
        assert verdict.checkpoint is None or verdict.checkpoint.sentence.endswith(".")
        if comparator.full:
            left.extend(id(packet) for packet in comparator.checkpointed().release)
        assert comparator.held_packets <= _HELD.packets

    kept = []  # so that no packet gets the name of one before it
    for step, (kind, frame) in enumerate(seeds.read_proxy_script(data)):
        packet = parse(frame, (0, 10, 12, 0)[kind >> 4 & 3])
        if kind & 8:
            assert len(rewriter.to_guest(packet, step)) == len(frame)
        elif kind & 1:
            assert len(rewriter.from_guest(packet, step)) == len(frame)
            take(comparator.secondary(packet, step))
        else:
            kept.append(packet)
            sent.append(id(packet))
            take(comparator.primary(packet, step))
        if kind & 2:
            take(comparator.expire(step))
        if kind & 4:
            take(comparator.checkpointed())
            rewriter.checkpointed()
    take(comparator.checkpointed())
    assert sorted(left) == sorted(sent)
    assert (comparator.held_packets, comparator.held_bytes, comparator.deadline()) == (0, 0, None)


def capture(data: bytes) -> None:
    """Read a capture."""
    with suppress(PcapngError):
        for _ in read_capture("the capture", io.BytesIO(data)):
            pass


# The largest single read stands three times: as the buffer, as what is made of it, and as what is kept.
_LARGEST_PIECE = max(8 * MAX_RECORD_ENTRIES, MAX_SMALL_RECORD_BYTES)

TARGETS: dict[str, Target] = {
    "libxc-image": Target(
        libxc_image,
        lambda: [bytes((255 * (number > 2),)) + image for number, image in enumerate(seeds.images())],
        3 * (libxl.MAX_EMULATOR_CONTEXT_BYTES + _OBJECTS_BYTES),
    ),
    "xl-file": Target(
        saved_file,
        lambda: [b"\0" + saved for saved in seeds.saved_files()],
        3 * (libxl.MAX_EMULATOR_CONTEXT_BYTES + _OBJECTS_BYTES),
    ),
    "restorer": Target(
        restorer,
        lambda: [
            bytes((kind,)) + image for kind, image in zip((0, 0, 1, 2, 0x82), seeds.images(), strict=True)
        ],
        # The stand-in for libxl reads a device model's state; the spool keeps its part of a checkpoint in memory.
        3 * (libxl.MAX_EMULATOR_CONTEXT_BYTES + _LARGEST_PIECE) + MEMORY_BYTES + 2 * _MAX_PAGES * PAGE_BYTES,
    ),
    "dirty-list": Target(
        dirty_list, lambda: [seed for seed in seeds.back_channel() if seed[:1] == b"\x0f"], _OBJECTS_BYTES
    ),
    "packed-bitmap": Target(
        packed_bitmap, seeds.packed_bitmaps, UNPACK_COPIES * max_packed_bytes(FRAMES) + UNPACK_FIXED_BYTES
    ),
    "back-channel": Target(
        back_channel,
        seeds.back_channel,
        # A list becomes an array, a mended array, and a bitmap by way of Python's numbers.
        max(UNPACK_COPIES * max_packed_bytes(FRAMES), 8 * FRAMES * 10) + UNPACK_FIXED_BYTES,
    ),
    "helper-message": Target(
        helper_message, lambda: [b"\0" + seed for seed in seeds.helper_messages()], _OBJECTS_BYTES
    ),
    # The records are copies of the input; its length is the fuzzer's, 64 KiB. Small records cost more as objects.
    "hvm-context": Target(
        hvm_context_records, lambda: [seeds.hvm_context(), seeds.hvm_context(rax=1)], 8 * _OBJECTS_BYTES
    ),
    "device-state": Target(
        device_state_sections,
        lambda: [seeds.device_state(), seeds.device_state(footers=True)],
        8 * _OBJECTS_BYTES,
    ),
    # Packets and the list of them live as long as the script; beside them there is what the comparator holds.
    "proxy": Target(proxy, seeds.proxy_scripts, 16 << 20),
    "capture": Target(capture, seeds.captures, _OBJECTS_BYTES),
    "frames": Target(
        frames,
        seeds.frames,
        # A part stands as the buffer and as what is made of it; a head also as text and as Python's objects.
        2 * wire.MAX_PAYLOAD_BYTES + 40 * wire.MAX_HEAD_BYTES + _OBJECTS_BYTES,
    ),
}
