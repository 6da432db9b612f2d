"""Streams that no saver writes: each is refused with a sentence, before anything of a later checkpoint is applied."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

import pytest

from colo_helper.hypervisor.interface import PAGE_BYTES
from colo_helper.stream.libxc import RecordType, pack_record
from tests.unit.colo_helper.fault_bench import FRAMES, prepare
from tests.unit.colo_helper.fault_images import Found, assert_failed, image, records
from tests.unit.colo_helper.fault_runs import (
    LIBXL,
    PLAIN_LIVE,
    Mode,
    Restoring,
    checkpointed,
    every_mode,
)


@pytest.fixture(autouse=True)
def on_the_bench(monkeypatch):
    prepare(monkeypatch)


# ------------------------------------------------------------------------------------------------ nonsense in the stream


def header(kind: int, length: int) -> bytes:
    return struct.pack("<II", kind, length)


def entries(body: bytes, change: Callable[[list[int]], list[int]], count: int | None = None) -> bytes:
    """PAGE_DATA with other entries; the pages stay."""
    (claimed,) = struct.unpack_from("<I", body)
    numbers = list(struct.unpack_from(f"<{claimed}Q", body, 8))
    numbers = change(numbers)
    pages = body[8 + 8 * claimed :]
    return (
        struct.pack("<II", claimed if count is None else count, 0)
        + struct.pack(f"<{len(numbers)}Q", *numbers)
        + pages
    )


def page_faults(found: Found) -> Iterator[tuple[str, bytes, str]]:
    kind, body = found.kind, found.body
    yield "no pages", pack_record(kind, bytes(8)), "has no pages"
    yield "no count", pack_record(kind, b"\1\0\0\0"), "too few for its count"
    yield "128 MiB", header(kind, 128 << 20) + body, "PAGE_DATA record has 134217728 bytes"
    yield "too many pages", pack_record(kind, entries(body, lambda n: n, 1 << 20)), "claims 1048576 pages"
    yield "one page too many", header(kind, len(body) + PAGE_BYTES) + body, "of them with content, take"
    yield (
        "one page too few",
        pack_record(kind, body[: 8 + 8 * body[0]]),
        "of them with content, take" if len(body) > PAGE_BYTES else "",
    )
    yield (
        "beyond the domain",
        pack_record(kind, entries(body, lambda n: [(1 << 20) + 2 * FRAMES, *n[1:]])),
        "is named",
    )
    yield (
        "far beyond",
        pack_record(kind, entries(body, lambda n: [*n[:-1], n[-1] | (1 << 52) - 1])),
        "is named",
    )
    yield (
        "reserved",
        pack_record(kind, entries(body, lambda n: [n[0] | 1 << 52, *n[1:]])),
        "has reserved bits",
    )
    for nibble in (5, 6, 7, 8):
        wrong = entries(body, lambda n, nibble=nibble: [n[0] & (1 << 52) - 1 | nibble << 60, *n[1:]])
        yield f"type {nibble}", pack_record(kind, wrong), "has the invalid type"


def small_faults(found: Found) -> Iterator[tuple[str, bytes, str]]:
    kind, body = found.kind, found.body
    if kind == RecordType.X86_TSC_INFO:
        yield "a long TSC", pack_record(kind, body + bytes(8)), "A TSC record has 32 bytes"
        yield "no TSC", pack_record(kind), "A TSC record has 0 bytes"
    elif kind == RecordType.HVM_PARAMS:
        yield "no count", pack_record(kind), "too few for its count"
        yield "more params", pack_record(kind, b"\xff" + body[1:]), "claims 255 parameters"
        yield "fewer params", pack_record(kind, body[:-16]), "parameters"
        yield (
            "no such param",
            pack_record(kind, body[:8] + struct.pack("<Q", 1 << 32 | 1) + body[16:]),
            "0x100000001",
        )
    elif kind == RecordType.HVM_CONTEXT:
        yield "no context", b"", "The state of the CPUs has not come."
        yield "an empty context", pack_record(kind), "The state of the CPUs has not come."
        yield "a vast context", header(kind, (4 << 20) + 8) + body, "more than the 4194304 it may have"
    elif kind in (RecordType.X86_CPUID_POLICY, RecordType.X86_MSR_POLICY):
        yield "half a policy", pack_record(kind, body[:-8]), "not a multiple of"
        yield "no policy", pack_record(kind), "not a multiple of"
    elif kind == RecordType.COLO_OFFER:
        yield "half an offer", pack_record(kind, body[:4]), "An offer has 4 bytes"
    else:
        assert kind in (RecordType.STATIC_DATA_END, RecordType.CHECKPOINT, RecordType.END)
        yield "not empty", pack_record(kind, bytes(8)), "it must have none"


def inserted(kept: bool, version3: bool, checkpoint: bool) -> Iterator[tuple[str, bytes, str]]:
    """Records that cannot stand in front of this one. ``kept``: in a later checkpoint; ``checkpoint``: ... may end one."""
    yield "a PV record", pack_record(0x02, bytes(8)), "A record of the unknown type 0x2"
    yield "an unknown one", pack_record(0x7F), "A record of the unknown type 0x7f"
    yield "a vast unknown one", header(0x8000_7777, 5 << 20), "claims 5242880 bytes"
    yield "a list", pack_record(RecordType.CHECKPOINT_DIRTY_PFN_LIST, bytes(8)), "belongs on the back channel"
    yield "a bitmap", pack_record(RecordType.COLO_DIRTY_BITMAP, bytes(8)), "belongs on the back channel"
    yield (
        "a verification",
        pack_record(RecordType.VERIFY),
        "cannot be part of" if kept else "to be compared with",
    )
    yield "a toolstack record", pack_record(RecordType.TOOLSTACK, bytes(8)), "TOOLSTACK cannot be"
    yield "an overlong one", header(RecordType.HVM_CONTEXT, 0xFFFFFFFF), "a record has at most"
    if version3:
        again = "cannot be part of a checkpoint" if kept else "STATIC_DATA_END came a second time"
        yield "STATIC_DATA_END", pack_record(RecordType.STATIC_DATA_END), again
        where = "cannot be part of a checkpoint" if kept else "came where it must not"
        yield "a policy", pack_record(RecordType.X86_CPUID_POLICY, bytes(24)), where
    if kept:
        yield "an offer", pack_record(RecordType.COLO_OFFER, bytes(8)), "cannot be part of a checkpoint"
    if checkpoint:
        yield "CHECKPOINT", pack_record(RecordType.CHECKPOINT), "The state of the CPUs has not come"


@every_mode
def test_nonsense_in_the_stream(mode):
    whole = image(mode)
    cases = 0
    static_done = context = False
    for found in records(whole.data):
        k = whole.complete(found.at)
        faults = list(page_faults(found) if found.kind == RecordType.PAGE_DATA else small_faults(found))
        end = found.at + 8 + len(found.body) + -len(found.body) % 8
        for what, data, words in faults:
            if words:
                refused(mode, whole.data[: found.at] + data + whole.data[end:], (found, what), k, words)
                cases += 1
        context = context and found.at not in whole.ends
        for what, data, words in inserted(whole.kept(found.at), static_done, not context and mode.last != ""):
            refused(mode, whole.data[: found.at] + data + whole.data[found.at :], (found, what), k, words)
            cases += 1
        static_done = static_done or found.kind == RecordType.STATIC_DATA_END
        context = context or found.kind == RecordType.HVM_CONTEXT
    assert cases > 100


def refused(mode: Mode, data: bytes, where: object, k: int, words: str) -> None:
    run = Restoring(mode, data).run()
    assert_failed(run, str(where)[:200], (-1, errno.EINVAL), words)
    assert run.parent.called.count("checkpoint") == k, (
        f"{where}: the parent was asked before all of it had been checked"
    )
    if k:
        assert run.domain.state() == image(mode).untouched[k], f"{where}: the copy is not what it was"


HEADERS = {
    "no marker": (0, b"\0", "its marker is missing"),
    "another ident": (8, b"LIBX", "its marker is missing"),
    "revision 4": (15, b"\4", "The image is of revision 4"),
    "big endian": (17, b"\1", "big endian"),
    "PV": (24, b"\1", "The image is of a PV guest"),
    "an unknown guest": (24, b"\7", "the unknown type 7"),
    "large pages": (28, b"\x15", "pages of 2^21 bytes"),
}


@every_mode
@pytest.mark.parametrize(("at", "data", "words"), HEADERS.values(), ids=HEADERS)
def test_headers_of_another_image(mode, at, data, words):
    whole = image(mode).data
    run = Restoring(mode, whole[:at] + data + whole[at + len(data) :]).run()
    assert_failed(run, words, (-1, errno.EINVAL), words)
    assert run.domain.journal == ["close"]


def test_a_policy_in_an_image_of_revision_2():
    whole = image(PLAIN_LIVE).data
    run = Restoring(PLAIN_LIVE, whole[:15] + b"\2" + whole[16:]).run()
    assert_failed(run, "revision 2", (-1, errno.EINVAL), "X86_CPUID_POLICY came where it must not")


@every_mode
def test_a_frame_that_is_given_back_twice(mode):
    """Odd, but not wrong; the hypervisor would refuse the second time."""
    whole = image(mode)
    gone = struct.pack("<IIQQ", 2, 0, *[12 | 0xF << 60] * 2)
    last = [found for found in records(whole.data) if found.kind == RecordType.X86_TSC_INFO][-1]
    run = Restoring(
        mode, whole.data[: last.at] + pack_record(RecordType.PAGE_DATA, gone) + whole.data[last.at :]
    ).run()
    assert run.completed == (0, 0), run
    assert run.domain.journal.count("depopulate") == 1
    assert 12 not in run.domain.memory


def test_a_checkpoint_in_a_plain_image():
    whole = image(PLAIN_LIVE).data
    run = Restoring(PLAIN_LIVE, whole[:-8] + pack_record(RecordType.CHECKPOINT) + LIBXL).run()
    assert_failed(run, "at the end", (-1, errno.EINVAL), "A checkpoint came in a plain image")
    assert run.domain.grants is None


@checkpointed
def test_more_frames_than_the_domain_may_have(mode):
    """The hypervisor refuses them: that is a failure of this host."""
    whole = image(mode)
    first = next(
        found
        for found in records(whole.data)
        if found.kind == RecordType.PAGE_DATA and found.at > whole.ends[0]
    )
    many = range(1000, 1000 + 2 * FRAMES)
    data = (
        struct.pack("<II", len(many), 0)
        + struct.pack(f"<{len(many)}Q", *many)
        + bytes(PAGE_BYTES * len(many))
    )
    run = Restoring(
        mode, whole.data[: first.at] + pack_record(RecordType.PAGE_DATA, data) + whole.data[first.at :]
    ).run()
    assert_failed(run, "too many", (-1, errno.ENOMEM), "the host's memory or the domain's limit is used up")
