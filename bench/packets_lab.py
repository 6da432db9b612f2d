"""What a client waits for an answer, on the lab: unprotected, with outputs compared, and with outputs held as Remus does.

One guest, one client on the lab's bridge, one connection at a time, in one run: answers that are the same on both copies, and
answers that never are. Software emulation: only ratios say something.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.protection import protected
from bench.tables import machine, table
from colo_helper.quantiles import nearest_rank
from lab.guests import Client
from lab.lab import Lab
from lab.settings import Settings, here
from tests.lab.protected_vm import ProtectedVm

_GUEST = "h1"
_MODES = ("compare", "hold")


@dataclass(frozen=True)
class Asked:
    """What a client saw: times in milliseconds, ascending, and the time for all of it."""

    times_ms: list[int]
    seconds: float
    checkpoints: int


def ask(settings: Settings, line: str, count: int, checkpoints: Callable[[], int]) -> Asked:
    """Ask over one connection again and again."""
    client = Client(settings, _GUEST, timeout_s=60)
    times = []
    try:
        client.ask("echo first")
        made, began = checkpoints(), time.monotonic()
        for number in range(count):
            started = time.monotonic()
            client.ask(line.format(number))
            times.append(round((time.monotonic() - started) * 1000))
        return Asked(sorted(times), time.monotonic() - began, checkpoints() - made)
    finally:
        client.close()


def both_kinds(settings: Settings, count: int, checkpoints: Callable[[], int]) -> list[Asked]:
    """Ask for answers that are the same on both copies, then for others."""
    return [
        ask(settings, "echo {}", count, checkpoints),
        ask(settings, "clock", max(5, count // 5), checkpoints),
    ]


def measured(settings: Settings, count: int, output: str) -> list[Asked]:
    """Measure a VM whose output is let go in one way."""
    vm = ProtectedVm(settings)
    with protected(settings, vm, output):
        return both_kinds(settings, count, lambda: int(vm.status()["totals"]["checkpoints"]))


def row(name: str, asked: Asked, alone: Asked) -> list[object]:
    """One line of the table."""
    p50, p99 = (nearest_rank(asked.times_ms, share) for share in (0.5, 0.99))
    return [
        name,
        p50,
        p99,
        f"{p50 / nearest_rank(alone.times_ms, 0.5):.1f}",
        f"{asked.checkpoints / asked.seconds * 60:.0f}",
        f"{asked.checkpoints / len(asked.times_ms):.2f}",
    ]


def main() -> None:
    """Bring the lab up, measure, print the table. Our programs are installed by playbooks/site.yml before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=100, help="that are the same; of the others a fifth")
    arguments = parser.parse_args()
    settings = here()
    Lab(settings, print).up()
    ProtectedVm(settings).have_guest("xa")
    found = {"alone": both_kinds(settings, arguments.answers, lambda: 0)}
    found.update({mode: measured(settings, arguments.answers, mode) for mode in _MODES})
    head = ("", "p50 ms", "p99 ms", "p50 of alone", "checkpoints/min", "checkpoints an answer")
    for at, kind in enumerate(("the same on both copies", "never the same")):
        print(f"\nAnswers that are {kind}, {machine()}:\n")
        print(table(head, [row(name, asked[at], found["alone"][at]) for name, asked in found.items()]))


if __name__ == "__main__":
    main()
