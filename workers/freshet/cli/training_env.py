"""The training environment: fetched by the first verb that needs it, and bounded in the CPU that it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from deploy.local.parts import PARTS, ROOT
from freshet.cli.console import say
from freshet.cli.errors import UserError

TRAINING_PYTHON = PARTS / "training-env" / "bin" / "python"
STAMP = PARTS / "stamps" / "training environment"
"""There when the environment is whole: the step of this name in `deploy/setup/bootstrap.py` writes it last."""
BOOTSTRAP = ROOT / "deploy" / "setup" / "bootstrap.py"


def have_training() -> None:
    """Fetch the training environment where it is not there. Raises `UserError`; exits where it cannot be had."""
    if STAMP.exists() and TRAINING_PYTHON.exists():
        return
    if not (ROOT / "training").is_dir():
        raise UserError(
            f"{ROOT} holds no training: run this verb from a checkout, in which `make setup-training` works"
        )
    say("fetching the training environment, once: torch and what goes with it, 6 GB on disk")
    status = subprocess.run([sys.executable, str(BOOTSTRAP), "--training"], stdout=sys.stderr, check=False).returncode
    if status:
        raise typer.Exit(status)  # it has said why, in one line


def run_module(
    module: str, arguments: Sequence[str], *, threads: int | None = None, polite: bool = False, keep: Sequence[int] = ()
) -> int:
    """Run a module in the training environment: its exit status, negative where a signal ended it.

    `threads` bounds what numerical libraries take, `polite` leaves the CPU to all others first, and `keep` are
    descriptors that the module has as well.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
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
