"""The list to which an act is joined."""

from __future__ import annotations

import pytest
from freshet.core.evaluation.joining import Joiner
from freshet.core.events import Event
from freshet.core.recommendation import AsOf, Item, Recommendation, SideInputs, Timings

NOW = 1_700_000_000_000
WINDOW = 60_000


def made(name: str, ts: int, *items: str, user: str = "ann") -> Recommendation:
    """A list as of an event time after `NOW`."""
    return Recommendation(
        name,
        user,
        [Item(item, 1.0, "model") for item in items],
        1,
        AsOf(0, ts, NOW + ts),
        SideInputs(-1, -1, -1),
        Timings(0, 0, 0, 0, 0),
        degraded=False,
        personalised=True,
    )


EARLY, LATE = made("early", 0, "a", "b"), made("late", 10_000, "b", "c")


def rewards(*events: Event) -> dict[str, list[float]]:
    """What the two lists of `ann` earned in clicks."""
    joiner = Joiner([LATE, EARLY, LATE], WINDOW)
    for event in events:
        joiner.add(event, ("click",))
    return {published.recommendation_id: joiner.rewards(published, "click") for published in (EARLY, LATE)}


def click(ts: int, item: str, named: object = None, user: str = "ann", kind: str = "click") -> Event:
    context = {"recommendation_id": named} if named is not None else None
    return Event(f"{ts}{item}", user, kind, NOW + ts, item, context=context)


NOTHING = {"early": [0.0, 0.0], "late": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("event", "list_", "slot"),
    [
        (click(5_000, "b"), "early", 1),
        (click(20_000, "b"), "late", 0),
        (click(10_000, "b"), "early", 1),  # the list as of that very event is not what was looked at
        (click(20_000, "b", "early"), "early", 1),
        (click(60_000, "a", "early"), "early", 0),
    ],
    ids=["newest", "newer", "same-moment", "named", "end-of-window"],
)
def test_an_act_is_joined(event: Event, list_: str, slot: int) -> None:
    """An act is joined to the list that it names, or else to the newest list before it."""
    expected = {name: list(values) for name, values in NOTHING.items()}
    expected[list_][slot] = 1.0
    assert rewards(event) == expected


@pytest.mark.parametrize(
    "event",
    [
        click(20_000, "a"),
        click(70_001, "b"),
        click(60_001, "a", "early"),
        click(20_000, "b", "unknown"),
        click(20_000, "b", 7),
        click(20_000, "b", user="bob"),
        click(20_000, "b", "early", user="bob"),
        click(-1, "a"),
        click(-1, "a", "early"),
        click(20_000, "b", kind="view"),
    ],
    ids=["other-item", "late", "late-named", "no-list", "no-name", "no-lists", "not-theirs", "before", "early", "view"],
)
def test_an_act_is_nobodys(event: Event) -> None:
    """An act of another item, user, type or time is joined to no list."""
    assert rewards(event) == NOTHING


def test_a_slot_counts_once() -> None:
    """A slot counts once, however often it is clicked and its list is published."""
    assert rewards(click(20_000, "c"), click(20_001, "c"), click(20_002, "c"))["late"] == [0.0, 1.0]


def test_what_was_joined_is_counted() -> None:
    """The joiner counts acts joined by id, acts joined by time and acts not joined."""
    joiner = Joiner([EARLY], WINDOW)
    for event in (click(1, "a"), click(2, "b", "early"), click(3, "x"), click(4, "a", kind="view")):
        joiner.add(event, ("click",))
    assert joiner.counts == {"joined by time": 1, "joined by id": 1, "not joined": 1}
