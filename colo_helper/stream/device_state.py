"""What QEMU saves of its devices: the sections of a migration stream without memory (``xen-save-devices-state``).

All numbers are big endian: u32 ``QEVM``, u32 version, then the sections, then one byte 0. A section is one byte 4 (FULL),
u32 id, u8 length and the device's name, u32 instance, u32 version, and its body; then, where QEMU is told to, a footer:
one byte 0x7e and u32 id. On Xen it is told not to (QEMU's accel/xen/xen-all.c: ``send-section-footer`` is off), and nothing
else tells how long a body is. So the starts are looked for, by a pattern that a body hardly has by chance. A wrong start
would only give bytes to the wrong name: each byte is compared all the same. Source: QEMU's migration/savevm.c, 7.2 to 10.0.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from colo_helper.stream.pieces import Clock, Layout, Piece, fields

MAGIC = b"QEVM"
VERSION = 3
_HEAD = struct.Struct(">4sI")
_NUMBERS = struct.Struct(">II")
_FULL, _FOOTER, _EOF = 4, 0x7E, b"\0"
_FOOTER_BYTES = 5
#: QEMU counts sections from 0, and no machine has more.
_MAX_SECTION_ID = 0xFFFF
_MAX_INSTANCE = 0xFFFF
_MAX_VERSION = 0xFFF
_START = re.compile(rb"(?=\x04\x00\x00)")
_NAME = re.compile(rb"[A-Za-z0-9/][A-Za-z0-9 _./:,@+-]+")


class DeviceStateError(Exception):
    """These bytes are no device state of QEMU's; the text says why."""


_RTC_TIME = Clock(
    "The date and time of day, which QEMU takes from the host's clock when it saves (rtc_pre_save)."
)
_RTC_TIMER = Clock("A timer on the host's clock, which goes on while the devices are stopped.")
_LAYOUTS = {
    # QEMU's softmmu/cpu-timers.c, vmstate_timers: both are still while the devices are stopped.
    "timer": Layout(fields("cpu_ticks_offset:8 -:8 cpu_clock_offset:8")),
    # QEMU's hw/rtc/mc146818rtc.c, vmstate_rtc. The guest sees Xen's clock, not this one.
    "mc146818rtc": Layout(
        fields(
            "cmos_seconds:1 -:1 cmos_minutes:1 -:1 cmos_hours:1 -:1 cmos_day_of_week:1 cmos_day_of_month:1 cmos_month:1 "
            "cmos_year:1 cmos_reg_a:1 cmos_reg_b:1 cmos_reg_c:1 cmos_reg_d:1 -:36 cmos_century:1 -:77 cmos_index:1 -:28 "
            "periodic_timer:8 next_periodic_time:8 -:24 irq_coalesced:4 period:4 base_rtc:8 last_update:8 offset:8 "
            "update_timer:8 next_alarm_time:8"
        ),
        {
            **dict.fromkeys(
                (
                    f"cmos_{name}"
                    for name in [
                        "seconds",
                        "minutes",
                        "hours",
                        "day_of_week",
                        "day_of_month",
                        "month",
                        "year",
                        "century",
                    ]
                ),
                _RTC_TIME,
            ),
            "cmos_reg_a": Clock("The bit 'update in progress' follows the host's clock.", 0x80),
            "cmos_reg_c": Clock("Flags set by timers that run on the host's clock.", 0xF0),
            **dict.fromkeys(
                ("periodic_timer", "next_periodic_time", "update_timer", "next_alarm_time"), _RTC_TIMER
            ),
        },
    ),
}


class _Start(NamedTuple):
    at: int
    body_at: int
    section_id: int
    name: str
    instance: int


def split(state: bytes) -> list[Piece]:
    """Return the sections as pieces; raises DeviceStateError."""
    if len(state) < _HEAD.size or _HEAD.unpack_from(state) != (MAGIC, VERSION):
        raise DeviceStateError(
            f"The device state does not begin with {MAGIC.decode()} and version {VERSION}."
        )
    if state[-1:] != _EOF:
        raise DeviceStateError("The device state does not end with a byte 0.")
    starts = [
        start for match in _START.finditer(state, _HEAD.size) if (start := _parse(state, match.start()))
    ]
    if not starts or starts[0].at != _HEAD.size:
        raise DeviceStateError("The device state does not go on with a section.")
    footers = state[-1 - _FOOTER_BYTES] == _FOOTER
    sections = list(_choose(state, starts, footers=footers))
    if footers and _footer(sections[-1]) != state[-1 - _FOOTER_BYTES : -1]:
        footers, sections = False, list(_choose(state, starts, footers=False))
    ends = [following.at for following in sections[1:]] + [len(state) - 1]
    return [
        Piece(
            section.name,
            section.instance,
            state[section.body_at : end - footers * _FOOTER_BYTES],
            _LAYOUTS.get(section.name, Layout()),
        )
        for section, end in zip(sections, ends, strict=True)
    ]


def _parse(state: bytes, at: int) -> _Start | None:
    """Return the start of a section at ``at``, if it is one."""
    section_id = int.from_bytes(state[at + 1 : at + 5], "big")
    name_at = at + 6
    numbers_at = name_at + (state[at + 5] if name_at <= len(state) else 0)
    body_at = numbers_at + _NUMBERS.size
    if section_id > _MAX_SECTION_ID or body_at >= len(state):
        return None
    name = state[name_at:numbers_at]
    instance, version = _NUMBERS.unpack_from(state, numbers_at)
    if not _NAME.fullmatch(name) or instance > _MAX_INSTANCE or version > _MAX_VERSION:
        return None
    return _Start(at, body_at, section_id, name.decode(), instance)


def _choose(state: bytes, starts: list[_Start], *, footers: bool) -> Iterator[_Start]:
    """Yield the starts that do not lie in another's, have no number or name that was there, and follow a footer if all do."""
    numbers: set[int] = set()
    keys: set[tuple[str, int]] = set()
    last: _Start | None = None
    for start in starts:
        key = (start.name, start.instance)
        if start.section_id in numbers or key in keys:
            continue
        if last and start.at < last.body_at + footers * _FOOTER_BYTES:
            continue
        if last and footers and state[start.at - _FOOTER_BYTES : start.at] != _footer(last):
            continue
        numbers.add(start.section_id)
        keys.add(key)
        last = start
        yield start


def _footer(section: _Start) -> bytes:
    return bytes((_FOOTER,)) + section.section_id.to_bytes(4, "big")
