"""What is known of the stream: events sent, lists come back, how long it took, what changed.

Pure bookkeeping behind one lock: three threads report to it, the view reads it. Times are
`time.monotonic()` seconds.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from freshet.core.events import Event
from freshet.core.recommendation import Item, Recommendation

RATE_SECONDS = 2.0
"""Throughput is the mean over this long."""
FRESHNESS_SECONDS = 5.0
"""Percentiles are of the lists that came within this long."""
FOLLOWED_SECONDS = 15.0
"""How long one user is followed while lists of theirs come."""
SHOWN_SECONDS = 1.2
"""How long a followed user's list stands still, so that it can be read."""
QUIET_SECONDS = 2.0
"""A followed user without a new list for this long gives way."""
CHANGE_SECONDS = 0.7
"""Between two lines of the change log."""
KEPT_EVENTS = 40
HISTORY_SECONDS = 60

T = TypeVar("T")


@dataclass
class Sent:
    """An event on its way; `offset` is None until the broker has acknowledged it."""

    event: Event
    at: float
    offset: int | None = None


@dataclass(frozen=True)
class Change:
    """What a user's events did to their list. `moved` maps items to places gained; new ones are in `entered`."""

    user_id: str
    causes: tuple[Event, ...]
    moved: dict[str, int]
    entered: tuple[str, ...]
    left: tuple[str, ...]


@dataclass
class UserView:
    """One user as the view shows them."""

    user_id: str
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    """The last ones that a list of theirs knows of, oldest first."""
    folded: int = 0
    waiting: deque[Sent] = field(default_factory=deque)
    last_acknowledged: int = -1
    listed: int = -1
    """Offset of the newest event that a list of theirs knows of."""
    listed_at: float = 0.0
    list: Recommendation | None = None
    lists: int = 0


@dataclass(frozen=True)
class Shown:
    """What the view shows of the followed user: it stands still for `SHOWN_SECONDS`."""

    user_id: str
    events: tuple[Event, ...]
    """The last ones that the list knows of, newest first."""
    list: Recommendation
    lists: int
    change: Change | None
    """Since what was shown before."""


@dataclass(frozen=True)
class Figures:
    """The stream in numbers; `p50` and `p99` are ms from produce to consume, None before the first list."""

    sent: int
    lists: int
    users: int
    in_rate: float
    out_rate: float
    p50: float | None
    p99: float | None
    lag: int
    version: int | None
    degraded: int
    event_ts: int


@dataclass(frozen=True)
class Point:
    """One second of history."""

    sent: int
    lists: int
    p50: float | None
    lag: int


class DemoTracker:
    """The bookkeeping; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[str, UserView] = {}
        self._sent_at: deque[float] = deque()
        self._event_ts = 0
        self._listed_at: deque[float] = deque()
        self._fresh: deque[tuple[float, float]] = deque()
        self._all_fresh: list[float] = []
        self._counts: Counter[str] = Counter()
        self._version: int | None = None
        self._followed: UserView | None = None
        self._followed_since = 0.0
        self._shown: Shown | None = None
        self._shown_at = 0.0
        self._shown_folded = 0
        self._changed_at = 0.0
        self._recent: tuple[int, int] = (0, 0)
        self.changes: deque[Change] = deque(maxlen=50)
        self.history: deque[Point] = deque(maxlen=HISTORY_SECONDS)

    def sending(self, event: Event, at: float) -> Sent:
        """An event is about to be sent; pass what comes back to `acknowledged`."""
        sent = Sent(event, at)
        with self._lock:
            user = self._users.setdefault(event.user_id, UserView(event.user_id))
            user.waiting.append(sent)
            self._sent_at.append(at)
            self._event_ts = max(self._event_ts, event.ts)
            self._counts["sent"] += 1
        return sent

    def acknowledged(self, sent: Sent, offset: int) -> None:
        """The broker has the event at `offset`; its list may have come already."""
        with self._lock:
            sent.offset = offset
            user = self._users[sent.event.user_id]
            user.last_acknowledged = max(user.last_acknowledged, offset)
            self._counts["acknowledged"] += 1
            if offset <= user.listed:
                self._settle(user, user.listed_at)

    def consumed(self, made: Recommendation, at: float) -> None:
        """A list came out."""
        with self._lock:
            user = self._users.get(made.user_id)
            if user is None or made.as_of.offset < user.listed:
                return
            before = user.list
            user.listed, user.listed_at, user.list = made.as_of.offset, at, made
            user.lists += 1
            self._version = made.model_version
            self._counts["lists"] += 1
            self._counts["degraded"] += made.degraded
            self._listed_at.append(at)
            causes = self._settle(user, at)
            if before is not None:
                change = difference(made.user_id, causes, before.items, made.items)
                if (change.moved or change.entered) and causes and at - self._changed_at >= CHANGE_SECONDS:
                    self._changed_at = at
                    self.changes.append(change)
            self._follow(user, at)

    def _settle(self, user: UserView, at: float) -> tuple[Event, ...]:
        """Take the events that the user's newest list knows of off the waiting ones."""
        settled = []
        waiting = user.waiting
        while waiting and waiting[0].offset is not None and waiting[0].offset <= user.listed:
            sent = waiting.popleft()
            took = max(0.0, (at - sent.at) * 1000)
            self._fresh.append((at, took))
            self._all_fresh.append(took)
            settled.append(sent.event)
            user.events.append(sent.event)
            user.folded += 1
        return tuple(settled)

    def _follow(self, user: UserView, at: float) -> None:
        current = self._followed
        if current is user:
            return
        quiet = current is None or at - current.listed_at > QUIET_SECONDS
        long_enough = at - self._followed_since > FOLLOWED_SECONDS
        if current is None or (user.lists > 1 and (quiet or long_enough)):
            self._followed, self._followed_since = user, at

    def tick(self, now: float) -> None:
        """Close a second of history."""
        with self._lock:
            sent, lists = self._counts["sent"], self._counts["lists"]
            before_sent, before_lists = self._recent
            self._recent = (sent, lists)
            fresh = sorted(took for at, took in self._fresh if now - at <= 1.0)
            self.history.append(Point(sent - before_sent, lists - before_lists, percentile(fresh, 0.5), self._lag()))

    def figures(self, now: float) -> Figures:
        """The stream in numbers, now."""
        with self._lock:
            _forget(self._sent_at, lambda at: now - at > RATE_SECONDS)
            _forget(self._listed_at, lambda at: now - at > RATE_SECONDS)
            _forget(self._fresh, lambda pair: now - pair[0] > FRESHNESS_SECONDS)
            fresh = sorted(took for _, took in self._fresh)
            return Figures(
                self._counts["sent"],
                self._counts["lists"],
                len(self._users),
                len(self._sent_at) / RATE_SECONDS,
                len(self._listed_at) / RATE_SECONDS,
                percentile(fresh, 0.5),
                percentile(fresh, 0.99),
                self._lag(),
                self._version,
                self._counts["degraded"],
                self._event_ts,
            )

    def overall(self) -> tuple[float | None, float | None]:
        """p50 and p99 of the whole run, ms."""
        with self._lock:
            fresh = sorted(self._all_fresh)
            return percentile(fresh, 0.5), percentile(fresh, 0.99)

    def shown(self, now: float) -> Shown | None:
        """The followed user, as they are to be shown now."""
        with self._lock:
            user, before = self._followed, self._shown
            if user is None or user.list is None:
                return None
            same = before is not None and before.user_id == user.user_id
            if before is not None and same and (now - self._shown_at < SHOWN_SECONDS or before.lists == user.lists):
                return before
            change = None
            if before is not None and same:
                since = min(len(user.events), user.folded - self._shown_folded)
                causes = tuple(user.events)[len(user.events) - since :]
                change = difference(user.user_id, causes, before.list.items, user.list.items)
            self._shown = Shown(user.user_id, tuple(reversed(user.events)), user.list, user.lists, change)
            self._shown_at, self._shown_folded = now, user.folded
            return self._shown

    def latest_changes(self, count: int) -> list[Change]:
        """The newest lines of the change log, newest first."""
        with self._lock:
            return list(self.changes)[: -count - 1 : -1]

    def _lag(self) -> int:
        return self._counts["sent"] - len(self._all_fresh)

    def lag(self) -> int:
        """Events sent that no list knows of yet."""
        with self._lock:
            return self._lag()

    def shortfall(self) -> str | None:
        """What keeps the run from being complete: every event in, every touched user's list as of their last one."""
        with self._lock:
            if not self._counts["sent"]:
                return "no event was sent"
            if missing := self._counts["sent"] - self._counts["acknowledged"]:
                return f"{missing:,} of {self._counts['sent']:,} events were not acknowledged by Kafka"
            behind = [user for user in self._users.values() if user.listed < user.last_acknowledged]
            if behind:
                without = sum(user.list is None for user in behind)
                return (
                    f"{len(behind):,} of {len(self._users):,} users have no list as of their last event"
                    f" ({without:,} of them none at all)"
                )
            return None


def difference(user_id: str, causes: tuple[Event, ...], before: Sequence[Item], after: Sequence[Item]) -> Change:
    """How one list became another."""
    old = {item.item_id: rank for rank, item in enumerate(before)}
    new = {item.item_id: rank for rank, item in enumerate(after)}
    moved = {item: old[item] - rank for item, rank in new.items() if item in old and old[item] != rank}
    entered = tuple(item for item in new if item not in old)
    left = tuple(item for item in old if item not in new)
    return Change(user_id, causes, moved, entered, left)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of sorted values."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _forget(values: deque[T], old: Callable[[T], bool]) -> None:
    while values and old(values[0]):
        values.popleft()
