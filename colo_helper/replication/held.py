"""What a host that booted has of a VM and did not start: colo-guard writes it, and the primary's replicator uses it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from colo_helper.monitor.files import read_json, write_json

_NAME = "start.json"


@dataclass(frozen=True, slots=True)
class Held:
    """Paths: of memory that was saved when the host went down, and of a configuration; empty when there is none."""

    saved: str
    configuration: str

    def __str__(self) -> str:
        return " and ".join(
            [f"its saved memory {self.saved}"] * bool(self.saved)
            + [f"its configuration {self.configuration}"] * bool(self.configuration)
        )


def write_held(run_dir: Path, held: Held) -> None:
    """Tell the replicator; raises OSError."""
    write_json(run_dir / _NAME, asdict(held))


def read_held(run_dir: Path) -> Held | None:
    """Return what there is to start, None when there is nothing; raises OSError and ValueError."""
    try:
        value = read_json(run_dir / _NAME)
    except FileNotFoundError:
        return None
    return Held(str(value.get("saved", "")), str(value.get("configuration", "")))


def forget_held(run_dir: Path) -> None:
    """It was started, or is not to be any more."""
    (run_dir / _NAME).unlink(missing_ok=True)
