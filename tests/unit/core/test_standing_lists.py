"""The record of standing lists: who is found, what a change touches, what comes first, what it costs."""

from __future__ import annotations

import numpy as np
import pytest
from freshet.core.popularity_moves import Rises, rises_of
from freshet.core.standing_lists import ItemNumbers, StandingList, StandingLists, Wait

NOW = 1_800_000_000.0
DAY = 86_400.0
NOTHING_FELL = 0.0


def standing(user: str, *numbers: int, acted_s: float = NOW, **fields: float) -> StandingList:
    """A list of version 1, far ahead of what was left out."""
    facts = {"version": 1, "margin": 5.0, "needed_prior": 5.0, "event_ts": int(acted_s * 1000)} | fields
    return StandingList(user, numbers, acted_s=acted_s, **facts)  # type: ignore[arg-type]


def record(*lists: StandingList, slots: int = 3) -> StandingLists:
    """A record of these lists."""
    made = StandingLists(slots, NOW - 300 * DAY)
    made.enter(lists, NOW)
    return made


def waiting(of: StandingLists, now_s: float = NOW + 1) -> dict[str, Wait]:
    """Why whose list waits."""
    positions = of.due(now_s, now_s - DAY).tolist()
    found = {of.take(position): of.waits(position)[0] for position in positions}
    of.give_up()
    return found


def rise(prior: float, by: float, fall: float = NOTHING_FELL) -> Rises:
    """One item that rose to a prior."""
    before, now = np.array([prior - by], np.float32), np.array([prior], np.float32)
    return Rises(before, now, now, now - before, fall)


def test_everybody_is_found_however_many_there_are() -> None:
    """The index grows, and ids of any length and script are told apart."""
    users = [f"user-{number}" * (1 + number % 3) for number in range(5000)] + ["ünï", "☂", "a", "aa"]
    made = record(*(standing(user, 1) for user in users))
    assert made.size == len(users)
    assert all(user in made for user in users)
    assert "nobody" not in made
    made.mark_items([1], NOW, 0.0)
    assert set(waiting(made)) == set(users)


def test_an_item_touches_the_lists_that_hold_it() -> None:
    """And no other list."""
    made = record(standing("ann", 1, 2, 3), standing("bob", 4, 5), standing("cyd", 3))
    made.mark_items([3, 9], NOW, 0.0)
    assert waiting(made) == {"ann": Wait.ITEM, "cyd": Wait.ITEM}


def test_a_list_that_is_entered_waits_no_more() -> None:
    """Its user acted, or the list was made again."""
    made = record(standing("ann", 1))
    made.mark_items([1], NOW, 0.0)
    made.enter([standing("ann", 2)], NOW)
    assert waiting(made) == {}


def test_a_rise_touches_lists_whose_margin_it_is_past_and_that_the_item_can_reach() -> None:
    """A rise beyond the margin of an item that stays below what it needs touches nothing."""
    made = record(
        standing("near", 1, margin=0.4, needed_prior=2.0),
        standing("far ahead", 1, margin=1.7, needed_prior=2.0),
        standing("out of reach", 1, margin=0.4, needed_prior=4.0),
    )
    made.mark_rises(rise(prior=3.0, by=0.9), NOW, 0.0)
    assert waiting(made) == {"near": Wait.POPULARITY}
    made.mark_rises(rise(prior=4.5, by=0.6), NOW, 0.0)
    assert waiting(made) == {"near": Wait.POPULARITY, "out of reach": Wait.POPULARITY}


def test_an_item_that_gets_what_it_needs_touches_a_list_however_it_got_there() -> None:
    """What an item rose by before it could reach a list did not count against the margin."""
    made = record(standing("ann", 1, margin=1.0, needed_prior=2.0))
    made.mark_rises(rise(1.9, 1.9), NOW, 0.0)
    assert waiting(made) == {}
    made.mark_rises(rise(2.1, 0.2), NOW, 0.0)
    assert waiting(made) == {"ann": Wait.POPULARITY}


def test_rises_add_up() -> None:
    """Small rises touch a list once they are past its margin together; what fell counts with each."""
    made = record(standing("ann", 1, margin=1.0, needed_prior=0.5))
    made.mark_rises(rise(2.0, 0.6), NOW, 0.0)
    assert waiting(made) == {}
    made.mark_rises(rise(2.0, 0.3, fall=0.2), NOW, 0.0)
    assert waiting(made) == {"ann": Wait.POPULARITY}


def test_a_list_with_a_free_slot_is_touched_by_any_rise() -> None:
    """Whatever rose may take the slot."""
    made = record(standing("ann", 1, margin=-np.inf, needed_prior=-np.inf))
    made.mark_rises(rise(0.01, 0.01), NOW, 0.0)
    assert waiting(made) == {"ann": Wait.POPULARITY}


def test_the_frontier_of_rises_has_the_highest_rise_at_or_above_a_prior() -> None:
    """Unavailable rows are not on it; rows that have just come rose without bound."""
    before, now = np.array([0, 1, 2, 3], np.float32), np.array([0, 2, 2.5, 2, 4, 1], np.float32)
    available = np.array([True, True, True, True, False, True])
    found = rises_of(before, now, available, {5})
    assert found.priors.tolist() == [2.5, 2.0, 1.0]
    assert found.highest.tolist() == [0.5, 1.0, np.inf]
    assert found.fall == 1.0


def test_versions_that_make_lists_no_more_leave_lists_waiting() -> None:
    """A candidate's lists stand as long as it makes lists."""
    made = record(standing("ann", 1), standing("bob", 1, version=2), standing("cyd", 1, version=3))
    made.mark_versions({2, 3}, NOW, 0.0)
    assert waiting(made) == {"ann": Wait.MODEL}
    made.mark_versions({2}, NOW, 0.0)
    assert waiting(made) == {"ann": Wait.MODEL, "cyd": Wait.MODEL}
    assert made.share_of(2, NOW - DAY) == (1, 3)


def test_users_quiet_beyond_the_horizon_wait_for_items_alone() -> None:
    """Everything else is left to their next visit."""
    made = record(standing("quiet", 1, acted_s=NOW - 2 * DAY), standing("ann", 2))
    made.mark_versions({2}, NOW, 0.0)
    assert waiting(made) == {"ann": Wait.MODEL}
    made.mark_items([1], NOW, 0.0)
    assert waiting(made) == {"ann": Wait.MODEL, "quiet": Wait.ITEM}


def test_the_more_urgent_reason_stands_and_the_wait_goes_on() -> None:
    """A list that waits for its age and then loses an item has waited since the first."""
    made = record(standing("ann", 1))
    made.mark_older(NOW + 10, NOW + 20)
    made.mark_items([1], NOW + 30, 0.0)
    made.mark_versions({7}, NOW + 40, 0.0)
    assert waiting(made, NOW + 50) == {"ann": Wait.ITEM}
    assert made.waits(0) == (Wait.ITEM, pytest.approx(NOW + 20, abs=0.11))


def made_again(user: str, number: int, wait: Wait, **fields: float) -> StandingLists:
    """A record of a list that was made again for a reason."""
    made = record(standing(user, 99))
    made.mark_versions({1} if wait is Wait.ITEM else {2}, NOW, 0.0)
    made.mark_items([99] if wait is Wait.ITEM else [98], NOW, 0.0)
    made.enter([standing(user, number, **fields)], NOW, is_remade=True)
    return made


def test_a_list_made_again_rests_and_a_list_of_an_event_does_not() -> None:
    """An item that flickers has a list made again once a rest; who acts is answered at once."""
    made = made_again("bob", 1, Wait.ITEM)
    made.enter([standing("ann", 1)], NOW)
    made.mark_items([1], NOW + 0.2, 5.0)
    assert waiting(made, NOW + 0.3) == {"ann": Wait.ITEM}
    assert set(waiting(made, NOW + 5.1)) == {"ann", "bob"}


def test_who_rests_from_something_less_urgent_is_due_at_once() -> None:
    """An item that goes does not wait for the rest that follows on a version or on popularity."""
    made = made_again("ann", 1, Wait.MODEL, margin=0.0, needed_prior=0.0)
    made.mark_rises(rise(1.0, 0.5), NOW + 1, 30.0)
    assert waiting(made, NOW + 2) == {}
    made.mark_items([1], NOW + 2, 1.0)
    assert waiting(made, NOW + 2.1) == {"ann": Wait.ITEM}


def test_what_comes_first_is_gone_then_off_and_soon() -> None:
    """Any list with an item that went, then by how much a list is off and how soon its user comes back."""
    lists = [
        standing("item, quiet", 1, acted_s=NOW - DAY / 2),
        standing("model, here", 2),
        standing("model, weeks ago", 2, acted_s=NOW - 20 * DAY),
        standing("popularity, here", 3, version=2, margin=0.0, needed_prior=0.0),
    ]
    made = record(*lists)
    made.mark_rises(rise(1.0, 0.1), NOW, 0.0)
    made.mark_versions({2}, NOW, 0.0)
    made.mark_items([1], NOW, 0.0)
    positions = made.due(NOW + 1, NOW - 30 * DAY)
    order = positions[np.argsort(-made.gains(positions, NOW + 1))].tolist()
    assert [lists[position].user_id for position in order] == [
        "item, quiet", "model, here", "popularity, here", "model, weeks ago"
    ]  # fmt: skip


def test_whoever_waits_longer_comes_first() -> None:
    """Of lists that are as far off, of users who are as likely to come back."""
    made = record(standing("ann", 1), standing("bob", 2))
    made.mark_older(NOW + 1, NOW + 100)
    made.enter([standing("ann", 1)], NOW + 150)
    made.mark_older(NOW + 200, NOW + 300)
    first, second = made.gains(np.array([1, 0]), NOW + 400).tolist()
    assert first > 2 * second


def test_a_taken_list_is_given_up_where_its_user_has_a_newer_list() -> None:
    """By an event, by an erasure, and where its partition goes."""
    made = record(standing("ann", 1), standing("bob", 1), standing("cyd", 1))
    for position in range(3):
        made.take(position)
    made.enter([standing("ann", 1)], NOW)
    made.forget(["bob"])
    assert [made.is_taken(position) for position in range(3)] == [False, False, True]
    made.give_up()
    assert not made.is_taken(2)


def test_an_erased_user_is_forgotten_and_can_come_back() -> None:
    """No byte of the id stays; nothing ever touches what is left of the record."""
    made = record(standing("ann-of-cleves", 1), standing("bob", 1))
    made.forget(["ann-of-cleves", "nobody"])
    assert "ann-of-cleves" not in made
    assert b"cleves" not in bytes(made._ids)
    made.mark_items([1], NOW, 0.0)
    made.mark_versions({9}, NOW, 0.0)
    made.mark_older(NOW + 5, NOW + 5)
    assert set(waiting(made, NOW + 9)) == {"bob"}
    made.enter([standing("ann-of-cleves", 2)], NOW)
    assert "ann-of-cleves" in made


def test_taking_over_leaves_those_who_are_here() -> None:
    """Users whose lists another worker made wait; whoever acted here first has a list that is known."""
    made = record(standing("ann", 1))
    assert made.take_over([("ann", int(NOW * 1000)), ("bob", int(NOW * 1000) - 5000)], NOW) == 1
    assert waiting(made) == {"bob": Wait.TIME}
    assert made.event_ts(1) == int(NOW * 1000) - 5000


def test_a_list_is_the_same_by_items_order_and_version() -> None:
    """What is not known is the same as nothing."""
    made = record(standing("ann", 1, 2))
    made.take_over([("bob", int(NOW * 1000))], NOW)
    assert made.is_same(0, [1, 2], 1)
    assert not made.is_same(0, [2, 1], 1)
    assert not made.is_same(0, [1, 2, 3], 1)
    assert not made.is_same(0, [1, 2], 2)
    assert not made.is_same(1, [], 1)


def test_more_items_than_16_bits_hold() -> None:
    """Records widen where more different items stand in lists."""
    made = record(standing("ann", 1), standing("bob", 65_535))
    made.enter([standing("cyd", 65_536)], NOW)
    made.mark_items([65_535], NOW, 0.0)
    assert set(waiting(made)) == {"bob"}
    made.mark_items([65_536], NOW, 0.0)
    assert set(waiting(made)) == {"bob", "cyd"}


def test_numbers_of_items() -> None:
    """From 1, the same for the same item; an item that never stood in a list has none."""
    numbers = ItemNumbers()
    assert numbers.of(["a", "b", "a"]) == [1, 2, 1]
    assert numbers.known(["z", "b"]) == [2]


def test_a_user_takes_at_most_100_bytes() -> None:
    """With ten slots and ids as long as UUIDs, with all that has been set aside for growth."""
    users = [f"{number:08x}-4b1d-11ee-be56-0242ac120002" for number in range(40_000)]
    made = StandingLists(10, NOW - DAY)
    for start in range(0, len(users), 500):
        made.enter([standing(user, *range(1, 11)) for user in users[start : start + 500]], NOW)
    assert made.nbytes / len(users) <= 100


@pytest.mark.parametrize("needed", [np.inf, -np.inf, 1e9, -1e9, 0.0])
def test_bounds_of_any_size_are_kept(needed: float) -> None:
    """What needs no finite prior, and what nothing can reach."""
    made = record(standing("ann", 1, margin=0.0, needed_prior=needed))
    made.mark_rises(rise(5.0, 1.0), NOW, 0.0)
    assert bool(waiting(made)) == (needed <= 5.0)
    made.mark_rises(rise(5.0, 0.0), NOW, 0.0)
