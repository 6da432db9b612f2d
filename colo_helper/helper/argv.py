"""What a parent asks of the helper, as argv: the forms of Xen 4.7 to today, told apart by count and checked by shape.

Source: tools/libs/light/libxl_save_helper.c and libxl_save_callout.c of 4.17, their forerunners of 4.7 to 4.13, and the
patch of 2015 that brought the back channel, whose form is that of 4.7. All arguments are decimal numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum, unique
from typing import NamedTuple

from colo_helper.hypervisor.savers import SAVE_ARGUMENT

SAVE, RESTORE = SAVE_ARGUMENT, "--restore-domain"

#: XCFLAGS_LIVE of xenguest.h, in the argument ``flags`` of a save. XCFLAGS_DEBUG (1 << 1) is accepted and changes nothing.
FLAG_LIVE = 1 << 0
#: Ours, for COLO: there is a copy already. Log-dirty is on since before it was made, and what it logged, with what the
#: back channel names, is all that may differ. B comes before the callback ``suspend``, also before the first: the parent
#: stops the secondary first, so D is sent while the guest still runs. A paused guest counts as suspended. libxl never
#: sets it.
FLAG_BASELINE = 1 << 16
#: Ours, for a plain save: this makes such a copy. A paused guest counts as suspended, and log-dirty stays on at the end.
FLAG_FIRST_COPY = 1 << 17

NO_FD = -1
#: DOMID_FIRST_RESERVED
_DOMID_LIMIT = 0x7FF0
_INT_LIMIT = 1 << 31
_WORD_LIMIT = 1 << 64


class UsageError(Exception):
    """The arguments are none of the known forms; the text says what was got and what is known."""


@unique
class StreamType(IntEnum):
    """xc_stream_type_t."""

    PLAIN = 0
    REMUS = 1
    COLO = 2


class SaveRequest(NamedTuple):
    """What to save. ``callbacks`` has a bit for each callback the parent serves, as ``messages`` numbers them."""

    domid: int
    flags: int = 0
    stream_type: StreamType = StreamType.PLAIN


class RestoreRequest(NamedTuple):
    """What to restore into: a domain that exists, empty and paused, and its event channels and their domains."""

    domid: int
    store_evtchn: int
    console_evtchn: int
    store_domid: int = 0
    console_domid: int = 0
    stream_type: StreamType = StreamType.PLAIN


class Results:
    """What a restore has found out for its parent: the frames of the xenstore and the console ring, 0 until then."""

    __slots__ = ("console_gfn", "store_gfn")

    def __init__(self) -> None:
        self.store_gfn = 0
        self.console_gfn = 0


class Invocation(NamedTuple):
    """One parsed command line. ``back_fd`` may be NO_FD; ``modern``: the message numbers are those of 4.14 and later."""

    request: SaveRequest | RestoreRequest
    stream_fd: int
    back_fd: int
    callbacks: int
    modern: bool


#: Names of the arguments after the mode, by count; first the form of today.
_SAVE_FORMS: dict[int, tuple[str, ...]] = {
    6: ("stream_fd", "back_fd", "domid", "flags", "callbacks", "stream_type"),
    7: ("stream_fd", "back_fd", "domid", "flags", "hvm", "callbacks", "stream_type"),
    9: (
        "stream_fd",
        "back_fd",
        "domid",
        "max_iters",
        "max_factor",
        "flags",
        "hvm",
        "callbacks",
        "stream_type",
    ),
}
_PORTS = ("store_evtchn", "store_domid", "console_evtchn", "console_domid")
_RESTORE_FORMS: dict[int, tuple[str, ...]] = {
    9: ("stream_fd", "back_fd", "domid", *_PORTS, "callbacks", "stream_type"),
    11: ("stream_fd", "back_fd", "domid", *_PORTS, "hvm", "pae", "callbacks", "stream_type"),
    12: ("stream_fd", "back_fd", "domid", *_PORTS, "hvm", "pae", "superpages", "callbacks", "stream_type"),
}
_RELEASES = {
    SAVE: {6: "4.14 and later", 7: "4.11 to 4.13", 9: "4.7 to 4.10 and the patch of 2015"},
    RESTORE: {9: "4.14 and later", 11: "4.11 to 4.13", 12: "4.7 to 4.10 and the patch of 2015"},
}
_LIMITS = {
    "stream_fd": _INT_LIMIT,
    "back_fd": _INT_LIMIT,
    "domid": _DOMID_LIMIT,
    "store_domid": 1 << 16,
    "console_domid": 1 << 16,
    "hvm": 2,
    "pae": 2,
    "superpages": 2,
    "stream_type": len(StreamType),
    "callbacks": 1 << 32,
    "flags": 1 << 32,
}


def parse(arguments: Sequence[str]) -> Invocation:
    """Read the arguments after the program's name; raises UsageError and touches nothing."""
    mode = arguments[0] if arguments else ""
    if mode not in (SAVE, RESTORE):
        raise UsageError(f"The first argument is {mode!r}, neither {SAVE} nor {RESTORE}.\n{_known()}")
    forms = _SAVE_FORMS if mode == SAVE else _RESTORE_FORMS
    names = forms.get(len(arguments) - 1)
    if names is None:
        raise UsageError(
            f"{mode} came with {len(arguments) - 1} arguments: {_quote(arguments[1:])}.\n{_known()}"
        )
    values = {name: _number(name, text, arguments) for name, text in zip(names, arguments[1:], strict=True)}
    stream_type = StreamType(values["stream_type"])
    request: SaveRequest | RestoreRequest
    if mode == SAVE:
        request = SaveRequest(values["domid"], values["flags"], stream_type)
    else:
        ports = {name: values[name] for name in _PORTS}
        request = RestoreRequest(values["domid"], stream_type=stream_type, **ports)
    modern = names == next(iter(forms.values()))
    return Invocation(request, values["stream_fd"], values["back_fd"], values["callbacks"], modern)


def build(request: SaveRequest | RestoreRequest, stream_fd: int, back_fd: int, callbacks: int) -> list[str]:
    """Return the arguments after the program's name, in the form of today."""
    if isinstance(request, SaveRequest):
        mode, names = SAVE, _SAVE_FORMS[6]
    else:
        mode, names = RESTORE, _RESTORE_FORMS[9]
    given = {"stream_fd": stream_fd, "back_fd": back_fd, "callbacks": callbacks}
    values = [given[name] if name in given else int(getattr(request, name)) for name in names]
    return [mode, *map(str, values)]


def _number(name: str, text: str, arguments: Sequence[str]) -> int:
    if name == "back_fd" and text == str(NO_FD):
        return NO_FD
    # As libxl prints them; int() would take signs, blanks and underscores as well.
    value = int(text) if re.fullmatch("[0-9]{1,20}", text) else _WORD_LIMIT
    if value >= _LIMITS.get(name, _WORD_LIMIT):
        raise UsageError(
            f"The argument {name} of {arguments[0]} is {text!r} in {_quote(arguments[1:])}.\n{_known()}"
        )
    return value


def _quote(arguments: Sequence[str]) -> str:
    return " ".join(arguments) or "none"


def _known() -> str:
    lines = [
        f"  {mode} {' '.join(names)}   (Xen {_RELEASES[mode][count]})"
        for mode, forms in ((SAVE, _SAVE_FORMS), (RESTORE, _RESTORE_FORMS))
        for count, names in forms.items()
    ]
    return "\n".join(["Known forms:", *lines])
