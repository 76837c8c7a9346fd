"""Hypothesis strategies for events, logs and states, shared by the properties."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from freshet.core.events import CONTROL_TYPES, DEFAULT_BEHAVIOURS, ID_SEPARATOR, MAX_TS_MS, MIN_TS_MS, Event
from freshet.core.state import EVENT_IDS, HISTORY, Consent, UserState
from hypothesis import strategies as st

START_MS = 1_700_000_000_000
PARTITION = 3
KINDS = (*DEFAULT_BEHAVIOURS, *sorted(CONTROL_TYPES))

ids = st.text(st.characters(codec="utf-8", exclude_characters=ID_SEPARATOR), min_size=1, max_size=12)
"""Any Unicode that an id may be."""


@dataclass(frozen=True)
class Entry:
    """One record of a partition's log."""

    offset: int
    event: Event


def make_log(size: int, seed: int) -> list[Entry]:
    """A log of three users: ids sent twice, control events, times in any order, gaps in the offsets.

    More items than a history holds, few enough that they come back.
    """
    random = Random(seed)
    controls = random.choice((0, 0, 1, 4))
    kinds = random.choices(KINDS, weights=[20, 6, 2, *[controls] * (len(KINDS) - 3)], k=size)
    entries: list[Entry] = []
    offset = random.randrange(1000)
    for number, kind in enumerate(kinds):
        repeated = random.choice(entries[-40:]).event.event_id if entries and random.random() < 0.1 else None
        event = Event(
            event_id=repeated or f"e{number}",
            user_id=random.choices(("ann", "bob", "cyd"), weights=(8, 3, 1))[0],
            type=kind,
            ts=START_MS + random.randrange(-(10**9), 10**9),
            item_id=None if kind in CONTROL_TYPES else f"item-{random.randrange(90)}",
            amount=random.choice((None, 0.5, 20.25)),
        )
        entries.append(Entry(offset, event))
        offset += random.choice((1, 1, 1, 2, 5))
    return entries


logs = st.builds(make_log, st.integers(1, 300), st.integers(0, 2**32))


events = st.builds(
    Event,
    event_id=ids,
    user_id=ids,
    type=st.sampled_from((*DEFAULT_BEHAVIOURS, *CONTROL_TYPES)),
    ts=st.integers(MIN_TS_MS, MAX_TS_MS),
    item_id=ids,
    amount=st.none() | st.floats(0, 1e12),
    session_id=st.none() | ids,
    context=st.none() | st.dictionaries(ids, st.none() | st.booleans() | st.integers(-9, 9) | ids),
)


def joined(entries: Sequence[str]) -> str:
    """A sequence as a state keeps it."""
    return ID_SEPARATOR + "".join(entry + ID_SEPARATOR for entry in entries)


def split(log: str) -> list[str]:
    """Inverse of `joined`."""
    return log.split(ID_SEPARATOR)[1:-1]


def make_state(items: Sequence[str], times: Sequence[int], seen: Sequence[str] = (), **fields: Any) -> UserState:
    """A state with this history, of views and purchases in turn."""
    types = [("view", "purchase")[number % 2] for number in range(len(items))]
    return UserState(
        fields.pop("partition", PARTITION),
        item_log=joined(items),
        type_log=joined(types),
        time_log=np.array(times, "<i8").tobytes(),
        seen_log=joined(seen),
        **fields,
    )


@st.composite
def states(draw: st.DrawFn, items: st.SearchStrategy[str] = ids) -> UserState:
    """A state of any content that the fold could have left."""
    history = draw(st.lists(st.tuples(items, st.integers(MIN_TS_MS, MAX_TS_MS)), max_size=HISTORY))
    kinds = st.sampled_from(tuple(DEFAULT_BEHAVIOURS))
    return make_state(
        [item for item, _ in history],
        [time for _, time in history],
        draw(st.lists(items, max_size=20)),
        partition=draw(st.integers(0, 1000)),
        offset=draw(st.integers(-1, 2**62)),
        event_id_log=joined(draw(st.lists(ids, max_size=EVENT_IDS))),
        counts=draw(st.dictionaries(kinds, st.integers(1, 10**9))),
        spend=draw(st.dictionaries(kinds, st.floats(0, 1e15))),
        last_ts=draw(st.integers(0, MAX_TS_MS)),
        feature_ts=draw(st.integers(0, MAX_TS_MS * 1000)),
        folded=draw(st.integers(0, 10**9)),
        consent=draw(st.sampled_from(Consent)),
    )
