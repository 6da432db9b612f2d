"""Files that a reader never sees half written."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_file(path: Path, write: Callable[[BinaryIO], object], mode: int = 0o600) -> None:
    """Replace ``path`` by what ``write`` writes: temporary file, fsync, rename. Raises OSError; the old file then stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace ``path`` by a JSON object that everybody may read; see ``write_file``."""
    data = json.dumps(value, indent=1).encode() + b"\n"
    write_file(path, lambda file: file.write(data), 0o644)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises OSError, and ValueError when it is something else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object.")
    return value


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line with a single write, so that lines of two writers never mix."""
    line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
