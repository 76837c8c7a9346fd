"""How the verbs write: consoles, a progress bar on a terminal, safe text."""

from __future__ import annotations

import json
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

out = Console(highlight=False, markup=False)
err = Console(highlight=False, markup=False, stderr=True)


def plain(text: str) -> str:
    """The text with control characters escaped: what comes from a topic must not drive the terminal."""
    if text.isprintable():
        return text
    return "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """A line of progress, on stderr so that stdout stays for results."""
    typer.echo(line, err=True)


def command_line() -> str:
    """This command as one would type it again."""
    return "freshet " + " ".join(shlex.quote(word) for word in sys.argv[1:])


def emit(value: Any) -> None:
    """One JSON object as one line on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def clock(ms: int) -> str:
    """A moment as the local time of day, with milliseconds."""
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]


def moment(ms: int) -> str:
    """A moment in full, UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(ms: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size, most in (("ms", 1, 10_000), ("s", 1000, 600_000)):
        if ms < most:
            return f"{ms / size:.0f} {unit}"
    return f"{ms / 60_000:.0f} min"


def rows(lines: Sequence[Sequence[str]], styles: Sequence[str], *, head: bool = False) -> None:
    """Write aligned columns. On a terminal a cell that is too wide is folded; elsewhere no cell is folded.

    With `head` the first line names the columns. A terminal shows this line dimmed.
    """
    if not out.is_terminal:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    table = Table(box=None, show_header=head, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    names, lines = (lines[0], lines[1:]) if head else ([""] * len(styles), lines)
    for name, style in zip(names, styles, strict=True):
        table.add_column(name, style=style, overflow="fold")
    for line in lines:
        table.add_row(*line)
    out.print(table)


@contextmanager
def progress(total: int | None, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere. Yields `advance(position, count)`."""
    if not sys.stderr.isatty():
        yield lambda _position, _count: None
        return
    columns = (
        SpinnerColumn() if total is None else BarColumn(bar_width=32),
        TextColumn("{task.fields[count]:,} " + unit),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=total, count=0, rate=0.0)

        def advance(position: int, count: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            bar.update(task, completed=position, count=count, rate=count / elapsed if elapsed else 0.0)

        yield advance


class CountedProgress:
    """A progress bar over a log whose number of records is known only once the log is open."""

    def __init__(self, stack: ExitStack, unit: str) -> None:
        self._stack = stack
        self._unit = unit
        self._advance: Callable[[int, int], None] = lambda _position, _count: None
        self._count = 0

    def start(self, total: int | None) -> None:
        """Show the bar; `total` is the number of records, or None where it is not known."""
        self._advance = self._stack.enter_context(progress(total, self._unit))

    def advance(self, count: int) -> None:
        """Move the bar on by a number of records."""
        self._count += count
        self._advance(self._count, self._count)


@contextmanager
def counted_progress(unit: str) -> Iterator[CountedProgress]:
    """A progress bar that is shown once its `start` is called."""
    with ExitStack() as stack:
        yield CountedProgress(stack, unit)
