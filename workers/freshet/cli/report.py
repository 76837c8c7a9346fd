"""`freshet report`: what replays found, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freshet.cli.console import emit, say
from freshet.cli.errors import UserError
from freshet.cli.options import Json
from freshet.files import write_whole

FIGURE = ".svg"


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json…", help="Files as `freshet replay` writes them.")
    ],
    to: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The page, FILE.html; FILE.svg is the freshness curve alone.")
    ] = Path("report.html"),
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What to call each file, in their order; its source without."),
    ] = None,
    json_: Json = False,
) -> None:
    """Draw results as one self-contained page: curves, slices, comparisons, live against replay."""
    from freshet.report.page import freshness_figure, page
    from freshet.report.results_file import read_results

    if name and len(name) != len(results):
        raise UserError(f"{len(results)} files, but {len(name)} names: give --name once for each file")
    if to.suffix not in {".html", FIGURE}:
        raise UserError(f"--out is FILE.html or FILE.svg, not {str(to)!r}")
    if to.exists():
        raise UserError(f"{to} exists: choose another --out")
    read = [read_results(path) for path in results]
    named = list(zip(name or [results_of_file.source for results_of_file in read], read, strict=True))
    if to.suffix == FIGURE and not any(results_of_file.freshness for results_of_file in read):
        raise UserError("no file has a freshness curve: `freshet replay … --freshness` makes one")
    try:
        write_whole(to, (freshness_figure(named) if to.suffix == FIGURE else page(named)).encode())
    except OSError as error:
        raise UserError(f"{to}: {error.strerror}") from None
    if json_:
        emit({"report": str(to), "results": len(read)})
    else:
        say(f"{to}: open it in a browser")
