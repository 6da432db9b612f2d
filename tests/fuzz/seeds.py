"""Small valid inputs, made by our own writers: what the tests walk through and what the fuzzer starts from."""

from __future__ import annotations

import io
import struct
from array import array
from collections.abc import Iterator

from colo_helper.channel import wire
from colo_helper.channel.wire import Kind
from colo_helper.helper import messages
from colo_helper.helper.messages import Callback, Message
from colo_helper.memory.bitmap import DirtyBitmap
from colo_helper.memory.encoding import pack_bitmap
from colo_helper.proxy.capture import Capture, Mark, Patience, Whose
from colo_helper.stream import libxc, libxl
from colo_helper.stream.dirty_list import pack_dirty_list
from colo_helper.stream.libxc import PAGE_BYTES, DomainHeader, RecordType, TscInfo
from colo_helper.stream.libxl import CheckpointState, Emulator, LibxlRecordType
from tests.unit.colo_helper.proxy import frames as made

PARAMS = [(1, 0xFEFFF), (17, 0xFEFFE), (10, 1)]


def page(gfn: int) -> bytes:
    """Return what a frame has in it in every stream here."""
    return struct.pack("<Q", gfn) * (PAGE_BYTES // 8)


def page_data(gfns: list[int], types: bytes = b"") -> bytes:
    """Return a PAGE_DATA record."""
    numbers = array("Q", gfns)
    kinds = types or bytes(len(gfns))
    content = [gfn for gfn, kind in zip(gfns, kinds, strict=True) if kind in libxc.WITH_CONTENT]
    return libxc.pack_page_head(numbers, types) + b"".join(map(page, content))


def image_head(version: int = libxc.VERSION) -> bytes:
    """Return an image up to the end of its static data."""
    head = libxc.pack_image_header(version) + libxc.pack_domain_header(DomainHeader(libxc.TYPE_HVM, 4, 17))
    if version < libxc.VERSION:
        return head
    return b"".join(
        (
            head,
            libxc.pack_record(RecordType.X86_CPUID_POLICY, bytes(48)),
            libxc.pack_record(RecordType.X86_MSR_POLICY, bytes(16)),
            libxc.pack_record(RecordType.STATIC_DATA_END),
        )
    )


def state(context: bytes = b"context") -> bytes:
    """Return what ends every part of an image."""
    return b"".join(
        (
            libxc.pack_record(RecordType.X86_TSC_INFO, libxc.pack_tsc_info(TscInfo(2, 2_000_000, 5, 1))),
            libxc.pack_record(RecordType.HVM_CONTEXT, context),
            libxc.pack_record(RecordType.HVM_PARAMS, libxc.pack_hvm_params(PARAMS)),
        )
    )


def device_model() -> bytes:
    """Return libxl's records about an HVM guest's device model."""
    emulator = Emulator()
    pairs = [(b"physmap/c0000/start_addr", b"f0000000"), (b"physmap/c0000/size", b"800000")]
    return b"".join(
        (
            libxl.pack_record(
                LibxlRecordType.EMULATOR_XENSTORE_DATA, libxl.pack_xenstore_data(emulator, pairs)
            ),
            libxl.pack_record(
                LibxlRecordType.EMULATOR_CONTEXT, libxl.pack_emulator_context(emulator, b"QEVM" * 5)
            ),
        )
    )


def plain_image(version: int = libxc.VERSION) -> bytes:
    """Return the image of a plain save."""
    pages = page_data([0, 1, 2]) + page_data(
        [5, 6, 7], bytes((libxc.NORMAL, libxc.NOT_PRESENT, libxc.BROKEN))
    )
    return image_head(version) + pages + state() + libxc.pack_record(RecordType.END)


def checkpoints(count: int, *, colo: bool, features: int = libxc.FEATURE_DIRTY_BITMAP) -> bytes:
    """Return an image with so many checkpoints, libxl's records between them; it stops in the middle, as they do."""
    parts = [image_head()]
    if colo:
        parts.append(libxc.pack_record(RecordType.COLO_OFFER, libxc.pack_offer(features)))
    for number in range(count):
        parts += [
            page_data([number, 9]),
            state(b"context %d" % number),
            libxc.pack_record(RecordType.CHECKPOINT),
        ]
        parts += [device_model(), libxl.pack_record(LibxlRecordType.CHECKPOINT_END)]
        if colo:
            new = libxl.pack_checkpoint_state(CheckpointState.NEW)
            parts.append(libxl.pack_record(LibxlRecordType.CHECKPOINT_STATE, new))
    return b"".join(parts)


def in_libxl(image: bytes, *, emulator: bool = True) -> bytes:
    """Return libxl's stream around a whole image."""
    after = device_model() if emulator else b""
    start = libxl.pack_header() + libxl.pack_record(LibxlRecordType.LIBXC_CONTEXT)
    return start + image + after + libxl.pack_record(LibxlRecordType.END)


def in_xl(image: bytes, *, emulator: bool = True) -> bytes:
    """Return what xl saves around a whole image."""
    return libxl.pack_preamble(b'{"c_info": {"type": "hvm"}}') + in_libxl(image, emulator=emulator)


def images() -> list[bytes]:
    """Return images as a restoring helper reads them."""
    on_a_copy = checkpoints(2, colo=True, features=libxc.FEATURE_DIRTY_BITMAP | libxc.FEATURE_BASELINE)
    return [plain_image(), plain_image(2), checkpoints(2, colo=False), checkpoints(2, colo=True), on_a_copy]


def saved_files() -> list[bytes]:
    """Return whole streams of xl."""
    series = checkpoints(2, colo=False) + libxc.pack_record(RecordType.END)
    return [in_xl(plain_image()), in_xl(plain_image(), emulator=False), in_xl(series)]


def bitmaps() -> list[DirtyBitmap]:
    """Return one bitmap for each encoding."""
    return [
        DirtyBitmap.from_gfns((n for n in range(64) if n * n % 7 in (1, 2)), 64),
        DirtyBitmap.from_gfns((n for start in range(0, 61_000, 61) for n in range(start, start + 9)), 70_000),
        DirtyBitmap.from_gfns({n * n * 40_503 % 90_000 for n in range(300)}, 90_000),
        DirtyBitmap.from_gfns((n for start in (5, 3000, 90_000) for n in range(start, start + 300)), 95_000),
    ]


def packed_bitmaps() -> list[bytes]:
    """Return the bitmaps as they travel."""
    return [pack_bitmap(bitmap) for bitmap in bitmaps()]


def back_channel() -> list[bytes]:
    """Return what a restoring helper says on the back channel: ours, stock, and stock of 4.18 and later."""
    ours = [libxc.pack_record(RecordType.COLO_DIRTY_BITMAP, packed) for packed in packed_bitmaps()]
    lists = [pack_dirty_list(array("Q", gfns)) for gfns in ([], [0], [0, 5, 9], [3, 70_000])]
    shifted = [whole[:8] + bytes(8) + whole[8:] for whole in lists]
    return [*ours, *lists, *shifted]


def helper_messages() -> list[bytes]:
    """Return every message a helper sends."""
    some = [
        Message(Callback.LOG, (5, messages.NO_ERRNO, "xc", "starting save")),
        Message(Callback.PROGRESS, ("xc", "Frames", 1024, 4096)),
        *(Message(Callback(number), ()) for number in range(3, 7)),
        Message(Callback.SWITCH_QEMU_LOGDIRTY, (7, 1)),
        Message(Callback.RESTORE_RESULTS, (0xFEFFF, 0xFEFFE)),
        Message(Callback.COMPLETE, (-1, 32)),
    ]
    modern = [*map(messages.pack, some), messages.pack(Message(Callback.STATIC_DATA_DONE, (3,)))]
    return modern + [messages.pack(message, modern=False) for message in some]


def frames() -> list[bytes]:
    """Return frames of a channel: said about the connection, numbered, and with parts."""
    opening = {
        "session": "0123456789abcdef",
        "channel": "forward",
        "vm": "h1",
        "received": 0,
        "resumes": False,
    }
    return [
        b"".join(wire.encode(Kind.OPEN, opening)),
        b"".join(
            wire.encode(Kind.BEAT, {"n": 1, "epoch": 2, "t_us": 3, "echo_us": 4, "held_us": 5, "received": 6})
        ),
        b"".join(
            [
                *wire.encode(Kind.STREAM, {"packed": False, "bytes": 9}, (b"some data",), 1),
                *wire.encode(Kind.HASHES, {"start": 0, "count": 2, "width": 16}, (bytes(16), bytes(32)), 2),
                *wire.encode(Kind.ACK, {"received": 2}),
            ]
        ),
    ]


def hvm_context(*, rax: int = 0, tsc: int = 0) -> bytes:
    """Return what Xen keeps of a domain with one vCPU, in part."""
    cpu = bytearray(1032)
    cpu[512:520], cpu[1008:1016] = rax.to_bytes(8, "little"), tsc.to_bytes(8, "little")
    header = struct.pack("<IIQII", 0x54381286, 1, 0, 0x600F20, 2_000_000)
    msrs = struct.pack("<IIIIQ", 1, 0, 0xC0000103, 0, 5)
    records = [
        (1, 0, header),
        (2, 0, cpu),
        (5, 0, bytes(24)),
        (12, 0, bytes(1048)),
        (20, 0, msrs),
        (0, 0, b""),
    ]
    return b"".join(struct.pack("<HHI", *head, len(body)) + body for *head, body in records)


def device_state(*, footers: bool = False, seconds: int = 0, nic: bytes = bytes(40)) -> bytes:
    """Return what QEMU saves of a machine with three devices."""
    rtc = bytes((seconds,)) + bytes(244)
    state = b"QEVM" + struct.pack(">I", 3)
    for number, (name, body) in enumerate(((b"timer", bytes(24)), (b"mc146818rtc", rtc), (b"e1000", nic))):
        head = struct.pack(">BIB", 4, number, len(name)) + name + struct.pack(">II", 0, 3)
        state += head + body + (struct.pack(">BI", 0x7E, number) if footers else b"")
    return state + b"\0"


#: What a step of a script for the proxy is: by the primary, or of these, and then a look at the clock or a checkpoint.
SECONDARY, EXPIRE, CHECKPOINT, CLIENT, VNET_10, VNET_12 = 1, 2, 4, 8, 16, 32


def proxy_script(steps: list[tuple[int, bytes]]) -> bytes:
    """Return steps (kind, frame) as bytes: one for the kind, two for the length."""
    return b"".join(struct.pack("<BH", kind, len(frame)) + frame for kind, frame in steps)


def read_proxy_script(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the steps; the last frame may be cut off."""
    at = 0
    while at + 3 <= len(data):
        kind, length = struct.unpack_from("<BH", data, at)
        yield kind, data[at + 3 : at + 3 + length]
        at += 3 + length


def proxy_scripts() -> list[bytes]:
    """Return conversations as the proxy sees them."""
    stamps = (
        b"\x01\x01\x08\x0a" + struct.pack(">II", 70, 80) + b"\x01\x01\x05\x0a" + struct.pack(">II", 205, 209)
    )
    syn, fin, ack, rst = 2, 1, 16, 4
    opening = [
        (SECONDARY, made.tcp(900, 8, syn | ack, options=stamps[:12])),
        (0, made.tcp(100, 8, syn | ack, options=stamps[:12])),
        (CLIENT, made.tcp(8, 101, ack, b"get", stamps, outward=False)),
    ]
    talk = [
        (SECONDARY, made.tcp(901, 11, ack, b"answer", stamps)),
        (0, made.tcp(101, 11, ack, b"ans", stamps)),
        (0, made.tcp(104, 11, ack | fin, b"wer", stamps, pad=80)),
        (SECONDARY, made.tcp(907, 11, ack | fin)),
        (0, made.tcp(101, 11, ack, b"answer", stamps)),
    ]
    differ = [
        (0, made.tcp(101, 11, ack, b"one")),
        (SECONDARY | EXPIRE, made.tcp(901, 11, ack, b"two")),
        (CHECKPOINT, made.tcp(104, 11, rst)),
        (SECONDARY, made.tcp(104, 11, rst)),
    ]
    others = [
        (kind, frame)
        for frame in (made.udp(b"a"), made.icmp(0, 0, bytes(8)), made.arp(), made.udp(b"b", fragment=0x2000))
        for kind in (0, SECONDARY)
    ]
    partial = [
        (VNET_12 | kind, made.tcp(number, 11, flags, vnet_bytes=12, partial=True, six=True))
        for kind, number, flags in ((SECONDARY, 900, syn), (0, 100, syn), (SECONDARY, 901, ack))
    ]
    return [proxy_script(opening + talk), proxy_script(opening + differ), proxy_script(others + partial)]


def captures() -> list[bytes]:
    """Return a capture of a checkpoint and of what all three have sent."""
    capture, file = Capture(1, 1 << 16, Patience(500, 1000)), io.BytesIO()
    capture.reached(Mark.CUT, 7, 1.0)
    for whose in Whose:
        capture.sent(whose, 0, made.arp(), 2.0)
    capture.write(file)
    return [file.getvalue()]
