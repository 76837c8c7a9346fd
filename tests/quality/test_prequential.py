"""Each event is ranked before it is learned. Runs in the training environment."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.quality.logs import Stream
from tests.quality.prequential import CoVisitation, Popularity, Touch, _judge, _ranks, _touches

HOUR = 3_600_000
ITEMS = 5


def stream(*events: tuple[int, int]) -> Stream:
    """One view an hour by (user, item)."""
    users, items = [user for user, _ in events], [item for _, item in events]
    return Stream(
        users, items, ["view"] * len(events), [position * HOUR for position in range(len(events))], [""] * ITEMS
    )


def judged(log: Stream) -> dict[str, dict[str, float]]:
    """With an encoder that knows nothing, no burn-in and a window of a day."""
    touches = list(_touches(log, {"view"}))
    blind = np.zeros(2, np.float32), np.zeros((ITEMS, 2), np.float32)
    return _judge(log, touches, [blind] * len(touches), window_days=1)


def test_an_item_that_nobody_touched_is_a_miss() -> None:
    """The first touch of an item is a miss."""
    assert judged(stream((0, 0), (1, 1), (2, 2)))["popularity"]["hr@10"] == 0


def test_an_event_is_not_judged_by_what_it_teaches() -> None:
    """An event is ranked by the counts before the event."""
    figures = judged(stream((0, 1), (1, 1), (2, 0), (3, 0)))
    second = 1 / np.log2(3)
    # misses: the first of each item; then item 1 first of one, item 0 second of two
    assert figures["popularity"]["ndcg@10"] == pytest.approx((0 + 1 + 0 + second) / 4)


def test_repeats_and_other_types_are_not_judged() -> None:
    """Only a user's first touch of an item by a counted behaviour is judged."""
    log = Stream([0, 0, 0, 0], [1, 1, 2, 3], ["view", "view", "like", "view"], [0, 1, 2, 3], [""] * ITEMS)
    assert list(_touches(log, {"view"})) == [Touch(0, 1, 0, 0, new_user=True), Touch(0, 3, 3, 3, new_user=False)]


def test_own_and_unborn_items_are_no_candidates() -> None:
    """A user's own items and items without a touch are no candidates, and ties go by row."""
    alive = np.array([True, True, True, True, False])
    assert _ranks(np.array([[9, 1, 1, 1, 9]], np.float32), 3, [0], alive).tolist() == [2]


def test_popularity_forgets_by_window_and_by_half() -> None:
    """A day later a window of half a day is empty, and a half-life of 12 hours leaves a quarter."""
    counts = Popularity(ITEMS, window_days=0.5)
    counts.learn(2, 0)
    counts.advance(24 * HOUR)
    assert counts.window[2] == 0
    assert counts.ever[2] == 1
    assert counts.decayed[:, 2] == pytest.approx(0.5 ** (24 / np.array([1, 3, 12, 48, 168])))


def test_what_followed_once_is_expected_again() -> None:
    """After a user went from 1 to 2, another user of 1 has 2 first."""
    together = CoVisitation(ITEMS)
    together.learn([1], 2)
    assert together.scores([1]).argmax() == 2
    assert not together.scores([]).any()
