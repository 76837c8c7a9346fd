"""The lifts of a version's items: value and novelty."""

from math import log

import numpy as np
import pytest
from freshet.core.events import Event
from freshet_training.lifts import SHRINKAGE, item_lifts

WEIGHTS = {"view": 1.0, "purchase": 4.0}


def event(item: str, kind: str = "view") -> Event:
    """An event on an item."""
    return Event("e", "u", kind, 1, item)


def test_value_is_what_an_items_events_are_worth() -> None:
    """An item's value is the log of its mean weight over the log's mean, shrunk towards 0 for few events."""
    events = [event("bought", "purchase") for _ in range(50)] + [event("viewed") for _ in range(50)]
    events += [event("rare", "purchase")]
    value = item_lifts(events, ["bought", "viewed", "rare"], WEIGHTS)[:, 0]
    mean = (51 * 4 + 50) / 101
    assert value[0] == pytest.approx(log((200 + SHRINKAGE * mean) / (50 + SHRINKAGE) / mean), abs=1e-6)
    assert value[0] > value[2] > value[3] == 0.0 > value[1]


def test_novelty_is_how_much_rarer_an_item_is_than_the_average() -> None:
    """Novelty plus the log of an item's chance is the same for every item."""
    counts = {"head": 70, "middle": 20, "tail": 4, "none": 0}
    events = [event(item) for item, count in counts.items() for _ in range(count)]
    novelty = item_lifts(events, list(counts), WEIGHTS)[:, 1]
    chance = np.log([(count + 1) / (94 + 4) for count in counts.values()])
    np.testing.assert_allclose(novelty[:4] + chance, -log(4), atol=1e-6)
    assert novelty[4] == novelty[3]


def test_behaviours_without_worth_have_no_value() -> None:
    """Without weights or known items every value is 0."""
    events = [event("a"), event("b", "purchase"), event("elsewhere")]
    assert not item_lifts(events, ["a", "b"], {"view": 0.0, "purchase": 0.0})[:, 0].any()
    assert not item_lifts([], ["a", "b"], WEIGHTS).any()
