"""The table of a campaign, in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from colo_helper.quantiles import nearest_rank
from tests.chaos.ground import NOBODY, OTHER, SAME, Outcome

_HEAD = (
    "| fault | count | same runs | other runs | nobody | silence p50 s | p95 s | longest s | exceptions |",
    "|---|---|---|---|---|---|---|---|---|",
)


def report(title: str, outcomes: Iterable[Outcome], repeat: str) -> str:
    """Return the report. ``repeat`` is the command that repeats a fault, with ``{number}`` in it."""
    found = sorted(outcomes, key=lambda one: one.number)
    by_label: dict[str, list[Outcome]] = defaultdict(list)
    for one in found:
        by_label[one.label].append(one)
    wrong = [one for one in found if one.exceptions]
    lines = [
        f"# {title}",
        "",
        f"{len(found)} faults, {len(wrong)} with exceptions. Silence is the longest time between two answers on the clients' "
        "bridge, in seconds of the lease's clock; of faults after which nobody answers it says nothing.",
        "",
        *_HEAD,
        *(_row(label, by_label[label]) for label in sorted(by_label)),
        _row("**all**", found),
        "",
        *_notes(found),
        "## Exceptions",
        "",
    ]
    for one in wrong:
        lines += [f"### {one.number}: {one.sentence}", "", *(f"- {text}" for text in one.exceptions)]
        lines += [
            "",
            f"Written down: {one.cause or 'nothing'}",
            "",
            f"    {repeat.format(number=one.number)}",
            "",
        ]
    if not wrong:
        lines += ["None.", ""]
    return "\n".join(lines)


def _row(label: str, outcomes: Sequence[Outcome]) -> str:
    runs = [sum(one.runs == who for one in outcomes) for who in (SAME, OTHER, NOBODY)]
    silences = sorted(one.silence_s for one in outcomes if one.runs != NOBODY) or [0.0]
    figures = [nearest_rank(silences, 0.5), nearest_rank(silences, 0.95), silences[-1]]
    wrong = sum(1 for one in outcomes if one.exceptions)
    cells = [label, len(outcomes), *runs, *(f"{figure:.1f}" for figure in figures), wrong]
    return f"| {' | '.join(map(str, cells))} |"


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for one in outcomes:
        for note in one.notes:
            counts[note.partition(": ")[0]] += 1
    if not counts:
        return []
    return [
        "| note | faults |",
        "|---|---|",
        *(f"| {note} | {counts[note]} |" for note in sorted(counts)),
        "",
    ]
