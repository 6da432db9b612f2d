"""A service of the field on the lab: Redis under redis-benchmark, unprotected, with outputs compared, and with outputs held.

"Held" is what a copy by the clock (Remus) does: every answer waits for the next checkpoint. One guest, the same load, in one
run. Software emulation: only ratios say something.
"""

from __future__ import annotations

import argparse

from bench.protection import protected
from bench.tables import machine, table
from lab import redis
from lab.lab import Lab
from lab.playbooks import play_well
from lab.redis import Rate
from lab.settings import Settings, here
from tests.lab.protected_vm import ProtectedVm

_TIMEOUT_S = 600
_MODES = ("compare", "hold")


def measured(settings: Settings, requests: int, clients: int) -> list[Rate]:
    """Run the load to its end."""
    with redis.benchmark(settings, requests, clients) as load:
        try:
            said, _ = load.communicate(timeout=_TIMEOUT_S)
        finally:
            load.kill()
    return redis.rates(said)


def measured_protected(
    settings: Settings, vm: ProtectedVm, requests: int, clients: int, output: str
) -> tuple[list[Rate], int]:
    """Measure a VM whose output is let go in one way; and how many checkpoints that took."""
    with protected(settings, vm, output):
        before = vm.status()["totals"]["checkpoints"]
        found = measured(settings, requests, clients)
        return found, vm.status()["totals"]["checkpoints"] - before


def main() -> None:
    """Bring the lab up, have our programs installed with channels for this guest, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=500, help="of SET, and of GET")
    parser.add_argument("--clients", type=int, default=10, help="connections at a time")
    arguments = parser.parse_args()
    load = (arguments.requests, arguments.clients)
    settings = here()
    Lab(settings, print).up()
    vm = ProtectedVm(settings, redis.GUEST)
    vm.have_guest("xa")
    hosts = {"primary": "xa", "secondary": "xb"}
    both = dict.fromkeys(("h1", vm.name), hosts)
    play_well(
        settings, "site", extra={"colo_vms": both}, log=settings.checkout / "build" / "bench" / "site.log"
    )
    alone = measured(settings, *load)
    found = {"alone": (alone, 0)}
    found.update({mode: measured_protected(settings, vm, *load, mode) for mode in _MODES})
    head = ("", "answers/s", "of alone", "p50 ms", "p99 ms", "longest ms", "checkpoints")
    rows = [
        [
            f"{name}, {rate.command}",
            f"{rate.per_s:.0f}",
            f"{rate.per_s / before.per_s:.2f}",
            f"{rate.p50_ms:.0f}",
            f"{rate.p99_ms:.0f}",
            f"{rate.longest_ms:.0f}",
            made if at else "",
        ]
        for name, (rates, made) in found.items()
        for at, (rate, before) in enumerate(zip(rates, alone, strict=True))
    ]
    print(f"\n{arguments.requests} requests of each, {arguments.clients} connections, {machine()}:\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
