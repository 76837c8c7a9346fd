"""What the demo shows: a live screen on a terminal, a line a second elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, Self

from freshet.core.recommendation import Item, Recommendation
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.demo.tracker import Change, DemoTracker, Figures, Point, Shown

FRAME_SECONDS = 0.2
LINE_SECONDS = 1.0
BARS = "▁▂▃▄▅▆▇█"
TYPE_STYLES = {"view": "blue", "click": "yellow", "purchase": "green"}
SOURCE_STYLES = {"model": "green", "cold": "cyan", "popular": "yellow", "explore": "magenta"}
LIST_ROWS = 10
MOVES_IN_A_LINE = 3
LONG_MS = 10_000
"""A duration from here on is shown in seconds."""


@dataclass(frozen=True)
class Facts:
    """What does not change during a run."""

    titles: Mapping[str, str]
    total: int
    start: int

    def title(self, item_id: str | None) -> str:
        """An item's title, or its id."""
        return self.titles.get(item_id or "", item_id or "?")


class Screen(Protocol):
    """Draws the tracker when its time has come."""

    def __enter__(self) -> Self:
        """Take the terminal."""

    def __exit__(self, *exception: object) -> None:
        """Give it back."""

    def draw(self, now: float, note: str = "") -> None:
        """Draw, at most as often as suits it."""


class LiveScreen:
    """The full-screen view."""

    def __init__(self, console: Console, tracker: DemoTracker, facts: Facts) -> None:
        self._live = Live(console=console, screen=True, auto_refresh=False, transient=True)
        self._tracker = tracker
        self._facts = facts
        self._due = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def draw(self, now: float, note: str = "") -> None:
        """Draw a frame."""
        if now >= self._due:
            self._due = now + FRAME_SECONDS
            self._live.update(render(self._tracker, self._facts, now, note), refresh=True)


class Lines:
    """One plain line a second."""

    def __init__(self, tracker: DemoTracker, facts: Facts) -> None:
        self._tracker = tracker
        self._facts = facts
        self._began = time.monotonic()
        self._due = self._began + LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def draw(self, now: float, note: str = "") -> None:
        """Write a line."""
        if now >= self._due:
            self._due += LINE_SECONDS
            sys.stdout.write(line(self._tracker, self._facts, now, now - self._began, note) + "\n")
            sys.stdout.flush()


def line(tracker: DemoTracker, facts: Facts, now: float, elapsed: float, note: str = "") -> str:
    """Figures and the latest change in one line."""
    figures = tracker.figures(now)
    text = (
        f"{elapsed:3.0f}s  in {figures.in_rate:.0f}/s  out {figures.out_rate:.0f}/s  p50 {_ms(figures.p50)}"
        f"  p99 {_ms(figures.p99)}  lag {figures.lag}  {_version(figures.version)}  degraded {figures.degraded}"
    )
    changes = tracker.latest_changes(1)
    if changes and not note:
        text += f"  | {change_text(changes[0], facts).plain}"
    return f"{text}  {note}".rstrip()


def render(tracker: DemoTracker, facts: Facts, now: float, note: str = "") -> RenderableType:
    """One frame: figures above, a user's events and list between, the changes below."""
    figures = tracker.figures(now)
    screen = Layout()
    screen.split_column(
        Layout(_head(figures, facts), size=2),
        Layout(_figures(figures, list(tracker.history)), size=4),
        Layout(_user(tracker.shown(now), facts), size=LIST_ROWS + 2),
        Layout(_changes(tracker, facts), minimum_size=4),
        Layout(Text(f" {note or 'Ctrl-C stops everything'}", "yellow" if note else "dim"), size=1),
    )
    return screen


def _head(figures: Figures, facts: Facts) -> RenderableType:
    done = facts.start + figures.sent
    left = Text(" Freshet", "bold cyan").append("  MovieLens-100K", "bold")
    if figures.event_ts:
        when = datetime.fromtimestamp(figures.event_ts / 1000, UTC)
        left.append(f"  {when:%d %B %Y}", "default")
    right = Text(f"{figures.users:,} users, event {done:,} of {facts.total:,} ", "default")
    row = Table.grid(expand=True)
    row.add_column()
    row.add_column(justify="right")
    row.add_row(left, right)
    bar = ProgressBar(total=facts.total, completed=done, style="bright_black", complete_style="cyan")
    return Group(row, bar)


def _figures(figures: Figures, history: Sequence[Point]) -> RenderableType:
    row = Table.grid(expand=True)
    for _ in range(5):
        row.add_column(ratio=1)
    freshness = Text(_percentiles(figures), "bold")
    degraded = Text(f"{figures.degraded:,} degraded", "bold red" if figures.degraded else "dim")
    version = Text(_version(figures.version), "bold")
    row.add_row(
        _cell("events in", Text(f"{figures.in_rate:,.0f}/s", "bold"), [p.sent for p in history]),
        _cell("lists out", Text(f"{figures.out_rate:,.0f}/s", "bold"), [p.lists for p in history]),
        _cell("fresh p50 | p99", freshness, [p.p50 or 0 for p in history]),
        _cell("lag", Text(f"{figures.lag:,} events", "bold"), [p.lag for p in history]),
        Panel(Group(version, degraded), title="model", title_align="left", border_style="bright_black"),
    )
    return row


def _cell(title: str, figure: Text, history: Sequence[float]) -> Panel:
    trend = Text(sparkline(history, 15), "cyan")
    return Panel(Group(figure, trend), title=title, title_align="left", border_style="bright_black")


def _user(shown: Shown | None, facts: Facts) -> RenderableType:
    if shown is None:
        return Panel(Text("waiting for the first list …", "dim"), border_style="bright_black")
    row = Table.grid(expand=True)
    row.add_column(ratio=31)
    row.add_column(ratio=69)
    row.add_row(_events(shown, facts), _list(shown, facts))
    return row


def _events(shown: Shown, facts: Facts) -> Panel:
    causes = {event.event_id for event in shown.change.causes} if shown.change is not None else set()
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=8, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for event in shown.events[:LIST_ROWS]:
        new = event.event_id in causes
        style = TYPE_STYLES.get(event.type, "default")
        table.add_row(
            Text(event.type, f"bold {style}" if new else style), Text(facts.title(event.item_id), "bold" if new else "")
        )
    return Panel(
        table,
        title=f"[bold]user {shown.user_id}[/] did",
        title_align="left",
        border_style="cyan",
        height=LIST_ROWS + 2,
    )


def _list(shown: Shown, facts: Facts) -> Panel:
    made = shown.list
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=2, justify="right", style="dim")
    table.add_column(width=3, no_wrap=True)
    table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column(width=5, justify="right", no_wrap=True)
    table.add_column(width=1, no_wrap=True)
    table.add_column(ratio=2, no_wrap=True, overflow="ellipsis")
    for rank, item in enumerate(made.items[:LIST_ROWS], 1):
        table.add_row(
            str(rank),
            _arrow(item.item_id, shown.change),
            Text(facts.title(item.item_id), "bold"),
            Text(f"{item.score:.2f}"),
            Text("●", SOURCE_STYLES.get(item.source, "")),
            _reason(item, facts),
        )
    state = "[red]degraded[/]" if made.degraded else "" if made.personalised else "[yellow]not personalised[/]"
    sources = " ".join(f"[{SOURCE_STYLES.get(name, 'default')}]●[/] {name}" for name in _sources(made))
    known = f"list {shown.lists:,} of this run, as of event {made.as_of.partition}@{made.as_of.offset}"
    return Panel(
        table,
        title=f"[bold]so they may like[/]  {sources} {state}".rstrip(),
        title_align="left",
        subtitle=f"[dim]{known}[/]",
        subtitle_align="right",
        border_style="cyan",
        height=LIST_ROWS + 2,
    )


def _sources(made: Recommendation) -> list[str]:
    return sorted({item.source for item in made.items})


def _arrow(item_id: str, change: Change | None) -> Text:
    if change is None:
        return Text("")
    if item_id in change.entered:
        return Text("new", "bold magenta")
    gained = change.moved.get(item_id, 0)
    if gained > 0:
        return Text(f"▲{gained}", "green")
    return Text(f"▼{-gained}", "red") if gained < 0 else Text("·", "dim")


def _reason(item: Item, facts: Facts) -> Text:
    if not item.reasons:
        return Text("")
    top = item.reasons[0]
    return Text(f"{top.weight:.0%} ", "dim").append(facts.title(top.item_id), TYPE_STYLES.get(top.type, "default"))


def _changes(tracker: DemoTracker, facts: Facts) -> Panel:
    rows = [change_text(change, facts) for change in tracker.latest_changes(20)]
    for row in rows:
        row.no_wrap = True
        row.overflow = "ellipsis"
    return Panel(Group(*rows), title="[bold]what changed, and why[/]", title_align="left", border_style="bright_black")


def change_text(change: Change, facts: Facts) -> Text:
    """A change in a line: who did what, and which items moved."""
    text = Text(f"user {change.user_id} ", "bold")
    newest = change.causes[-1] if change.causes else None
    if newest is not None:
        text.append(newest.type, TYPE_STYLES.get(newest.type, "default")).append(f" {facts.title(newest.item_id)}", "")
        if len(change.causes) > 1:
            text.append(f" +{len(change.causes) - 1}", "dim")
    text.append(" → ", "dim")
    moves: list[Text] = [Text("new ", "magenta").append(facts.title(item), "") for item in change.entered]
    for item, gained in sorted(change.moved.items(), key=lambda pair: -abs(pair[1])):
        sign, style = (f"▲{gained}", "green") if gained > 0 else (f"▼{-gained}", "red")
        moves.append(Text(f"{sign} ", style).append(facts.title(item), ""))
    text.append_text(Text(" · ", "dim").join(moves[:MOVES_IN_A_LINE]))
    return text


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as bars, scaled to the largest of them."""
    shown = list(values)[-width:]
    top = max(shown, default=0)
    if top <= 0:
        return BARS[0] * len(shown)
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in shown)


def _percentiles(figures: Figures) -> str:
    if figures.p50 is None or figures.p99 is None:
        return "-"
    return f"{figures.p50:,.0f} | {figures.p99:,.0f} ms"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < LONG_MS else f"{value / 1000:.0f} s"


def _version(version: int | None) -> str:
    return "version -" if version is None else f"version {version}"
