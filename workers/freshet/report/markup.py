"""The markup of a section: headings, notes, tables and their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from freshet.core.evaluation.results import Estimate
from freshet.report.svg import tag

SIGNS = {"better": "▲ better", "worse": "▼ worse"}


def as_section(heading: str, sentence: str, plot: str, table: str, *, open_: bool = False) -> str:
    """A heading, a sentence, a plot, and the numbers as a table behind the plot."""
    numbers = as_details("Numbers", table, open_=open_)
    return tag("section", tag("h3", escape(heading)), as_note(sentence), tag("figure", plot), numbers)


def as_details(name: str, content: str, *, open_: bool) -> str:
    """Content that a reader opens."""
    return f"<details{' open' if open_ else ''}>{tag('summary', escape(name))}{content}</details>"


def as_note(sentence: str) -> str:
    """A sentence below a heading."""
    return tag("p", escape(sentence), class_="note")


def as_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first cell of a row is its heading, the others are markup.

    Roles are spelt out, for on a phone rows are blocks, and browsers then forget what they are.
    """
    header = [tag("th", escape(cell), scope="col", role="columnheader") for cell in head]
    body = []
    for first, *rest in rows:
        cells = [
            tag("td", cell, role="cell", data_head=name, **({} if cell[:1] in "+-0123456789" else {"class_": "words"}))
            for name, cell in zip(head[1:], rest, strict=True)
        ]
        body.append(tag("tr", tag("th", escape(first), scope="row", role="rowheader"), *cells, role="row"))
    named = tag("caption", escape(caption)) if caption else ""
    top = tag("thead", tag("tr", *header, role="row"), role="rowgroup")
    return tag("table", named, top, tag("tbody", *body, role="rowgroup"), role="table")


def as_cell(estimate: Estimate | None, *, sign: bool = False, digits: int = 3) -> str:
    """An estimate with its interval, empty for None; `sign` shows a plus as well."""
    if estimate is None:
        return ""
    mark = "+" if sign else ""
    return (
        f"{estimate.mean:{mark}.{digits}f}"
        f"<small>{estimate.low:{mark}.{digits}f} … {estimate.high:{mark}.{digits}f}</small>"
    )


def as_verdict(verdict: str) -> str:
    """A verdict with its sign."""
    return tag("span", SIGNS.get(verdict, f"＝ {escape(verdict)}"), class_=verdict if verdict in SIGNS else "none")
