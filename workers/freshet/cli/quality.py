"""`quality`: the model on public protocols, beside baselines fitted in the same run."""

from __future__ import annotations

import typer

from freshet.cli.options import require_checkout
from freshet.cli.training_env import have_training, run_module


def quality(context: typer.Context) -> None:
    """Measure the model on public protocols, beside baselines. All arguments go to `python -m tests.quality`."""
    require_checkout("quality")
    have_training()
    raise typer.Exit(run_module("tests.quality", context.args))
