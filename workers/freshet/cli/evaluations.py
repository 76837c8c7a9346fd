"""Estimates and differences as the verbs show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.core.evaluation.results import Difference, Estimate


def shown(estimate: Estimate, digits: int = 3) -> str:
    """An estimate with its interval."""
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def show_differences(differences: Iterable[Difference], digits: int = 3) -> None:
    """A line for each difference, with its verdict."""
    for difference in differences:
        typer.echo(
            f"{difference.candidate} against {difference.baseline}, {difference.metric}: "
            f"{shown(difference.estimate, digits)}: {difference.verdict}"
        )
