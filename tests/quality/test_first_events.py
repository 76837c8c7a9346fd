"""First events are ranked by the counts before them. Runs in the training environment."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.quality import first_events
from tests.quality.first_events import measure, times_of_day
from tests.quality.logs import Stream

HOUR = 3_600_000
ITEMS = 15
SECOND = 1 / np.log2(3)
Touches = list[tuple[int, int, int]]


def stream(before: Touches, judged: Touches) -> Stream:
    """Views by (user, item, hour); between the two parts the first is repeated, which teaches nothing."""
    users, items, hours = zip(*before, *[before[0]] * 5 * len(before + judged), *judged, strict=True)
    return Stream([*users], [*items], ["view"] * len(users), [hour * HOUR for hour in hours], [""] * ITEMS)


def test_only_first_events_are_judged_by_what_came_before_them() -> None:
    """Only users' first events are judged, by the counts before them."""
    log = stream([(0, 3, 0)], [(1, 3, 1), (1, 14, 1), (2, 14, 2)])
    assert measure(log, {}, half_life=1e6)["popularity"]["ndcg@10"] == pytest.approx((1 + SECOND) / 2)


def test_what_nobody_touched_goes_by_row() -> None:
    """Items without a count rank by row."""
    found = measure(stream([(0, 3, 0)], [(1, 14, 1), (2, 0, 1)]), {}, half_life=1e6)["popularity"]
    assert found["hr@10"] == 0.5


@pytest.mark.parametrize(("hour", "gain"), [(1, SECOND), (100, 1.0)], ids=["soon", "late"])
def test_an_item_counts_once_a_user_and_fades(hour: int, gain: float) -> None:
    """An item counts each user once, and its count decays."""
    log = stream([(0, 9, 0)] * 5 + [(1, 2, 0), (2, 2, 0), (0, 2, 0), (3, 9, hour)], [(4, 9, hour)])
    assert measure(log, {}, half_life=3600.0)["popularity"]["ndcg@10"] == pytest.approx(gain)


def test_a_context_ranks_by_visitors_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context's own counts lead where shrinkage to the counts of all is weak."""
    monkeypatch.setattr(first_events, "DRAWN", (1.0, 1000.0))
    log = stream([(0, 3, 0), (1, 3, 0), (2, 3, 0), (3, 7, 0)], [(4, 7, 1)])
    found = measure(log, {"kind": ["a", "a", "a", "b", "b"]}, half_life=1e6)
    assert {name: row["ndcg@10"] for name, row in found.items()} == pytest.approx(
        {"popularity": SECOND, "by kind, 1 of all": 1.0, "by kind, 1000 of all": SECOND}
    )


def test_a_visitors_time_of_day_is_that_of_the_first_event() -> None:
    """A visitor's time of day is that of the first event."""
    log = Stream([0, 1, 0], [0, 1, 2], ["view"] * 3, [7 * HOUR, 13 * HOUR, 23 * HOUR], [""] * ITEMS)
    assert times_of_day(log) == {"quarter of the day": ["1", "2"]}
