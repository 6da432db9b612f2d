"""What the benchmarks share: medians of runs that take turns, and tables for a terminal and for the docs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from statistics import median

#: Fewer runs than this say nothing.
LEAST_RUNS = 5


def medians(runs: int, *actions: Callable[[], float]) -> list[float]:
    """Return the median of what each action returns, over ``runs`` turns; the first turn warms up and does not count.

    The actions take turns, so that what else happens on the machine happens to all of them.
    """
    if runs < LEAST_RUNS:
        raise ValueError(f"{runs} runs are too few for a median, at least {LEAST_RUNS} are needed.")
    results: list[list[float]] = [[] for _ in actions]
    for turn in range(runs + 1):
        for action, values in zip(actions, results, strict=True):
            value = action()
            if turn:
                values.append(value)
    return [median(values) for values in results]


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long an action takes; by ``time.process_time`` for what only computes, on a machine with other work."""
    started = clock()
    action()
    return clock() - started


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with its columns aligned: the first to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def machine() -> str:
    """Return what the figures were taken on, in a few words."""
    return f"{os.cpu_count()} vCPU"
