"""What a person sees of a run: lines, and on a terminal a bar beneath them."""
# ruff: noqa: T201 - printed lines are its interface

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int, int], None]
"""Told how much is done, and of how much."""

_console = Console(highlight=False, markup=False)


def say(line: str) -> None:
    """A line; above the bar, where there is one."""
    if sys.stdout.isatty():
        _console.print(line, soft_wrap=True)
    else:
        print(line, flush=True)


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A bar on a terminal, nothing elsewhere: plain lines are for what has an end."""
    if not sys.stdout.isatty():
        yield lambda _done, _total: None
        return
    columns = (TextColumn(label), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
