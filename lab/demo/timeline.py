"""What happened when: the record that the demo writes and prints."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Event:
    """One thing that happened, `t_s` seconds after the demo began."""

    t_s: float
    host: str
    event: str
    detail: str


@dataclass
class Timeline:
    """Events, and the figures by which the demo is judged (None: not reached)."""

    events: list[Event] = field(default_factory=list)
    changed_again: int | None = None
    refused_alive: bool | None = None
    checkpoints: int | None = None
    checkpoints_with_b: int | None = None
    pages_compared: int | None = None
    pages_different: list[int] | None = None
    pages_unexplained: list[int] | None = None
    state_unexplained: list[str] | None = None
    failover_s: float | None = None
    counter_before: int | None = None
    counter_after: int | None = None
    counter_goes_on: bool | None = None
    writes_lost: int | None = None
    said_unprotected: bool | None = None

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    def add(self, host: str, event: str, detail: str) -> None:
        """Note an event now and show it."""
        entry = Event(round(time.monotonic() - self._started, 2), host, event, detail)
        self.events.append(entry)
        print(f"[{entry.t_s:7.1f} s] {host:<10} {event:<12} {detail}", flush=True)

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def show(self) -> None:
        """The whole record as a table on the terminal."""
        table = Table(title="COLO demo", show_lines=False)
        table.add_column("s", justify="right")
        for column in ("host", "event", "detail"):
            table.add_column(column, overflow="fold")
        for event in self.events:
            table.add_row(f"{event.t_s:.1f}", event.host, event.event, event.detail)
        Console().print(table)


def judge(timeline: Timeline, wanted_checkpoints: int) -> list[str]:
    """What did not hold, one sentence each; empty when the demo showed all that it promises."""
    return [*_protection(timeline, wanted_checkpoints), *_comparison(timeline), *_failover(timeline)]


def _protection(timeline: Timeline, wanted_checkpoints: int) -> Iterator[str]:
    if timeline.changed_again is None or timeline.changed_again:
        yield f"protecting it once more changed {timeline.changed_again} tasks"
    if not timeline.refused_alive:
        yield "a failover was not refused while the primary lived"
    if timeline.checkpoints is None or timeline.checkpoints < wanted_checkpoints:
        yield f"{timeline.checkpoints} checkpoints were made, {wanted_checkpoints} are wanted"
    if not timeline.checkpoints_with_b:
        yield "B was empty in every checkpoint: the back channel showed nothing"


def _comparison(timeline: Timeline) -> Iterator[str]:
    if not timeline.pages_compared:
        yield "no page of the two copies was compared"
    if timeline.pages_unexplained is None or timeline.pages_unexplained:
        yield f"frames differ without a reason: {timeline.pages_unexplained}"
    if timeline.state_unexplained is None or timeline.state_unexplained:
        yield f"CPU or device state differs without a reason: {timeline.state_unexplained}"


def _failover(timeline: Timeline) -> Iterator[str]:
    if timeline.counter_before is None or timeline.counter_after is None:
        yield "the guest did not answer after the failover"
    elif timeline.counter_after < timeline.counter_before:
        yield f"the guest went back in time, from {timeline.counter_before} to {timeline.counter_after}"
    if timeline.counter_after is not None and not timeline.counter_goes_on:
        yield "the guest answers after the failover, but its counter stands still"
    if timeline.writes_lost is None or timeline.writes_lost:
        yield f"writes made before the last checkpoint are missing: {timeline.writes_lost}"
    if not timeline.said_unprotected:
        yield "the status of a VM with one copy was not a failure that names it"
