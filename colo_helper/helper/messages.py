"""The messages between the helper and its parent, both directions.

Source: tools/libs/light/libxl_save_msgs_gen.pl of 4.17. The helper writes to its stdout, in native byte order:

| bytes | what |
|---|---|
| 2 | length of what follows, below 65,536 |
| 2 | number of the message |
| ... | arguments: numbers of 4 or 8 bytes; texts as 4 bytes of length, the text and its NUL |

The parent answers on the helper's stdin with one int for each message that wants a reply. Nobody answers out of turn,
and neither side may read more than that: a reply is 4 bytes, a message is a header and what it announces.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum, unique
from typing import NamedTuple

HEADER = struct.Struct("=HH")
REPLY = struct.Struct("=i")
MAX_BODY_BYTES = 65535
#: A log line is cut here, so that two texts always fit into a message.
MAX_TEXT_BYTES = 16 << 10
NO_ERRNO = 0xFFFFFFFF
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_INT = struct.Struct("=i")


class MessageError(Exception):
    """A message that breaks the contract; the text says how."""


@unique
class Level(IntEnum):
    """xentoollog levels."""

    DEBUG = 1
    VERBOSE = 2
    DETAIL = 3
    PROGRESS = 4
    INFO = 5
    NOTICE = 6
    WARN = 7
    ERROR = 8
    CRITICAL = 9


@unique
class Callback(IntEnum):
    """Every message by its number since 4.14; ``1 << number`` is the bit that says the parent serves it."""

    LOG = 1
    PROGRESS = 2
    SUSPEND = 3
    POSTCOPY = 4
    CHECKPOINT = 5
    WAIT_CHECKPOINT = 6
    SWITCH_QEMU_LOGDIRTY = 7
    STATIC_DATA_DONE = 8
    RESTORE_RESULTS = 9
    COMPLETE = 10


#: Arguments by type: u = 32 bits, U = 64 bits, i = int, s = text.
_ARGUMENTS: dict[Callback, str] = {
    Callback.LOG: "uuss",
    Callback.PROGRESS: "ssUU",
    Callback.SUSPEND: "",
    Callback.POSTCOPY: "",
    Callback.CHECKPOINT: "",
    Callback.WAIT_CHECKPOINT: "",
    Callback.SWITCH_QEMU_LOGDIRTY: "uu",
    Callback.STATIC_DATA_DONE: "u",
    Callback.RESTORE_RESULTS: "UU",
    Callback.COMPLETE: "ii",
}
#: Messages that nobody answers.
WITHOUT_REPLY = frozenset((Callback.LOG, Callback.PROGRESS, Callback.RESTORE_RESULTS))

_NUMBERS: dict[str, struct.Struct] = {"u": _U32, "U": _U64, "i": _INT}


class Message(NamedTuple):
    """One message of the helper: which, and its arguments in order."""

    callback: Callback
    arguments: tuple[int | str, ...]


def wire_number(callback: Callback, modern: bool) -> int:
    """Return the number a message has on the wire: before 4.14 there was no STATIC_DATA_DONE."""
    if modern or callback < Callback.STATIC_DATA_DONE:
        return callback.value
    if callback is Callback.STATIC_DATA_DONE:
        raise MessageError("A parent of before Xen 4.14 has no callback for static data.")
    return callback.value - 1


def callback_of(number: int, modern: bool) -> Callback:
    """Return the message of a number on the wire; raises MessageError."""
    try:
        return Callback(number if modern or number < Callback.STATIC_DATA_DONE else number + 1)
    except ValueError:
        raise MessageError(f"The helper sent a message of the unknown number {number}.") from None


def callback_bit(callback: Callback, modern: bool) -> int:
    """Return the bit of a callback in the argument ``callbacks``."""
    return 1 << wire_number(callback, modern)


def pack(message: Message, modern: bool = True) -> bytes:
    """Return a message as bytes to be written at once; raises MessageError when it is too long."""
    body = bytearray()
    for kind, argument in zip(_ARGUMENTS[message.callback], message.arguments, strict=True):
        if kind == "s":
            text = str(argument).encode(errors="replace")[:MAX_TEXT_BYTES].replace(b"\0", b" ") + b"\0"
            body += _U32.pack(len(text)) + text
        else:
            body += _NUMBERS[kind].pack(argument)
    # The length counts the number of the message as well.
    length = len(body) + 2
    if length > MAX_BODY_BYTES:
        raise MessageError(f"The message {message.callback.name} has {length} bytes, too many.")
    return HEADER.pack(length, wire_number(message.callback, modern)) + bytes(body)


def parse(number: int, body: bytes, modern: bool = True) -> Message:
    """Read the arguments of a message; raises MessageError."""
    callback = callback_of(number, modern)
    arguments: list[int | str] = []
    at = 0
    try:
        for kind in _ARGUMENTS[callback]:
            if kind == "s":
                (length,) = _U32.unpack_from(body, at)
                text = body[at + 4 : at + 4 + length]
                if length == 0 or len(text) != length or text[-1]:
                    raise MessageError(f"A text in the message {callback.name} does not end where it says.")
                arguments.append(text[:-1].decode(errors="replace"))
                at += 4 + length
            else:
                arguments.append(_NUMBERS[kind].unpack_from(body, at)[0])
                at += _NUMBERS[kind].size
    except struct.error:
        raise MessageError(f"The message {callback.name} ends too early, after {len(body)} bytes.") from None
    if at != len(body):
        raise MessageError(f"The message {callback.name} has {len(body) - at} bytes too many.")
    return Message(callback, tuple(arguments))


def read_message(read_exact: Callable[[int], bytes], modern: bool = True) -> Message:
    """Read one message, and not a byte more; ``read_exact`` raises EOFError at the end of the stream."""
    length, number = HEADER.unpack(read_exact(HEADER.size))
    if length < 2:
        raise MessageError(f"The helper sent a message of {length} bytes.")
    return parse(number, read_exact(length - 2), modern)
