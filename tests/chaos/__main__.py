"""``python -m tests.chaos``: see docs/chaos.md."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from tests.chaos.campaign import Campaign, CampaignError, MakeGround, end_in_order, run
from tests.chaos.ground import Outcome
from tests.chaos.journal import Journal, JournalError, read
from tests.chaos.report import report

LATE = "late-deadline"
_TELL_S = 30.0


def main(arguments: list[str]) -> int:
    """Run a campaign; returns 0 when nothing was found that must not be, 1 when something was, 2 when it could not run."""
    asked = _parse(arguments)
    end_in_order()
    make = _ground(asked.ground, asked.plant)
    repeat = f"python -m tests.chaos --ground {asked.ground} --seed {asked.seed} --only {{number}}"
    if asked.plant:
        repeat += f" --plant {asked.plant}"
    if asked.only is not None:
        outcomes = list(run(asked.seed, [asked.only] * asked.times, make))
        print(report(f"Fault {asked.only} of seed {asked.seed}", outcomes, repeat))
        return int(any(one.exceptions for one in outcomes))
    about = {"ground": asked.ground, "seed": asked.seed, "plant": asked.plant}
    try:
        journal = Journal(asked.journal, about)
        campaign = Campaign(
            asked.seed, asked.faults, make, asked.jobs, _Teller(asked.faults, len(journal.done))
        )
        try:
            campaign.run(journal, time.monotonic() + asked.seconds)
        finally:
            journal.close()
    except (CampaignError, JournalError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    outcomes = [one for one in read(asked.journal) if one.number < asked.faults]
    title = f"Fault campaign, {asked.ground} ground, seed {asked.seed}"
    asked.report.write_text(
        report(f"{title}, planted: {asked.plant}" if asked.plant else title, outcomes, repeat)
    )
    wrong = sum(1 for one in outcomes if one.exceptions)
    print(f"{len(outcomes)} of {asked.faults} faults, {wrong} with exceptions: {asked.report}")
    return int(wrong > 0)


class _Teller:
    """Says what is found at once, and how far it is from time to time."""

    def __init__(self, count: int, done: int) -> None:
        self._count, self._done, self._told_s = count, done, time.monotonic()

    def __call__(self, outcome: Outcome) -> None:
        self._done += 1
        for text in outcome.exceptions:
            print(f"{outcome.number} ({outcome.sentence}): {text}", flush=True)
        if time.monotonic() - self._told_s > _TELL_S:
            self._told_s = time.monotonic()
            print(f"{self._done} of {self._count}", flush=True)


def _ground(name: str, plant: str) -> MakeGround:
    """Return what makes grounds of that name; each imports what it needs."""
    if name == "lab":
        from tests.chaos.lab.ground import LabGround  # noqa: PLC0415

        return LabGround
    from tests.chaos.emulated.ground import EmulatedGround  # noqa: PLC0415

    return partial(EmulatedGround, late=plant == LATE)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Run a fault campaign.")
    parser.add_argument("--ground", choices=["emulated", "lab"], default="emulated")
    parser.add_argument(
        "--faults", type=int, default=1000, help="how many in all, those in the journal included"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="grounds at the same time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no fault after so many")
    parser.add_argument("--journal", type=Path, default=Path("build/chaos.jsonl"))
    parser.add_argument("--report", type=Path, default=Path("build/chaos.md"))
    parser.add_argument("--plant", choices=["", LATE], default="", help="a bug that must be found")
    parser.add_argument("--only", type=int, help="run the fault of this number alone")
    parser.add_argument("--times", type=int, default=1, help="with --only: how often, on the same pair")
    asked = parser.parse_args(arguments)
    if asked.ground == "lab" and (asked.jobs > 1 or asked.plant):
        parser.error("there is one lab, and nothing is planted there")
    for path in (asked.journal, asked.report):
        path.parent.mkdir(parents=True, exist_ok=True)
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
