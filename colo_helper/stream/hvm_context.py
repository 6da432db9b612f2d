"""What Xen keeps of an HVM domain beside its memory: vCPUs, interrupt controllers, timers.

The context (``xc_domain_hvm_getcontext``) is a row of records: u16 typecode, u16 instance, u32 length, and the body,
little endian; HEADER comes first, END last. Source: Xen's xen/include/public/arch-x86/hvm/save.h, RELEASE-4.17.7; which
fields go on while a domain is paused, and which a load changes, from the save and load functions beside each reason.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from colo_helper.stream.pieces import Clock, Field, Layout, Piece, fields

HEADER, END = 1, 0
HEADER_MAGIC = 0x54381286
_DESCRIPTOR = struct.Struct("<HHI")

NAMES = {
    1: "HEADER",
    2: "CPU",
    3: "PIC",
    4: "IOAPIC",
    5: "LAPIC",
    6: "LAPIC_REGS",
    7: "PCI_IRQ",
    8: "ISA_IRQ",
    9: "PCI_LINK",
    10: "PIT",
    11: "RTC",
    12: "HPET",
    13: "PMTIMER",
    14: "MTRR",
    15: "VIRIDIAN_DOMAIN",
    16: "CPU_XSAVE",
    17: "VIRIDIAN_VCPU",
    18: "VMCE_VCPU",
    19: "TSC_ADJUST",
    20: "CPU_MSR",
}


class ContextError(Exception):
    """These bytes are no HVM context; the text says why."""


_SEGMENTS = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr"]
_CPU = " ".join(
    (
        "fpu_regs:512 rax:8 rbx:8 rcx:8 rdx:8 rbp:8 rsi:8 rdi:8 rsp:8 r8:8 r9:8 r10:8 r11:8 r12:8 r13:8 r14:8 r15:8",
        "rip:8 rflags:8 cr0:8 cr2:8 cr3:8 cr4:8 dr0:8 dr1:8 dr2:8 dr3:8 dr6:8 dr7:8",
        *(f"{segment}_sel:4" for segment in _SEGMENTS),
        *(f"{segment}_limit:4" for segment in [*_SEGMENTS, "idtr", "gdtr"]),
        *(f"{segment}_base:8" for segment in [*_SEGMENTS, "idtr", "gdtr"]),
        *(f"{segment}_arbytes:4" for segment in _SEGMENTS),
        "sysenter_cs:8 sysenter_esp:8 sysenter_eip:8 shadow_gs:8 msr_flags:8 msr_lstar:8 msr_star:8 msr_cstar:8",
        "msr_syscall_mask:8 msr_efer:8 msr_tsc_aux:8 tsc:8 pending_event:4 error_code:4 flags:4 pad0:4",
    )
)
#: Registers of the local APIC by their offset; each has 4 bytes of 16. Intel SDM volume 3, table 11-1.
_APIC = {
    0x20: "ID",
    0x30: "LVR",
    0x80: "TASKPRI",
    0xA0: "PROCPRI",
    0xB0: "EOI",
    0xD0: "LDR",
    0xE0: "DFR",
    0xF0: "SPIV",
    **{0x100 + 16 * bank: f"ISR[{bank}]" for bank in range(8)},
    **{0x180 + 16 * bank: f"TMR[{bank}]" for bank in range(8)},
    **{0x200 + 16 * bank: f"IRR[{bank}]" for bank in range(8)},
    0x280: "ESR",
    0x2F0: "CMCI",
    0x300: "ICR",
    0x310: "ICR2",
    0x320: "LVTT",
    0x330: "LVTTHMR",
    0x340: "LVTPC",
    0x350: "LVT0",
    0x360: "LVT1",
    0x370: "LVTERR",
    0x380: "TMICT",
    0x390: "TMCCT",
    0x3E0: "TDCR",
}
_TIMER = "timer{0}.config:8 timer{0}.cmp:8 timer{0}.fsb:8 -:8"
_HPET = (
    "capability:8 -:8 config:8 -:8 isr:8 -:200 mc64:8 -:8 "
    + " ".join(_TIMER.format(number) for number in range(3))
    + " -:672 period:8*3"
)
_PIT_CHANNEL = (
    "count{0}:4 latched_count{0}:2 count_latched{0}:1 status_latched{0}:1 status{0}:1 read_state{0}:1 write_state{0}:1 "
    "write_latch{0}:1 rw_mode{0}:1 mode{0}:1 bcd{0}:1 gate{0}:1"
)

_FIELDS: dict[str, tuple[Field, ...]] = {
    "HEADER": fields("magic:4 version:4 changeset:8 cpuid:4 gtsc_khz:4"),
    "CPU": fields(_CPU),
    "PIC": fields("irr:1 imr:1 isr:1 irq_base:1 init_state:1 modes:1 elcr:1 int_output:1"),
    "IOAPIC": fields("base_address:8 ioregsel:4 id:4 redirtbl:8*48"),
    "LAPIC": fields("apic_base_msr:8 disabled:4 timer_divisor:4 tdt_msr:8"),
    "LAPIC_REGS": tuple(Field(name, offset, 4) for offset, name in _APIC.items()),
    "PCI_LINK": fields("route:1*4"),
    "PIT": fields(" ".join(_PIT_CHANNEL.format(number) for number in range(3)) + " speaker_data_on:4"),
    "RTC": fields(
        "seconds:1 seconds_alarm:1 minutes:1 minutes_alarm:1 hours:1 hours_alarm:1 day_of_week:1 day_of_month:1 month:1 "
        "year:1 reg_a:1 reg_b:1 reg_c:1 reg_d:1 cmos_index:1 -:1 rtc_offset:8"
    ),
    "HPET": fields(_HPET),
    "PMTIMER": fields("tmr_val:4 pm1a_sts:2 pm1a_en:2"),
    "MTRR": fields("msr_pat_cr:8 msr_mtrr_var:8*16 msr_mtrr_fixed:8*11 msr_mtrr_cap:8 msr_mtrr_def_type:8"),
    "VIRIDIAN_DOMAIN": fields("hypercall_gpa:8 guest_os_id:8 time_ref_count:8 reference_tsc:8"),
    "CPU_XSAVE": fields("xfeature_mask:8 xcr0:8 xcr0_accum:8 fpu_sse:512 xstate_bv:8 xcomp_bv:8"),
    "VIRIDIAN_VCPU": fields(
        "vp_assist_msr:8 apic_assist_pending:1 -:7 simp_msr:8 sint_msr:8*16 stimer_config_msr:8*4 stimer_count_msr:8*4"
    ),
    "VMCE_VCPU": fields("caps:8 mci_ctl2_bank0:8 mci_ctl2_bank1:8 mcg_ext_ctl:8"),
    "TSC_ADJUST": fields("tsc_adjust:8"),
}


def _offset(record: str, name: str) -> int:
    return next(field.offset for field in _FIELDS[record] if field.name == name)


def _periodic(number: int) -> Callable[[bytes, bytes], bool]:
    """The timer is periodic (HPET_TN_PERIODIC, bit 3 of its low byte of config) on both sides."""
    at = _offset("HPET", f"timer{number}.config")
    return lambda ours, theirs: bool(ours[at] & theirs[at] & 8)


def _deadline_passed(_ours: bytes, theirs: bytes) -> bool:
    at = _offset("LAPIC", "tdt_msr")
    return not any(theirs[at : at + 8])


def _mode_loaded(number: int) -> Callable[[bytes, bytes], bool]:
    """The secondary has the mode that Xen makes of the primary's: 3 bits, of which 6 and 7 mean the same as 2 and 3."""
    at = _offset("PIT", f"mode{number}")

    def when(ours: bytes, theirs: bytes) -> bool:
        mode = ours[at] & 7
        return theirs[at] == (mode - 4 if mode > 5 else mode)

    return when


_MODE = (
    "Xen 4.19 and later settle the mode of a channel that was never programmed when they load it (pit_load)."
)
_DATE = Clock(
    "The date and time of day, which Xen takes from the host's clock when it loads the state (rtc_load)."
)
_COMPARATOR = "A periodic comparator follows the main counter, which goes on (hpet_get_comparator)."
_CLOCKS: dict[str, dict[str, Clock]] = {
    "HEADER": {
        "changeset": Clock("The version of the host's Xen; not the guest's state."),
        "cpuid": Clock("The model of the host's processor; not the guest's state (arch_hvm_save)."),
    },
    "CPU": {
        "tsc": Clock(
            "The time stamp counter as of the moment the state was read; it goes on while the domain is paused."
        )
    },
    "LAPIC": {
        "tdt_msr": Clock(
            "Xen clears a deadline that has passed by the time it is loaded, and fires at once (vlapic_tdt_msr_set).",
            when=_deadline_passed,
        )
    },
    "PIT": {f"mode{number}": Clock(_MODE, when=_mode_loaded(number)) for number in range(3)},
    "RTC": {
        **dict.fromkeys(
            ["seconds", "minutes", "hours", "day_of_week", "day_of_month", "month", "year"], _DATE
        ),
        "reg_a": Clock("The bit 'update in progress' follows the host's clock (rtc_update_timer).", 0x80),
        "reg_c": Clock("Flags set by timers that run on the host's clock (rtc_update_timer2).", 0xF0),
    },
    "HPET": {
        "mc64": Clock("The main counter, as of the moment the state was read (hpet_save)."),
        **{f"timer{number}.cmp": Clock(_COMPARATOR, when=_periodic(number)) for number in range(3)},
    },
    "PMTIMER": {
        "tmr_val": Clock("A free-running counter, as of the moment the state was read (acpi_save)."),
        "pm1a_sts": Clock("The bit TMR_STS says that the free-running counter has wrapped (acpi_save).", 1),
    },
    "CPU_XSAVE": {
        "xfeature_mask": Clock("What the host's processor can save; Xen ignores it when it loads the state.")
    },
}
#: Records that Xen takes from an earlier release as well (hvm_load_entry_zeroextend, RELEASE-4.20.4): 4.20.4's LAPIC has
#: ``pending_esr`` more than 4.17's.
_ZERO_EXTENDED = frozenset({"CPU", "LAPIC", "RTC", "VIRIDIAN_DOMAIN", "VIRIDIAN_VCPU", "VMCE_VCPU"})
_EXTENDED = (
    "The releases of Xen differ; the later one takes what the earlier one does not have for 0, and it is 0."
)


def split(context: bytes) -> list[Piece]:
    """Return the records but END, as pieces; raises ContextError."""
    pieces: list[Piece] = []
    seen: set[tuple[str, int]] = set()
    at = 0
    while True:
        if len(context) - at < _DESCRIPTOR.size:
            raise ContextError(f"The context stops at byte {at}, before a record END.")
        typecode, instance, length = _DESCRIPTOR.unpack_from(context, at)
        at += _DESCRIPTOR.size
        if length > len(context) - at:
            raise ContextError(
                f"Record {_name(typecode)} at byte {at} has {length} bytes, more than the context."
            )
        body = context[at : at + length]
        at += length
        if not pieces:
            _check_header(typecode, body)
        if typecode == END:
            break
        piece = Piece(_name(typecode), instance, body, _layout(_name(typecode), body))
        if piece.key in seen:
            raise ContextError(f"Record {piece.name} {instance} is there twice.")
        seen.add(piece.key)
        pieces.append(piece)
    if at != len(context):
        raise ContextError(f"{len(context) - at} bytes follow the record END.")
    return pieces


def _check_header(typecode: int, body: bytes) -> None:
    if typecode != HEADER or body[:4] != HEADER_MAGIC.to_bytes(4, "little"):
        raise ContextError("The context does not begin with a record HEADER.")


def _name(typecode: int) -> str:
    return NAMES.get(typecode, f"type {typecode}")


def _layout(name: str, body: bytes) -> Layout:
    if name == "CPU_MSR":
        return Layout(_msr_fields(body))
    return Layout(_FIELDS.get(name, ()), _CLOCKS.get(name), _EXTENDED if name in _ZERO_EXTENDED else "")


def _msr_fields(body: bytes) -> tuple[Field, ...]:
    """Name the values by their registers' numbers: u32 count, padding, then (u32 index, u32 reserved, u64 value) each."""
    return tuple(
        Field(f"MSR {int.from_bytes(body[at : at + 4], 'little'):#x}", at + 8, 8)
        for at in range(8, len(body) - 15, 16)
    )
