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

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from workers.core.events import CONTROL_TYPES, Event
from workers.core.features import PADDING, UNKNOWN, gap_bucket
from workers.core.state import Outcome, UserState, empty_state, fold

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
    for place, event in enumerate(events, offset):
        state = states.setdefault(event.user_id, empty_state(0))
        if event.type not in CONTROL_TYPES and not state.consent:
            first = event.item_id not in state.items and event.item_id not in state.seen
            yield event, state, first
        fold(state, event, 0, place, history)


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
) -> Examples:
    """Training rows of `length` events over users' histories.

    An event trains the next item where its type is among `targets` (None: all), and
    nothing where it is older than `since` (ms). Rows that train nothing are left out.

    A history's first row opens with one padding position, whose target is the first
    event: an empty history is an example too. Later rows see the last `overlap` of the row
    before again and train only the targets that it did not reach, so each event is a
    target once and has at least so much of a row behind it.
    """
    rows: list[tuple[NDArray[np.int32], ...]] = []
    stride = max(1, round(length * (1 - overlap)))
    for run in histories:
        aimed = np.array([targets is None or event.type in targets for event in run])
        fresh = np.array([event.ts >= since for event in run])
        rows.extend(_user_rows(run, item_index, type_index, length, stride, aimed & fresh, fresh))
    if not rows:
        raise ValueError("the log has no behaviour events to learn from")
    return Examples(*(np.stack(column) for column in zip(*rows, strict=True)))


def look_ahead(examples: Examples, chance: float, random: np.random.Generator) -> Examples:
    """The same rows with some next items replaced by later ones of the row: one further on with `chance`, and so on.

    Where users take several things at a time, their order among them says little, and what comes soon is as good
    a target as what comes next. A row's last targets have nothing further on and stay.
    """
    length = examples.next_item.shape[1]
    further = random.geometric(1 - chance, examples.next_item.shape) - 1
    place = np.minimum(np.arange(length) + further, length - 1)
    later = np.take_along_axis(examples.next_item, place, axis=1)
    moved = (examples.next_item != IGNORE) & (later != IGNORE)
    return replace(examples, next_item=np.where(moved, later, examples.next_item))


def _user_rows(
    run: list[Event],
    item_index: Mapping[str, int],
    type_index: Mapping[str, int],
    length: int,
    stride: int,
    item_aims: NDArray[np.bool_],
    type_aims: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.int32], ...]]:
    items = np.array([item_index.get(event.item_id or "", UNKNOWN) for event in run], np.int32)
    types = np.array([type_index.get(event.type, 0) for event in run], np.int32)
    gaps = gap_bucket(np.diff(np.array([event.ts for event in run], np.int64), prepend=run[0].ts))
    aimed_items = np.where(item_aims & (items != UNKNOWN), items, IGNORE).astype(np.int32)
    aimed_types = np.where(type_aims & (types != 0), types, IGNORE).astype(np.int32)
    trained = 0  # targets already covered
    start = -1  # -1 is the padding position before the first event
    while trained < len(run):
        stop = min(start + length, len(run) - 1)  # inputs are events start..stop-1, targets start+1..stop
        inputs = slice(max(start, 0), stop)
        row_gaps = gaps[inputs].copy()
        row_gaps[:1] = 1  # the previous event is not in the state: its gap is unknown
        next_items = aimed_items[start + 1 : stop + 1].copy()
        next_types = aimed_types[start + 1 : stop + 1].copy()
        done = trained - (start + 1)
        next_items[:done] = IGNORE
        next_types[:done] = IGNORE
        if (next_items != IGNORE).any() or (next_types != IGNORE).any():
            yield (
                _right(items[inputs], PADDING, length),
                _right(types[inputs], 0, length),
                _right(row_gaps, 0, length),
                _right(next_items, IGNORE, length),
                _right(next_types, IGNORE, length),
            )
        trained = stop + 1
        start += stride


def _right(values: NDArray[np.int32], fill: int, length: int) -> NDArray[np.int32]:
    """Pad on the left to `length`, as `featurise` does."""
    row = np.full(length, fill, np.int32)
    if len(values):
        row[-len(values) :] = values
    return row
