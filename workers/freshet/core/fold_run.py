"""Folding a run of events, with the states of its busy users taken apart.

A stored state keeps its sequences joined, which is cheapest for a few events;
each event then costs a pass over several strings. Busy users' states are opened
once a run, folded into, and closed. The result is the same to the last byte.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from freshet.core.events import CONTROL_TYPES, ID_SEPARATOR, Event
from freshet.core.state import (
    APPLIED,
    DUPLICATE,
    EVENT_IDS,
    FIRST_TOUCH,
    HISTORY,
    LOG_CHARS,
    REDELIVERED,
    SEEN,
    Outcome,
    UserState,
    advance,
    count,
    fold,
)

OPEN_FROM = 10
"""Events of one user in a run from which opening the state pays."""


class Placed(Protocol):
    """What an event was read as."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""


def fold_run(
    states: Mapping[str, UserState],
    users: Mapping[str, int],
    events: Iterable[tuple[int, Placed, Event]],
    history: int = HISTORY,
) -> list[Outcome]:
    """Fold events, each with its partition and record, into `states` as `state.fold` does; an outcome for each.

    `users` says how many of the events each user has.
    """
    opened = {user: OpenState(states[user]) for user, count in users.items() if count >= OPEN_FROM}
    outcomes = []
    for partition, record, event in events:
        user = event.user_id
        outcomes.append(
            opened[user].fold(event, partition, record.offset, history)
            if user in opened
            else fold(states[user], event, partition, record.offset, history)
        )
    for state in opened.values():
        state.close()
    return outcomes


class OpenState:
    """The sequences of `state`, open; `close` writes them back. The position and the counts are kept in `state`."""

    __slots__ = ("_chars", "_event_ids", "_items", "_seen", "_seen_chars", "_times", "_types", "_within", "state")

    def __init__(self, state: UserState) -> None:
        self.state = state
        self._open()

    def _open(self) -> None:
        state = self.state
        self._event_ids = dict.fromkeys(state.event_ids)
        self._items, self._types, self._times = state.items, state.types, state.times
        self._seen = dict.fromkeys(state.seen)
        self._within = Counter(self._items)
        self._chars = len(state.item_log) + len(state.type_log)
        self._seen_chars = len(state.seen_log)

    def fold(self, event: Event, partition: int, offset: int, history: int = HISTORY) -> Outcome:
        """Fold `event` as `state.fold` does; returns what that returns."""
        state = self.state
        if state.consent or event.type in CONTROL_TYPES:
            self.close()
            outcome = fold(state, event, partition, offset, history)
            self._open()
            return outcome
        if not advance(state, partition, offset):
            return REDELIVERED
        event_ids = self._event_ids
        if event.event_id in event_ids:
            return DUPLICATE
        if event.ts <= state.withdrawn_ts:
            return Outcome.IGNORED
        event_ids[event.event_id] = None
        if len(event_ids) > EVENT_IDS:
            del event_ids[next(iter(event_ids))]
        count(state, event)
        item = event.item_id or ""
        within, items = self._within, self._items
        times = within.get(item, 0)
        first = not times and item not in self._seen
        within[item] = times + 1
        items.append(item)
        self._types.append(event.type)
        self._times.append(event.ts)
        self._chars += len(item) + len(event.type) + 2
        while len(items) > history or self._chars > LOG_CHARS:
            self._drop_oldest()
        return FIRST_TOUCH if first and not state.withdrawn else APPLIED

    def _drop_oldest(self) -> None:
        item, kind = self._items.pop(0), self._types.pop(0)
        del self._times[0]
        self._chars -= len(item) + len(kind) + 2
        if self._within[item] > 1:
            self._within[item] -= 1
            return
        del self._within[item]
        seen = self._seen
        if item in seen:
            del seen[item]
        else:
            self._seen_chars += len(item) + 1
        seen[item] = None
        while len(seen) > SEEN or self._seen_chars > LOG_CHARS:
            oldest = next(iter(seen))
            del seen[oldest]
            self._seen_chars -= len(oldest) + 1

    def close(self) -> UserState:
        """Write the sequences back; returns the state."""
        state = self.state
        state.event_id_log = _joined(self._event_ids)
        state.item_log = _joined(self._items)
        state.type_log = _joined(self._types)
        state.time_log = struct.pack(f"<{len(self._times)}q", *self._times)
        state.seen_log = _joined(self._seen)
        return state


def _joined(entries: dict[str, None] | list[str]) -> str:
    return ID_SEPARATOR.join(("", *entries, "")) if entries else ID_SEPARATOR
