"""The toolstack's part of a stream: xl's preamble, libxl's header and its records.

Sources of the formats: Xen's docs/specs/libxl-migration-stream.pandoc, version 2, and xl's save file header
(tools/xl/xl.h). A saved or migrated guest is nested::

    xl preamble                     48 bytes, then optional data: the guest's configuration as JSON
    libxl header                    16 bytes, big endian
    libxl records                   8 bytes of header, body, zeros up to a multiple of 8; little endian
      LIBXC_CONTEXT                 after which the libxc image stands (stream.libxc), and then libxl goes on

| libxl record | body |
|---|---|
| 0 END | none |
| 1 LIBXC_CONTEXT | none |
| 2 EMULATOR_XENSTORE_DATA | u32 emulator, u32 index, then key, NUL, value, NUL, ... with relative keys |
| 3 EMULATOR_CONTEXT | u32 emulator, u32 index, the device model's own state |
| 4 CHECKPOINT_END | none |
| 5 CHECKPOINT_STATE | u32 state |

On the back channel libxl's records stand bare, without a header. Nothing in this module does I/O; every length is
bounded before anything is read for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import NamedTuple

from colo_helper.stream.libxc import OPTIONAL, RECORD_HEADER_BYTES, StreamError, padding

HEADER_BYTES = 16
PREAMBLE_BYTES = 48
#: The guest's configuration as JSON has a few KiB.
MAX_OPTIONAL_DATA_BYTES = 1 << 20
#: A device model's state has tens to hundreds of KiB, the guest's memory is not in it.
MAX_EMULATOR_CONTEXT_BYTES = 16 << 20
#: Xenstore keeps a value below 4 KiB, and a device model has few.
MAX_XENSTORE_DATA_BYTES = 1 << 20

_IDENT = 0x4C6962786C466D74  # "LibxlFmt"
_VERSION = 2
_BIG_ENDIAN, _LEGACY = 1 << 0, 1 << 1
_HEADER = struct.Struct(">QII")
_RECORD_HEADER = struct.Struct("<II")
_EMULATOR = struct.Struct("<II")
_STATE = struct.Struct("<I")

_MAGIC = b"Xen saved domain, xl format\n \0 \r"
_BYTE_ORDER = 0x01020304
_PREAMBLE = struct.Struct("<32sIIII")
_CONFIG_LENGTH = struct.Struct("<I")
#: Mandatory flags of the preamble: the configuration is JSON, the stream is of version 2.
FLAG_JSON = 1 << 0
FLAG_STREAM_V2 = 1 << 1


@unique
class LibxlRecordType(IntEnum):
    """libxl's records."""

    END = 0
    LIBXC_CONTEXT = 1
    EMULATOR_XENSTORE_DATA = 2
    EMULATOR_CONTEXT = 3
    CHECKPOINT_END = 4
    CHECKPOINT_STATE = 5


#: The bytes a body may have, from and to.
_LENGTHS: dict[int, tuple[int, int]] = {
    LibxlRecordType.END: (0, 0),
    LibxlRecordType.LIBXC_CONTEXT: (0, 0),
    LibxlRecordType.EMULATOR_XENSTORE_DATA: (_EMULATOR.size, MAX_XENSTORE_DATA_BYTES),
    LibxlRecordType.EMULATOR_CONTEXT: (_EMULATOR.size, MAX_EMULATOR_CONTEXT_BYTES),
    LibxlRecordType.CHECKPOINT_END: (0, 0),
    LibxlRecordType.CHECKPOINT_STATE: (_STATE.size, _STATE.size),
}


@unique
class CheckpointState(IntEnum):
    """What the two libxl of a COLO pair tell each other; the first goes to the secondary, the others come back."""

    NEW = 0
    SVM_SUSPENDED = 1
    SVM_READY = 2
    SVM_RESUMED = 3


@unique
class EmulatorKind(IntEnum):
    """Device models."""

    UNKNOWN = 0
    QEMU_TRADITIONAL = 1
    QEMU_XEN = 2


@dataclass(frozen=True, slots=True)
class Emulator:
    """Which device model a record is about; ``index`` is 0 as long as there is only one."""

    kind: EmulatorKind = EmulatorKind.QEMU_XEN
    index: int = 0


class Preamble(NamedTuple):
    """What xl writes before libxl's stream: its flags, and how much optional data follows."""

    mandatory_flags: int
    optional_flags: int
    optional_bytes: int


# --------------------------------------------------------------------------------------------------- xl's preamble


def pack_preamble(config: bytes) -> bytes:
    """Return the preamble with the guest's configuration (JSON without the NUL at its end)."""
    optional = _CONFIG_LENGTH.pack(len(config) + 1) + config + b"\0"
    flags = FLAG_JSON | FLAG_STREAM_V2
    return _PREAMBLE.pack(_MAGIC, _BYTE_ORDER, flags, 0, len(optional)) + optional


def parse_preamble(data: bytes) -> Preamble:
    """Read the PREAMBLE_BYTES; raises StreamError."""
    magic, byte_order, mandatory, optional, length = _PREAMBLE.unpack(data)
    if magic != _MAGIC:
        raise StreamError("This was not saved by xl: its magic string is missing.")
    if byte_order != _BYTE_ORDER:
        raise StreamError("xl's preamble is in another byte order; it cannot be of an x86 host.")
    if mandatory & ~(FLAG_JSON | FLAG_STREAM_V2):
        raise StreamError(f"xl's preamble has mandatory flags that nobody knows here: {mandatory:#x}.")
    if not mandatory & FLAG_STREAM_V2:
        raise StreamError("The stream is in the legacy format of before Xen 4.6; convert it first.")
    if length > MAX_OPTIONAL_DATA_BYTES:
        raise StreamError(
            f"xl's preamble announces {length} bytes of configuration; at most {MAX_OPTIONAL_DATA_BYTES} are read."
        )
    return Preamble(mandatory, optional, length)


def parse_optional_data(data: bytes) -> bytes:
    """Return the configuration in the preamble's optional data, without its NUL; raises StreamError."""
    if not data:
        return b""
    if len(data) < _CONFIG_LENGTH.size:
        raise StreamError(
            f"xl's optional data has {len(data)} bytes, too few for the configuration's length."
        )
    (length,) = _CONFIG_LENGTH.unpack_from(data)
    config = data[_CONFIG_LENGTH.size : _CONFIG_LENGTH.size + length]
    if len(config) != length:
        raise StreamError(f"xl's configuration claims {length} bytes; {len(config)} are there.")
    return config.removesuffix(b"\0")


# --------------------------------------------------------------------------------------------------- libxl's header


def pack_header() -> bytes:
    """Return the HEADER_BYTES that libxl's stream begins with."""
    return _HEADER.pack(_IDENT, _VERSION, 0)


def parse_header(data: bytes) -> None:
    """Check libxl's header; raises StreamError."""
    ident, version, options = _HEADER.unpack(data)
    if ident != _IDENT:
        raise StreamError("This is no stream of libxl: its identifier is missing.")
    if version != _VERSION:
        raise StreamError(f"libxl's stream is of version {version}; version {_VERSION} can be read.")
    if options & _BIG_ENDIAN:
        raise StreamError("libxl's stream is big endian; it cannot be of an x86 host.")
    if options & ~_LEGACY:
        raise StreamError(f"libxl's stream has options that nobody knows here: {options:#x}.")


# --------------------------------------------------------------------------------------------------------- records


def pack_record(kind: LibxlRecordType, body: bytes = b"") -> bytes:
    """Return a whole record, padded; raises StreamError when its body is too long."""
    _check_length(kind, len(body))
    return _RECORD_HEADER.pack(kind, len(body)) + body + bytes(padding(len(body)))


def parse_record_header(data: bytes) -> tuple[int, int]:
    """Return (type, bytes of the body); raises StreamError for lengths that cannot be, and for unknown types.

    Types from 0x80000000 are optional by the specification; nobody defined one yet, so only an empty one is skipped.
    """
    kind, length = _RECORD_HEADER.unpack(data[:RECORD_HEADER_BYTES])
    _check_length(kind, length)
    return kind, length


def pack_xenstore_data(emulator: Emulator, pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the body of EMULATOR_XENSTORE_DATA; raises StreamError for a key or value that cannot be in one."""
    body = bytearray(_EMULATOR.pack(emulator.kind, emulator.index))
    for key, value in pairs:
        _check_key(key)
        if b"\0" in key or b"\0" in value:
            raise StreamError(f"Xenstore data of a device model has a NUL in {key!r}.")
        body += key + b"\0" + value + b"\0"
    return bytes(body)


def parse_xenstore_data(body: bytes) -> tuple[Emulator, tuple[tuple[bytes, bytes], ...]]:
    """Read the body of EMULATOR_XENSTORE_DATA: the device model, and (relative key, value); raises StreamError."""
    emulator, text = _split_emulator(body)
    *words, rest = text.split(b"\0")
    if rest or len(words) % 2:
        raise StreamError("Xenstore data of a device model does not end after a value.")
    for key in words[::2]:
        _check_key(key)
    return emulator, tuple(zip(words[::2], words[1::2], strict=True))


def pack_emulator_context(emulator: Emulator, state: bytes) -> bytes:
    """Return the body of EMULATOR_CONTEXT."""
    return _EMULATOR.pack(emulator.kind, emulator.index) + state


def parse_emulator_context(body: bytes) -> tuple[Emulator, bytes]:
    """Read the body of EMULATOR_CONTEXT: the device model and its state; raises StreamError."""
    return _split_emulator(body)


def pack_checkpoint_state(state: CheckpointState) -> bytes:
    """Return the body of CHECKPOINT_STATE."""
    return _STATE.pack(state)


def parse_checkpoint_state(body: bytes) -> CheckpointState:
    """Read the body of CHECKPOINT_STATE; raises StreamError."""
    if len(body) != _STATE.size:
        raise StreamError(f"libxl's CHECKPOINT_STATE has {len(body)} bytes instead of {_STATE.size}.")
    (state,) = _STATE.unpack(body)
    try:
        return CheckpointState(state)
    except ValueError:
        raise StreamError(f"libxl's CHECKPOINT_STATE is of the unknown state {state}.") from None


def name_of(kind: int) -> str:
    """Return a record type for a sentence."""
    try:
        return f"libxl's record {LibxlRecordType(kind).name}"
    except ValueError:
        return f"libxl's record of the unknown type {kind:#x}"


def _check_length(kind: int, length: int) -> None:
    least, most = _LENGTHS.get(kind, (0, 0 if kind & OPTIONAL else -1))
    if most < 0:
        raise StreamError(f"{name_of(kind)} cannot be read.")
    if not least <= length <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise StreamError(f"{name_of(kind)} claims {length} bytes; it has {wanted}.")


def _split_emulator(body: bytes) -> tuple[Emulator, bytes]:
    if len(body) < _EMULATOR.size:
        raise StreamError(f"A record of {len(body)} bytes does not say which device model it is about.")
    kind, index = _EMULATOR.unpack_from(body)
    try:
        return Emulator(EmulatorKind(kind), index), body[_EMULATOR.size :]
    except ValueError:
        raise StreamError(f"A record is about a device model of the unknown kind {kind}.") from None


def _check_key(key: bytes) -> None:
    if not key or key.startswith(b"/"):
        raise StreamError(f"Xenstore data of a device model has {key!r} where a relative key should be.")
