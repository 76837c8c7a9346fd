"""Plots as SVG text, 360 wide. A plot fills a phone, and two plots fit side by side on a desk.

Colours and dashes are classes (`page.css`). The series are `s0` to `s3`, and also differ by the shape of their
markers. Every plot has a title and a description for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from freshet.core.evaluation.results import Estimate

WIDTH = 360
SERIES = 4
"""Series that can be told apart."""

_LEFT, _RIGHT, _TOP = 34, 348, 14
_INTERVAL_USERS = 5
_STEPS = 4
_LINE = 52
"""Letters that fit in a line of labels."""


class PlotPoint(NamedTuple):
    """An estimate at a position on the x axis. With few users its interval says nothing and is not drawn."""

    x: float
    estimate: Estimate
    users: int = _INTERVAL_USERS


class Series(NamedTuple):
    """A named line, parted where a whole step of x is missing."""

    name: str
    points: Sequence[PlotPoint]


class PlotRow(NamedTuple):
    """A named row of a dot plot, with an estimate for each series. An estimate may be None."""

    name: str
    estimates: Sequence[Estimate | None]


Scale = Callable[[float], float]


def tag(name: str, *children: str, **attributes: str | float) -> str:
    """An element; children are markup, attributes are escaped, `class_` is `class` and `_` is `-`."""
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{words}>{''.join(children)}</{name}>"


def text(content: str, x: float, y: float, class_: str = "", anchor: str = "start") -> str:
    """A line of text."""
    return tag("text", escape(content), x=x, y=y, class_=class_, text_anchor=anchor)


def plot(title: str, description: str, height: float, *children: str, x: float | None = None) -> str:
    """The element that holds a plot; with `x` it has its place in a picture of several."""
    position: dict[str, str | float] = {} if x is None else {"x": x, "width": WIDTH, "height": height}
    return tag(
        "svg",
        tag("title", escape(title)),
        tag("desc", escape(description)),
        *children,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        **position,
    )


def ticks(low: float, high: float, count: int = _STEPS) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` steps apart."""
    rough = max(high - low, 1e-9) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def number(value: float) -> str:
    """Three digits behind the point, one from 10 on: 0.216, -0.004, 12.3."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}".replace("-0.000", "0.000")  # noqa: PLR2004 - two digits


def between(low: float, high: float, start: float, end: float) -> Scale:
    """The linear scale from values to places."""
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def legend(names: Sequence[str]) -> tuple[str, float]:
    """Markers with their names, each on a line, and the height of the legend. A single series needs no legend."""
    if len(names) < 2:  # noqa: PLR2004 - one series needs no key
        return "", 0.0
    lines = [
        marker(number, 8, 8 + 16 * number) + text(_fitted(name), 20, 12 + 16 * number)
        for number, name in enumerate(names)
    ]
    return "".join(lines), 16.0 * len(names) + 6


def marker(series: int, x: float, y: float, class_: str = "") -> str:
    """A point: a circle, a square, a triangle, a diamond."""
    kind = f"s{series} dot {class_}".strip()
    match series:
        case 0:
            return tag("circle", cx=x, cy=y, r=4, class_=kind)
        case 1:
            return tag("rect", x=x - 3.5, y=y - 3.5, width=7, height=7, class_=kind)
        case 2:
            return tag("path", d=f"M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z", class_=kind)
        case _:
            return tag("path", d=f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z", class_=kind)


def line_plot(
    title: str,
    description: str,
    series: Sequence[Series],
    x_ticks: Sequence[tuple[float, str]],
    *,
    bands: bool = False,
    labelled: bool = False,
    x: float | None = None,
) -> str:
    """Values over x with their intervals, as bars, or as a band for the first series; the y axis begins at 0."""
    everything = [point for curve in series for point in curve.points]
    marks = ticks(0, max(max(_top(point), 1e-6) for point in everything))
    key, above = legend([curve.name for curve in series])
    if x is not None:
        key, above = tag("g", key, transform="translate(0 20)") + text(title, 4, 14, "title"), above + 20
    top, bottom = above + _TOP, above + 200
    low, high = min(at for at, _ in x_ticks), max(at for at, _ in x_ticks)
    across = between(low, high, _LEFT + (22 if labelled else 6), _RIGHT - (36 if labelled else 14))
    up = between(marks[0], marks[-1], bottom, top)
    drawn = [key]
    for mark in marks:
        drawn.append(tag("line", x1=_LEFT, x2=_RIGHT, y1=up(mark), y2=up(mark), class_="grid"))
        drawn.append(text(f"{mark:g}", _LEFT - 5, up(mark) + 4, "tick", "end"))
    for at, name in x_ticks:
        for line, words in enumerate(name.split("\n")):
            drawn.append(text(words, across(at), bottom + 16 + 13 * line, "tick", "middle"))
    lines = max(name.count("\n") for _, name in x_ticks)
    for which, curve in enumerate(series):
        drawn.append(_line(which % SERIES, curve, across, up, bands=bands, labelled=labelled))
    return plot(title, description, bottom + 24 + 13 * lines, *drawn, x=x)


def _top(point: PlotPoint) -> float:
    return point.estimate.high if point.users >= _INTERVAL_USERS else point.estimate.mean


def _line(which: int, series: Series, across: Scale, up: Scale, *, bands: bool, labelled: bool) -> str:
    drawn = []
    known = [point for point in series.points if point.users >= _INTERVAL_USERS]
    for run in _runs(known) if which == 0 or not bands else ():
        if bands and len(run) > 1:
            there = [f"{across(point.x):.1f},{up(point.estimate.high):.1f}" for point in run]
            back = [f"{across(point.x):.1f},{up(point.estimate.low):.1f}" for point in reversed(run)]
            drawn.append(tag("polygon", points=" ".join(there + back), class_=f"s{which} band"))
        else:
            drawn += [_bar(which, across(point.x), up(point.estimate.low), up(point.estimate.high)) for point in run]
    for run in _runs(series.points):
        if len(run) == 1:
            continue
        path = " ".join(f"{across(point.x):.1f},{up(point.estimate.mean):.1f}" for point in run)
        drawn.append(tag("polyline", points=path, class_=f"s{which} line"))
    for point in series.points:
        at, value = across(point.x), point.estimate.mean
        few = "" if point.users >= _INTERVAL_USERS else "few"
        if not bands or len(series.points) < 40:  # noqa: PLR2004 - more would run together
            drawn.append(marker(which, at, up(value), few))
        if labelled:
            drawn.append(text(number(value), at + 6, up(value) + (14 if which else -5), f"s{which} value"))
    return "".join(drawn)


def _runs(points: Sequence[PlotPoint]) -> list[list[PlotPoint]]:
    """The points, parted where a whole step of x is missing."""
    runs: list[list[PlotPoint]] = []
    for point in points:
        if runs and point.x - runs[-1][-1].x <= 1:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _bar(which: int, x: float, low: float, high: float) -> str:
    return tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}m-3 0h6m-3 0V{low:.1f}m-3 0h6", class_=f"s{which} bar")


def dot_plot(
    title: str, description: str, names: Sequence[str], rows: Sequence[PlotRow], *, neutral: float | None = None
) -> str:
    """Estimates with their intervals, a row each; a line stands at `neutral`, else the axis begins at 0."""
    found = [estimate for row in rows for estimate in row.estimates if estimate is not None]
    ends = [end for estimate in found for end in (estimate.low, estimate.high)] + [0.0 if neutral is None else neutral]
    marks = ticks(min(ends), max(ends))
    key, top = legend(names)
    across = between(marks[0], marks[-1], 12, _RIGHT - 8)
    height = top + sum(22 + 16 * len(row.estimates) for row in rows)
    drawn = [key]
    for mark in marks:
        drawn.append(tag("line", x1=across(mark), x2=across(mark), y1=top + 4, y2=height, class_="grid"))
        drawn.append(text(f"{mark:g}", across(mark), height + 14, "tick", "middle"))
    if neutral is not None:
        drawn.append(tag("line", x1=across(neutral), x2=across(neutral), y1=top + 4, y2=height, class_="neutral"))
    y = top
    for row in rows:
        drawn.append(text(_fitted(row.name), 4, y + 16))
        for which, estimate in enumerate(row.estimates):
            at = y + 28 + 16 * which
            if estimate is not None:
                low, high = across(estimate.low), across(estimate.high)
                drawn.append(tag("path", d=f"M{low:.1f} {at:.1f}H{high:.1f}", class_=f"s{which % SERIES} bar"))
                drawn.append(marker(which % SERIES, across(estimate.mean), at))
        y += 22 + 16 * len(row.estimates)
    return plot(title, description, height + 22, *drawn)


def calibration_plot(title: str, description: str, points: Sequence[tuple[float, Estimate]]) -> str:
    """Observed over predicted chance, both logarithmic. On the diagonal every prediction is true.

    A value below the axis is drawn on the axis, hollow.
    """
    values = [predicted for predicted, _ in points] + [observed.high for _, observed in points]
    low = 10.0 ** math.floor(math.log10(max(min(predicted for predicted, _ in points), 1e-4)))
    high = 10.0 ** math.ceil(math.log10(max(*values, low * 10)))
    top, bottom = 18, 288
    decades = between(math.log10(low), math.log10(high), _LEFT + 8, _RIGHT - 30)
    rise = between(math.log10(low), math.log10(high), bottom, top)

    def across(value: float) -> float:
        return decades(math.log10(max(value, low)))

    def up(value: float) -> float:
        return rise(math.log10(max(value, low)))

    drawn = [tag("line", x1=across(low), y1=up(low), x2=across(high), y2=up(high), class_="neutral")]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        mark = 10.0**power
        drawn.append(tag("line", x1=across(low), x2=across(high), y1=up(mark), y2=up(mark), class_="grid"))
        drawn.append(tag("line", x1=across(mark), x2=across(mark), y1=top, y2=bottom, class_="grid"))
        drawn.append(text(f"{mark:g}", across(low) - 5, up(mark) + 4, "tick", "end"))
        drawn.append(text(f"{mark:g}", across(mark), bottom + 16, "tick", "middle"))
    for predicted, observed in points:
        drawn.append(_bar(0, across(predicted), up(observed.low), up(observed.high)))
        drawn.append(marker(0, across(predicted), up(observed.mean), "few" if observed.mean < low else ""))
    drawn.append(text("observed", 4, 10, "tick"))
    drawn.append(text("predicted", _RIGHT - 4, bottom + 32, "tick", "end"))
    return plot(title, description, bottom + 38, *drawn)


def beside(title: str, description: str, plots: Sequence[str], height: float, style: str) -> str:
    """Plots that have their places side by side, in one picture that stands alone."""
    return tag(
        "svg",
        tag("title", escape(title)),
        tag("desc", escape(description)),
        f"<style>{style}</style>",
        *plots,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {(WIDTH + 20) * len(plots)} {height:g}",
        role="img",
    )


def _fitted(name: str) -> str:
    return name if len(name) <= _LINE else name[: _LINE - 1] + "…"


def _value(value: str | float) -> str:
    return escape(value, quote=True) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
