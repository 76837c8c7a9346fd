"""Step 2, the examples: point-in-time rows of a log, made by folding it.

Two views of one log:

- `states_before` replays the log with the core's `fold` and yields each event
  with the user's state before it: what the live worker knew. Evaluation
  featurises these.
- `windows` cuts `histories`, what the fold applied of each user, into overlapping rows of `length`, so that
  one row trains up to `length` next events at once. Read up to any position, a
  row equals `featurise` of a state folded from the row's first event on
  (`tests/parity/test_torch_parity.py` proves it row by row), so no target sees
  itself or anything later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from freshet.core.events import CONTROL_TYPES, Event
from freshet.core.features import PADDING, UNKNOWN, gap_bucket
from freshet.core.state import Outcome, UserState, empty_state, fold
from numpy.typing import NDArray

IGNORE = -1
"""Target of a position that trains nothing."""


@dataclass(frozen=True)
class Examples:
    """Training rows, all `[rows, length]` int32; targets are `IGNORE` where there is none."""

    item_index: NDArray[np.int32]
    event_type: NDArray[np.int32]
    time_gap: NDArray[np.int32]
    next_item: NDArray[np.int32]
    next_type: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.item_index)


def states_before(
    events: Iterable[Event], states: dict[str, UserState], history: int, offset: int = 0
) -> Iterator[tuple[Event, UserState, bool]]:
    """Yield `(event, state before it, first touch)` in log order, folding as it goes.

    `states` is the table, `history` how many recent events it keeps and `offset`
    the first event's place in the log: pass a warm table to continue a log. The state yielded changes as soon as the
    iterator moves on.
    """
    for position, event in enumerate(events, offset):
        state = states.setdefault(event.user_id, empty_state(0))
        if event.type not in CONTROL_TYPES and not state.consent:
            first = event.item_id not in state.items and event.item_id not in state.seen
            yield event, state, first
        fold(state, event, 0, position, history)


def histories(events: Iterable[Event]) -> list[list[Event]]:
    """Each user's events that the fold applies, without those from before an opt-out or erasure: they are forgotten."""
    states: dict[str, UserState] = {}
    own: dict[str, list[Event]] = {}
    for offset, event in enumerate(events):
        state = states.setdefault(event.user_id, empty_state(0))
        outcome = fold(state, event, 0, offset)
        history = own.setdefault(event.user_id, [])
        if state.consent:
            history.clear()
        elif event.type not in CONTROL_TYPES and outcome in (Outcome.APPLIED, Outcome.FIRST_TOUCH):
            history.append(event)
    return [history for history in own.values() if history]


def shuffle_ties(histories: Iterable[list[Event]], random: np.random.Generator) -> list[list[Event]]:
    """The same histories with events of equal time in random order.

    How a log orders them is its own habit (by item id, say), which an encoder
    would learn instead of behaviour.
    """
    return [
        [
            event
            for _, _, event in sorted(
                zip(_times(run), random.random(len(run)), run, strict=True), key=_time_then_chance
            )
        ]
        for run in histories
    ]


def _time_then_chance(entry: tuple[int, float, Event]) -> tuple[int, float]:
    return entry[:2]


def _times(run: list[Event]) -> list[int]:
    """Event times, a late event counted at the time it came behind: log order stays except among equals."""
    return list(accumulate((event.ts for event in run), max))


def windows(
    histories: Iterable[list[Event]],
    item_index: Mapping[str, int],
    type_index: Mapping[str, int],
    length: int,
    *,
    targets: Collection[str] | None = None,
    since: int = 0,
    overlap: float = 0.5,
    random: np.random.Generator | None = None,
) -> Examples:
    """Training rows of `length` events over users' histories.

    An event trains the next item where its type is among `targets` (None: all), and
    nothing where it is older than `since` (ms). Rows that train nothing are left out.

    A history's first row opens with one padding position, whose target is the first
    event: an empty history is an example too. Later rows see the last `overlap` of the row
    before again and train only the targets that it did not reach, so each event is a
    target once and has at least so much of a row behind it. Where `random` is given,
    histories longer than a row are cut at places it chooses: epoch by epoch an event
    then has contexts of other lengths behind it.
    """
    runs = list(histories)
    events = [event for run in runs for event in run]
    cuts = np.array(list(_cuts([len(run) for run in runs], length, overlap, random)), np.int64).reshape(-1, 3)
    items = np.array([item_index.get(event.item_id or "", UNKNOWN) for event in events], np.int32)
    types = np.array([type_index.get(event.type, 0) for event in events], np.int32)
    times = np.array([event.ts for event in events], np.int64)
    gaps = gap_bucket(np.diff(times, prepend=times[:1]))
    aimed = np.array([targets is None or event.type in targets for event in events], bool) & (items != UNKNOWN)
    fresh = times >= since
    aimed_items = np.where(aimed & fresh, items, IGNORE)
    aimed_types = np.where((types != 0) & fresh, types, IGNORE)

    begin, first_target, stop = cuts.T[:, :, None]
    position = stop - length + np.arange(length)  # of inputs; what stands before `begin` is padding
    seen, trains = position >= begin, position + 1 >= first_target
    current, following = np.maximum(position, 0), np.maximum(position + 1, 0)  # any position will do where masked
    columns = (
        np.where(seen, items[current], PADDING),
        np.where(seen, types[current], 0),
        np.where(
            seen, np.where(position == begin, 1, gaps[current]), 0
        ),  # the event before the first is not in the state
        np.where(trains, aimed_items[following], IGNORE),
        np.where(trains, aimed_types[following], IGNORE),
    )
    useful = (columns[3] != IGNORE).any(axis=1) | (columns[4] != IGNORE).any(axis=1)
    if not useful.any():
        raise ValueError("the log has no behaviour events to learn from")
    return Examples(*(column[useful].astype(np.int32) for column in columns))


def _cuts(
    sizes: Sequence[int], length: int, overlap: float, random: np.random.Generator | None
) -> Iterator[tuple[int, int, int]]:
    """Rows of histories that lie one after the other: the first input, the first target and the last target of each."""
    stride = max(1, round(length * (1 - overlap)))
    base = 0
    for size in sizes:
        early = 0 if random is None or size <= length else int(random.integers(stride))
        start = -1 - early  # -1 is the padding position before the first event
        trained = 0  # targets already covered
        while trained < size:
            stop = min(start + length, size - 1)
            yield base + max(start, 0), base + trained, base + stop
            trained = stop + 1
            start += stride
        base += size


def look_ahead(examples: Examples, chance: float, random: np.random.Generator) -> Examples:
    """The same rows with some next items replaced by later ones of the row: one further on with `chance`, and so on.

    Where users take several things at a time, their order among them says little, and what comes soon is as good
    a target as what comes next. A row's last targets have nothing further on and stay.
    """
    length = examples.next_item.shape[1]
    further = random.geometric(1 - chance, examples.next_item.shape) - 1
    position = np.minimum(np.arange(length) + further, length - 1)
    later = np.take_along_axis(examples.next_item, position, axis=1)
    moved = (examples.next_item != IGNORE) & (later != IGNORE)
    return replace(examples, next_item=np.where(moved, later, examples.next_item))
