"""Who else saves a domain on this host: libxl starts one save helper per `xl save`, `xl migrate` and `xl remus`."""

from __future__ import annotations

import os
from pathlib import Path

#: The first argument of a helper that saves, and where the domain's number stands after it (libxl_save_callout.c).
SAVE_ARGUMENT = "--save-domain"
_DOMID_AFTER = 3


def other_savers(domid: int, proc: Path = Path("/proc")) -> list[int]:
    """Return the pids of the other processes here that save the domain, whoever's they are."""
    found = []
    for entry in proc.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _saves(entry / "cmdline", domid):
            found.append(int(entry.name))
    return sorted(found)


def _saves(cmdline: Path, domid: int) -> bool:
    try:
        arguments = cmdline.read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
        return False
    try:
        at = arguments.index(SAVE_ARGUMENT.encode())
    except ValueError:
        return False
    return arguments[at + _DOMID_AFTER : at + _DOMID_AFTER + 1] == [str(domid).encode()]
