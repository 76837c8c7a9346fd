"""The comparison of a published list with the list that is made again."""

from __future__ import annotations

import pytest
from freshet.core.events import Event
from freshet.core.recommendation import (
    Item,
    Recommendation,
    Timings,
    encode_recommendation,
    recommendation_id,
)
from freshet.core.state import UserState, empty_state, fold
from freshet.ports import Record
from freshet.replay.rebuild import PublishedList
from freshet.replay.verify import Published, _difference

from tests.simulation.memory_replays import START
from tests.unit.replay.made_list import AS_OF, MADE


def published(**changed: object) -> Recommendation:
    """A list as it was published."""
    fields: dict[str, object] = {
        "recommendation_id": recommendation_id("ann", AS_OF, 3, degraded=False),
        "user_id": "ann",
        "items": MADE.items,
        "model_version": 3,
        "as_of": AS_OF,
        "side_inputs": MADE.side_inputs,
        "timings": Timings(START, 1, 2, 3, 4),
        "degraded": False,
        "personalised": True,
    }
    return Recommendation(**(fields | changed))  # type: ignore[arg-type]


def state() -> UserState:
    """The state that the list is as of."""
    state = empty_state(0)
    fold(state, Event("e", "ann", "view", START, "i"), 0, 5)
    return state


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"timings": Timings(START, 9, 9, 9, 9)}, ""),
        ({"recommendation_id": "x"}, "recommendation_id x, should be "),
        ({"variant": "bold"}, "variant 'bold', made again 'live'"),
        ({"personalised": False}, "personalised False, should be True"),
        ({"items": MADE.items[:1]}, "1 items, made again 2"),
        ({"items": MADE.items[::-1]}, "slot 0: published Item(item_id='b'"),
        ({"items": [MADE.items[0], Item("b", 1.00001, "cold")]}, "slot 1: published Item(item_id='b', score=1.00001"),
        ({"items": [MADE.items[0], Item("b", 1.0, "cold", 0.5)]}, "slot 1: "),
    ],
)
def test_every_difference_is_named(changed: dict[str, object], said: str) -> None:
    """A difference in id, variant, length or slot is named, and wall-clock times are not compared."""
    assert _difference(PublishedList(published(**changed), state()), MADE).startswith(said)
    assert bool(_difference(PublishedList(published(**changed), state()), MADE)) == bool(said)


def test_the_newest_of_the_topic_counts() -> None:
    """A tombstone ends a user's lists, and a record that is no list is kept apart."""
    value = encode_recommendation(published())
    found = Published([Record(0, 0, b"ann", value), Record(1, 0, b"bob", b"{}"), Record(2, 0, b"ann", None)])
    assert found.newest == {"ann": None}
    assert len(found.lists) == 1
    assert [record.offset for record, _ in found.unreadable] == [1]
