"""The tree of errors: every error for a user has a single root, and the command line catches the root once."""

import ast
import builtins
from pathlib import Path

import pytest
import typer
from freshet.cli.errors import Group
from freshet.errors import FreshetError

ROOT = Path(__file__).parents[2]
BUILT_IN = {name for name in dir(builtins) if name.endswith(("Exception", "Error"))}
INTERNAL = {
    "CorruptBatchError",  # a batch that is quarantined: the reason goes into the dead letter
    "HeldError",  # a lock that another process holds: the caller says of what
    "PlayedOut",  # a demo's log has ended
    "OutOfTimeError",  # a search stops
    "NothingNewError",  # an incremental run has nothing to do, which is no failure
    "SetupError",  # set-up runs before Freshet can be imported
}
"""Errors that steer a program and never reach a user."""


def test_errors_for_users_have_one_root() -> None:
    """Only listed classes that steer a program derive straight from a built-in exception."""
    roots = {
        definition.name
        for folder in ("workers", "training", "deploy")
        for file in (ROOT / folder).rglob("*.py")
        for definition in ast.walk(ast.parse(file.read_text()))
        if isinstance(definition, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in BUILT_IN for base in definition.bases)
    }
    assert roots == INTERNAL | {"FreshetError"}


def test_the_command_line_says_each_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An error from any room ends a verb with its message on one line and status 1."""

    class AnyError(FreshetError):
        """Of a room that the command line knows nothing of."""

    app = typer.Typer(cls=Group, add_completion=False)

    @app.callback()
    def verbs() -> None:
        """All verbs."""

    @app.command()
    def fail() -> None:
        raise AnyError("the shelf is empty:\n  fill it")

    with pytest.raises(SystemExit, match="1"):
        app(["fail"])
    assert capsys.readouterr().err == "freshet: the shelf is empty: fill it\n"
