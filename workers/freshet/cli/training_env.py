"""The training environment: fetched by the first verb that needs it, and bounded in the CPU that it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import typer

from freshet import resources
from freshet.cli.console import say
from freshet.cli.errors import UserError

FETCHED = resources.FETCHED
TRAINING_PYTHON = FETCHED / "training-env" / "bin" / "python" if FETCHED is not None else Path(sys.executable)
"""What runs the training job: a checkout's environment for it, or the interpreter that an installed wheel is in."""
STAMP = FETCHED / "stamps" / "training environment" if FETCHED is not None else TRAINING_PYTHON
"""There when a checkout's environment is whole: the step of this name in `deploy.setup.bootstrap` writes it last."""
NEEDED = ("torch", "onnx", "onnxscript", "safetensors", "mlflow", "sqlalchemy", "optuna", "dp_accounting")
"""Modules of the extra `train` that the training job imports."""


def have_training() -> None:
    """See that the training job can run: a checkout fetches its environment where it is not there.

    Raises `UserError`; exits where the environment cannot be had.
    """
    checkout = resources.CHECKOUT
    if checkout is None:
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise UserError(f"training needs {', '.join(missing)}: pip install 'freshet[train]'")
        return
    if STAMP.exists() and TRAINING_PYTHON.exists():
        return
    say("fetching the training environment, once: torch and what goes with it, 6 GB on disk")
    bootstrap = [sys.executable, "-m", "deploy.setup.bootstrap", "--training"]
    status = subprocess.run(bootstrap, cwd=checkout, stdout=sys.stderr, check=False).returncode
    if status:
        raise typer.Exit(status)  # it has said why, in one line


def run_module(
    module: str, arguments: Sequence[str], *, threads: int | None = None, polite: bool = False, keep: Sequence[int] = ()
) -> int:
    """Run a module in the training environment: its exit status, negative where a signal ended it.

    `threads` bounds what numerical libraries take, `polite` leaves the CPU to all others first, and `keep` are
    descriptors that the module has as well.
    """
    environment = dict(os.environ)
    if resources.CHECKOUT is not None:  # modules of tests/ run there as well
        paths = (str(resources.CHECKOUT), os.environ.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if threads is not None:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [*(("nice", "-n", "19") if polite else ()), str(TRAINING_PYTHON), "-m", module, *arguments]
    with _ended_by_sigterm():
        return subprocess.run(command, env=environment, pass_fds=tuple(keep), check=False).returncode


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """The module does not outlive this process: `subprocess.run` kills it on the way out."""

    def end(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
