"""Option groups: a verb's options as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from freshet.cli.option_groups import grouped
from typer.testing import CliRunner


@dataclass(frozen=True, kw_only=True)
class Colours:
    """A group with an argument, an option and a flag."""

    front: Annotated[str, typer.Argument()]
    back: Annotated[str, typer.Option("--back")] = "white"
    bold: Annotated[bool, typer.Option("--bold")] = False


def run(*arguments: str) -> tuple[int, list[object]]:
    """The exit status and what the verb was called with."""
    given: list[object] = []

    @grouped
    def paint(colours: Colours, size: Annotated[int, typer.Option()] = 1) -> None:
        """Paint."""
        given.extend((colours, size))

    app = typer.Typer()
    app.command()(paint)
    return CliRunner().invoke(app, list(arguments)).exit_code, given


def test_the_verb_is_called_with_its_groups() -> None:
    """Options that are not given have the defaults of the group's fields."""
    assert run("red", "--bold", "--size", "3") == (0, [Colours(front="red", bold=True), 3])
    assert run("red", "--back", "blue") == (0, [Colours(front="red", back="blue"), 1])


def test_a_field_without_default_is_required() -> None:
    """A field without default is a required option."""
    assert run("--bold") == (2, [])
