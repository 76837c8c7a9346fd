"""`freshet replay --try`: what a knob of the ranking costs, and what it buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from freshet.cli.console import rows
from freshet.cli.errors import UserError
from freshet.settings import KNOBS, Variant

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.core.evaluation.results import Results

BOUGHT = {"coverage": "coverage", "intra_list_diversity": "diversity", "novelty": "novelty"}
"""What lists have of themselves, by its name in results, and its heading."""


def read_tried(values: Sequence[str]) -> list[tuple[str, float]]:
    """Knobs and the values to try of them, from `KNOB=VALUE,VALUE…`. Raises `UserError`."""
    tried: list[tuple[str, float]] = []
    for value in values:
        knob, _, numbers = value.partition("=")
        if knob not in KNOBS:
            raise UserError(f"--try is KNOB=VALUE,VALUE with a knob of {', '.join(KNOBS)}, not {value!r}")
        try:
            ones = [(knob, float(number)) for number in numbers.split(",")]
            for one in ones:
                msgspec.convert({"share": 1, **dict([one])}, Variant)
        except ValueError as error:  # msgspec's is one
            raise UserError(f"--try {value}: {error}") from None
        tried += ones
    return tried


def tell_tried(found: Results, behaviours: Mapping[str, float]) -> None:
    """A line per policy: how often its lists held what the user did next, and what the lists are like."""
    dearest = max(behaviours, key=lambda kind: behaviours[kind])
    first = found.evaluations[0].name
    beside = [one for one in found.comparisons if (one.baseline, one.metric) == (first, "ndcg")]
    verdicts = {one.candidate: one.verdict for one in beside}
    table: list[tuple[str, ...]] = [("", "HR", "NDCG", f"HR of {dearest}", *BOUGHT.values(), "NDCG beside the first")]
    for one in found.evaluations:
        whole = one.slices["all"]["all"].metrics
        own = one.slices.get("type", {}).get(dearest)
        cells = [whole["hr"], whole["ndcg"], None if own is None else own.metrics["hr"], *map(whole.get, BOUGHT)]
        shown = ("" if cell is None else f"{cell.mean:.4g}" for cell in cells)
        table.append((one.name, *shown, verdicts.get(one.name, "")))
    rows(table, ("", "bold", "bold", "bold", *("" for _ in BOUGHT), ""))
