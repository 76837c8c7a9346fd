"""`bench`: measure on real parts, beside baselines timed in the same run."""

from __future__ import annotations

import subprocess
import sys

import typer

from freshet.cli.options import require_checkout


def bench(context: typer.Context) -> None:
    """Measure on real parts, beside baselines. All arguments go to `python -m tests.bench`."""
    root = require_checkout("bench")
    command = [sys.executable, "-m", "tests.bench", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=root, check=False).returncode)
