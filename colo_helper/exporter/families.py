"""From the states of VMs to Prometheus' metric families: pure, and the only place that names metrics.

Names and units follow https://prometheus.io/docs/practices/naming/: seconds, bytes, ``_total`` for what only grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_MS, _ONE = 1e-3, 1.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a state: where it stands there, and by what it is multiplied."""

    name: str
    help: str
    path: tuple[str, ...]
    scale: float = _ONE
    grows: bool = False


FIGURES = (
    Figure("colo_epoch", "Number of the last checkpoint.", ("epoch",)),
    Figure("colo_checkpoints", "Checkpoints of this replicator.", ("totals", "checkpoints"), grows=True),
    Figure("colo_sent_bytes", "Bytes of checkpoints that were sent.", ("totals", "bytes"), grows=True),
    Figure(
        "colo_last_pause_seconds", "How long the last checkpoint paused the VM.", ("last", "pause_ms"), _MS
    ),
    Figure(
        "colo_last_commit_seconds",
        "From the end of that pause until the secondary had all of it.",
        ("last", "commit_ms"),
        _MS,
    ),
    Figure("colo_last_bytes", "Bytes that the last checkpoint sent.", ("last", "bytes")),
    Figure("colo_last_primary_dirty_pages", "Pages that the VM had changed, |A|.", ("last", "a_pages")),
    Figure("colo_last_secondary_dirty_pages", "Pages that its copy had changed, |B|.", ("last", "b_pages")),
    Figure("colo_last_union_dirty_pages", "Pages of both, |D|.", ("last", "d_pages")),
    Figure(
        "colo_pause_p50_seconds",
        "Median pause of the last 256 checkpoints.",
        ("recent", "pause_ms", "p50"),
        _MS,
    ),
    Figure("colo_pause_p99_seconds", "99th percentile of those pauses.", ("recent", "pause_ms", "p99"), _MS),
    Figure(
        "colo_interval_seconds",
        "After how long a checkpoint is made that nothing asks for.",
        ("interval", "interval_ms"),
        _MS,
    ),
    Figure(
        "colo_round_trip_p50_seconds",
        "Median round trip to the peer, on the heartbeat's network.",
        ("channels", "round_trip", "p50_ms"),
        _MS,
    ),
    Figure("colo_packets_released", "Packets of the VM that have left.", ("packets", "released"), grows=True),
    Figure("colo_packets_waiting", "Packets of the VM that wait for its copy's.", ("packets", "waiting")),
)
_ASKED = "asked_"


def families(
    states: Iterable[dict[str, Any]],
    verified: dict[str, dict[str, Any]],
    unreadable: Iterable[str],
    certificates: dict[str, float],
) -> list[Metric]:
    """Return all metric families. ``verified``: what each VM's last comparison of both copies found.

    ``unreadable`` are VMs of which something is known that cannot be read; ``certificates`` are files with when they expire, in
    seconds since 1970.
    """
    states = list(states)
    found = [_of_figure(figure, states) for figure in FIGURES]
    return [
        *found,
        *_of_states(states),
        *_of_channels(states),
        *_of_verified(verified),
        _of_unreadable(unreadable),
        _of_certificates(certificates),
    ]


def _of_figure(figure: Figure, states: list[dict[str, Any]]) -> Metric:
    kind = CounterMetricFamily if figure.grows else GaugeMetricFamily
    family = kind(figure.name, figure.help, labels=["vm"])
    for state in states:
        value: Any = state
        for key in figure.path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            family.add_metric([state["vm"]], value * figure.scale)
    return family


def _of_states(states: list[dict[str, Any]]) -> list[Metric]:
    phase = GaugeMetricFamily(
        "colo_state", "1 for the role and phase that the VM has here.", labels=["vm", "role", "phase", "peer"]
    )
    running = GaugeMetricFamily(
        "colo_replicator_running", "1 while the VM's replicator answers.", labels=["vm"]
    )
    protected = GaugeMetricFamily(
        "colo_protected", "1 while both copies run, as this host sees it.", labels=["vm"]
    )
    maintenance = GaugeMetricFamily("colo_maintenance", "1 while nobody takes over by itself.", labels=["vm"])
    last = GaugeMetricFamily(
        "colo_last_checkpoint_timestamp_seconds", "When the last checkpoint was complete.", labels=["vm"]
    )
    for state in states:
        vm, runs = state["vm"], state["running"]
        phase.add_metric([vm, state["role"], state["phase"], state["peer"]], 1)
        running.add_metric([vm], runs)
        protected.add_metric([vm], runs and state["phase"] == "replicating")
        maintenance.add_metric([vm], bool(state.get("maintenance")))
        if record := state.get("last"):
            last.add_metric([vm], _timestamp(record["completed"]))
    return [phase, running, protected, maintenance, last]


def _of_channels(states: list[dict[str, Any]]) -> list[Metric]:
    broken = GaugeMetricFamily(
        "colo_channel_broken", "1 while a channel to the peer is being made anew.", labels=["vm", "channel"]
    )
    reopened = CounterMetricFamily(
        "colo_channel_reopened", "How often it was made anew.", labels=["vm", "channel"]
    )
    asked = CounterMetricFamily(
        "colo_checkpoints_asked", "Checkpoints that packets asked for, by cause.", labels=["vm", "cause"]
    )
    for state in states:
        channels = state.get("channels") or {}
        for name, count in channels.get("reopened", {}).items():
            broken.add_metric([state["vm"], name], name in channels.get("broken", {}))
            reopened.add_metric([state["vm"], name], count)
        for name, count in (state.get("packets") or {}).items():
            if name.startswith(_ASKED):
                asked.add_metric([state["vm"], name.removeprefix(_ASKED)], count)
    return [broken, reopened, asked]


def _of_verified(verified: dict[str, dict[str, Any]]) -> list[Metric]:
    when = GaugeMetricFamily(
        "colo_verified_timestamp_seconds", "When both copies were last compared.", labels=["vm"]
    )
    unexplained = GaugeMetricFamily(
        "colo_verified_unexplained", "Differences for no known reason that this found.", labels=["vm"]
    )
    for vm, result in verified.items():
        parts = [result, *result["state"].values()]
        when.add_metric([vm], _timestamp(result["completed"]))
        unexplained.add_metric([vm], sum(len(part["unexplained"]) for part in parts))
    return [when, unexplained]


def _of_unreadable(names: Iterable[str]) -> Metric:
    text = "1 for a VM whose state here cannot be read; the exporter's journal says why."
    return _gauge("colo_unreadable", text, "vm", dict.fromkeys(names, 1.0))


def _of_certificates(certificates: dict[str, float]) -> Metric:
    text = "When what this host asks the arbiter with is of no use any more."
    return _gauge("colo_certificate_expires_timestamp_seconds", text, "file", certificates)


def _gauge(name: str, text: str, label: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
