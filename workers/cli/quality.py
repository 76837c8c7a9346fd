"""`quality`: the model on public protocols, beside baselines fitted in the same run."""

from __future__ import annotations

import os
import subprocess

import typer

from deploy.local.parts import ROOT
from workers.cli.errors import UserError
from workers.cli.train import TRAINING_PYTHON


def quality(context: typer.Context) -> None:
    """Measure the model on public protocols, beside baselines. All arguments go to `python -m tests.quality`."""
    if not TRAINING_PYTHON.exists():
        raise UserError("the training environment is missing: run `make setup-training`")
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [str(TRAINING_PYTHON), "-m", "tests.quality", *context.args]
    raise typer.Exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, check=False).returncode)
