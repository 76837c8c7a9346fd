"""Runs the commands of the set-up, and turns their failures into one line."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


class SetupError(Exception):
    """A step cannot be done; the message is one line and says what to do."""


def interpreter() -> str:
    """The real interpreter under any virtual environment or shim."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def call(command: Iterable[str | Path], *, env: dict[str, str] | None = None) -> None:
    """Run a command quietly.

    Raises:
        SetupError: It failed; the message carries the last lines it printed.
    """
    arguments = [str(word) for word in command]
    done = subprocess.run(
        arguments,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = " | ".join(done.stdout.strip().splitlines()[-8:])
        raise SetupError(f"`{' '.join(arguments[:4])} ...` failed ({done.returncode}): {tail}")


def succeeds(*command: str) -> bool:
    """Whether a command exits with status 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
