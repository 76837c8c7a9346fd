"""`freshet replay --try`: what a setting of the ranking costs, and what the setting gains."""

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


def read_sweep(values: Sequence[str]) -> list[tuple[str, float]]:
    """Knobs with the values to try of each, from `KNOB=VALUE,VALUE…`. Raises `UserError`."""
    sweep: list[tuple[str, float]] = []
    for value in values:
        knob, _, numbers = value.partition("=")
        if knob not in KNOBS:
            raise UserError(f"--try is KNOB=VALUE,VALUE with a knob of {', '.join(KNOBS)}, not {value!r}")
        try:
            for number in numbers.split(","):
                msgspec.convert({"share": 1, knob: float(number)}, Variant)
                sweep.append((knob, float(number)))
        except ValueError as error:  # msgspec's is one
            raise UserError(f"--try {value}: {error}") from None
    return sweep


def show_sweep(found: Results, behaviours: Mapping[str, float]) -> None:
    """A line per policy: how often its lists held what the user did next, and what the lists are like."""
    dearest = max(behaviours, key=lambda kind: behaviours[kind])
    first = found.evaluations[0].name
    against_first = [difference for difference in found.comparisons if difference.baseline == first]
    verdicts = {difference.candidate: difference.verdict for difference in against_first if difference.metric == "ndcg"}
    table: list[tuple[str, ...]] = [("", "HR", "NDCG", f"HR of {dearest}", *BOUGHT.values(), "NDCG beside the first")]
    for evaluation in found.evaluations:
        whole = evaluation.slices["all"]["all"].metrics
        own = evaluation.slices.get("type", {}).get(dearest)
        cells = [whole["hr"], whole["ndcg"], None if own is None else own.metrics["hr"], *map(whole.get, BOUGHT)]
        means = ("" if cell is None else f"{cell.mean:.4g}" for cell in cells)
        table.append((evaluation.name, *means, verdicts.get(evaluation.name, "")))
    rows(table, ("", "bold", "bold", "bold", *("" for _ in BOUGHT), ""))
