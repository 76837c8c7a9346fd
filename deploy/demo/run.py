"""The demo against a running stack: stream, show, and judge what came out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from freshet.errors import FreshetError
from freshet.settings import Settings
from kafka.errors import KafkaError
from rich.console import Console

from deploy.demo import movielens, stream
from deploy.demo.tracker import DemoTracker
from deploy.demo.view import Facts, Lines, LiveScreen, Screen

TICK_SECONDS = 0.1
DRAIN_SECONDS = 20.0
INTERRUPTED_DRAIN_SECONDS = 3.0


class DemoError(FreshetError):
    """The demo did not do what it should have; the message is one line."""


class PlayedOut(Exception):
    """The topic already holds the whole stream."""


@dataclass(frozen=True)
class DemoResult:
    """What a run came to; `shortfall` is None when every event that went in has its list."""

    sent: int
    lists: int
    users: int
    p50: float | None
    p99: float | None
    shortfall: str | None

    def summary(self) -> str:
        """The run in one sentence."""
        fresh = f"; freshness p50 {self.p50:.0f} ms, p99 {self.p99:.0f} ms" if self.p50 and self.p99 else ""
        end = "" if self.shortfall else "; every user's list is as of their last event"
        return f"{self.sent:,} events in, {self.lists:,} lists out for {self.users:,} users{fresh}{end}"


def play(
    settings: Settings,
    *,
    rate: float,
    seconds: float | None,
    stop: threading.Event,
    fault: Callable[[], str | None],
    console: Console,
    in_order: bool = False,
) -> DemoResult:
    """Stream MovieLens-100K from where the last run stopped, and show it.

    Args:
        settings: Reach the stack by these.
        rate: Events a second.
        seconds: Stop by itself after so long; None goes on to the end of the data.
        stop: Set from outside to stop.
        fault: Says what is wrong with the worker, None while it is well.
        console: Where to show it.
        in_order: Strictly by event time, instead of with many users' sessions at once.

    Raises:
        DemoError: Kafka or the worker failed.
        MovieLensError: The data is missing.
        PlayedOut: All of it has been sent already.
    """
    items, events = movielens.read_items(), movielens.read_events()
    if not in_order:
        events = movielens.at_once(events)
    try:
        start = stream.position(settings)
        if start >= len(events):
            raise PlayedOut
        stream.send_items(settings, items)
        titles = {item.item_id: movielens.spoken_title(item) for item in items}
        tracker = DemoTracker()
        facts = Facts(titles, len(events), start)
        screen: Screen = LiveScreen(console, tracker, facts) if console.is_terminal else Lines(tracker, facts)
        with (
            stream.ListWatcher(settings, tracker) as lists,
            stream.Feed(settings, tracker, events[start:], rate) as feed,
            screen,
        ):
            _show(tracker, screen, (feed, lists), stop, fault, seconds)
            feed.stop()
            _drain(tracker, screen, (feed, lists), fault, INTERRUPTED_DRAIN_SECONDS if stop.is_set() else DRAIN_SECONDS)
    except KafkaError as error:
        raise DemoError(f"Kafka at {settings.kafka}: {error}") from None
    figures = tracker.figures(time.monotonic())
    return DemoResult(figures.sent, figures.lists, figures.users, *tracker.overall(), tracker.shortfall())


def _show(
    tracker: DemoTracker,
    screen: Screen,
    ends: tuple[stream.Feed, stream.ListWatcher],
    stop: threading.Event,
    fault: Callable[[], str | None],
    seconds: float | None,
) -> None:
    """Draw until it is time to stop."""
    began = second = time.monotonic()
    while not stop.wait(TICK_SECONDS):
        now = time.monotonic()
        if now - second >= 1.0:
            second += 1.0
            tracker.tick(now)
        screen.draw(now)
        _raise_failures(ends, fault)
        if ends[0].done.is_set() or (seconds is not None and now - began >= seconds):
            return


def _drain(
    tracker: DemoTracker,
    screen: Screen,
    ends: tuple[stream.Feed, stream.ListWatcher],
    fault: Callable[[], str | None],
    seconds: float,
) -> None:
    """Wait for the lists of the last events."""
    deadline = time.monotonic() + seconds
    while tracker.shortfall() and (now := time.monotonic()) < deadline:
        screen.draw(now, f"waiting for {tracker.lag():,} events' lists")
        _raise_failures(ends, fault)
        time.sleep(TICK_SECONDS / 2)


def _raise_failures(ends: tuple[stream.Feed, stream.ListWatcher], fault: Callable[[], str | None]) -> None:
    for end in ends:
        if end.failure is not None:
            raise DemoError(f"{type(end).__name__.lower()}: {end.failure}")
    if (wrong := fault()) is not None:
        raise DemoError(wrong)
