"""Ranking, case by case."""

from dataclasses import replace

import numpy as np
import pytest
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, TOP_K
from freshet.core.item_space import ItemSpace
from freshet.core.popularity import Popularity
from freshet.core.ranking import RankConfig, rank_popular
from freshet.core.recommendation import Item
from freshet.core.state import HISTORY, UserState, empty_state, fold

from tests.ranked_items import rank

ITEMS = [f"i{number}" for number in range(TOP_K)]
DIM = 64
PLAIN = RankConfig(5, 0.0, 0.0)


def axis(*components: int) -> np.ndarray:
    """A vector with a one at each of these places."""
    vector = np.zeros(DIM, np.float32)
    vector[list(components)] = 1.0
    return vector


def space() -> ItemSpace:
    """A hundred trained items, each along an axis of its own until they run out."""
    return ItemSpace(ITEMS, np.stack([axis(number % DIM) for number in range(TOP_K)]))


def state_of(*items: str) -> UserState:
    """A user who has viewed these items."""
    state = empty_state(0)
    for offset, item in enumerate(items):
        event = Event(event_id=f"e{offset}", user_id="u", type="view", ts=1_700_000_000_000 + offset, item_id=item)
        fold(state, event, 0, offset)
    return state


def one_list(
    over: ItemSpace,
    scores: dict[int, float],
    config: RankConfig = PLAIN,
    state: UserState | None = None,
    embedding: np.ndarray | None = None,
) -> list[Item]:
    """The list of a user for whom the graph gave these scores by row, in this order, and -100 for the rest."""
    state = state or empty_state(0)
    rows = [*scores, *(row for row in range(FIRST_ITEM, FIRST_ITEM + TOP_K) if row not in scores)]
    values = [scores.get(row, -100.0) for row in rows]
    history = np.zeros((1, HISTORY), np.int32)
    if state.items:
        history[0, -len(state.items) :] = [over.index.get(item, 1) if item in ITEMS else 1 for item in state.items]
    [items] = rank(
        over,
        config,
        [state],
        history,
        np.array([rows], np.int32),
        np.array([values], np.float32),
        (np.zeros(DIM, np.float32) if embedding is None else embedding)[None],
    )
    return items


def names(items: list[Item]) -> list[str]:
    """The ids of a list."""
    return [item.item_id for item in items]


def test_no_number_is_no_candidate() -> None:
    """An item whose score is NaN or infinite is not listed."""
    items = one_list(space(), {2: np.nan, 3: np.inf, 4: -np.inf, 5: 1.0}, RankConfig(50, 0.0, 0.0))
    assert names(items)[0] == "i3"
    assert not {"i0", "i1", "i2"} & {*names(items)}


def test_equal_scores_go_by_item_index() -> None:
    """Items of equal score are ordered by item index, whatever their source and the graph's order."""
    over = space()
    over.add_cold(["cold"], axis(9)[None])
    items = one_list(over, {7: 3.0, 5: 3.0, 90: 3.0}, embedding=3 * axis(9))
    assert names(items)[:4] == ["i3", "i5", "i88", "cold"]


def test_minus_zero_is_zero() -> None:
    """Minus zero and zero are equal scores."""
    assert names(one_list(space(), {9: 0.0, 5: -0.0}))[:2] == ["i3", "i7"]


def test_the_prior_moves_items_by_its_weight() -> None:
    """The prior adds its weight times log(1 + popularity) to a score."""
    over = space()
    over.set_popularity(Popularity.of({"i6": float(np.expm1(2.0))}))
    assert names(one_list(over, {5: 1.0, 8: 0.5}, RankConfig(5, 0.0, 0.2)))[0] == "i3"
    [first, *_] = one_list(over, {5: 1.0, 8: 0.5}, RankConfig(5, 0.0, 1.0))
    assert (first.item_id, first.score) == ("i6", 2.5)


def test_value_and_novelty_move_items_by_their_weights() -> None:
    """Each lift adds its weight times its value, and a weight of 0 or a bundle without lifts adds nothing."""
    lifts = np.zeros((TOP_K + 1, 2), np.float32)
    lifts[3], lifts[6] = (1.0, 0.0), (0.0, 2.0)
    over = ItemSpace(ITEMS, space().vectors[FIRST_ITEM:], lifts)
    scores = {4: 1.0, 5: 0.5, 8: 0.25}  # of i2, i3 and i6
    assert names(one_list(over, scores))[:3] == ["i2", "i3", "i6"]
    [first, *_] = one_list(over, scores, replace(PLAIN, value_weight=2.0))
    assert (first.item_id, first.score) == ("i3", 2.5)
    [first, second, *_] = one_list(over, scores, replace(PLAIN, value_weight=1.0, novelty_weight=1.0))
    assert [(item.item_id, item.score) for item in (first, second)] == [("i6", 2.25), ("i3", 1.5)]
    assert names(one_list(space(), scores, replace(PLAIN, value_weight=9.0)))[:3] == ["i2", "i3", "i6"]


def test_cold_items_share_one_lift() -> None:
    """Every cold item has the last row of the lifts."""
    lifts = np.zeros((TOP_K + 1, 2), np.float32)
    lifts[-1] = 0.0, 3.0
    over, config = ItemSpace(ITEMS, space().vectors[FIRST_ITEM:], lifts), replace(PLAIN, novelty_weight=2.0)
    for number in range(300):
        over.add_cold([f"new-{number}"], axis(7)[None])
        if number % 100 == 0:
            assert one_list(over, {}, config)[0].score == 6.0
    listed = one_list(over, {}, replace(config, list_size=50))
    assert {(item.source, item.score) for item in listed} == {("cold", 6.0)}


def test_popular_items_are_candidates_beyond_the_graphs() -> None:
    """A popular item that the graph did not return is scored and ranked like the others."""
    over = ItemSpace([*ITEMS, "hit"], np.stack([*(axis(0) for _ in ITEMS), axis(5)]))
    over.set_popularity(Popularity.of({"hit": 10.0}))
    [first, *_] = one_list(over, {}, embedding=4 * axis(5))
    assert (first.item_id, first.score, first.source) == ("hit", 4.0, "model")


def test_a_cold_item_is_ranked_by_its_vector() -> None:
    """A cold item is ranked by its vector, marked cold, moved by a new text and filtered once seen."""
    over = space()
    over.add_cold(["new"], axis(7)[None])
    [first, *_] = one_list(over, {}, embedding=2 * axis(7))
    assert (first.item_id, first.score, first.source) == ("new", 2.0, "cold")
    over.add_cold(["new"], axis(8)[None])
    assert one_list(over, {}, embedding=2 * axis(8))[0].item_id == "new"
    assert "new" not in names(one_list(over, {}, RankConfig(50, 0.0, 0.0), state_of("new")))


def test_people_come_back_to_what_their_behaviour_allows() -> None:
    """A viewed item may come again where views repeat, one that was bought as well may not; by default none may."""
    over, state = space(), state_of("i0", "i1", "i2")
    fold(state, Event("buy", "u", "purchase", 1_700_000_001_000, "i1"), 0, 3)
    over.add_cold(["new"], axis(7)[None])
    fold(state, Event("new", "u", "view", 1_700_000_002_000, "new"), 0, 4)
    scores = {FIRST_ITEM + number: 9.0 - number for number in range(4)}
    wide = RankConfig(50, 0.0, 0.0)
    assert names(one_list(over, scores, wide, state))[0] == "i3"
    again = names(one_list(over, scores, replace(wide, repeats=frozenset({"view"})), state))
    assert again[:3] == ["i0", "i2", "i3"]
    assert "i1" not in again
    assert "new" in again
    everything = replace(wide, repeats=frozenset({"view", "purchase"}), all_repeat=True)
    assert names(one_list(over, scores, everything, state))[:4] == ["i0", "i1", "i2", "i3"]


def test_what_left_the_history_comes_again_where_everything_repeats() -> None:
    """Of an item beyond the history the behaviour is not known."""
    over, state = space(), empty_state(0)
    for offset in range(8):
        event = Event(f"e{offset}", "u", "view", 1_700_000_000_000 + offset, f"i{offset % 2 if offset < 2 else 5}")
        fold(state, event, 0, offset, 2)
    assert set(state.seen) == {"i0", "i1"}
    views = replace(PLAIN, repeats=frozenset({"view"}))
    scores = {FIRST_ITEM: 9.0, FIRST_ITEM + 1: 8.0, FIRST_ITEM + 5: 7.0}
    assert names(one_list(over, scores, views, state))[0] == "i5"
    assert names(one_list(over, scores, replace(views, all_repeat=True), state))[:3] == ["i0", "i1", "i5"]


@pytest.mark.parametrize("position", [0, 1, 2500, 4999])
def test_every_cold_item_is_a_candidate(position: int) -> None:
    """The best cold item of five thousand comes first, whatever its age."""
    over = space()
    new_items = [f"new-{number}" for number in range(5000)]
    vectors = np.stack([axis(7 + number % 9) for number in range(len(new_items))])
    vectors[position] = axis(3)
    over.add_cold(new_items, vectors)
    assert one_list(over, {}, embedding=2 * axis(3))[0].item_id == new_items[position]


def test_of_equal_cold_items_the_oldest_unseen_are_listed() -> None:
    """Of ten thousand equal cold items the oldest available and unseen items are listed."""
    over = space()
    new_items = [f"new-{number}" for number in range(10_000)]
    over.add_cold(new_items, np.broadcast_to(axis(3), (len(new_items), DIM)))
    for gone in new_items[60:62]:
        over.set_available(gone, available=False)
    assert names(one_list(over, {}, PLAIN, state_of(*new_items[:60]), axis(3))) == new_items[62:67]


@pytest.mark.parametrize("item", ["i5", "new"])
def test_an_unavailable_item_leaves_and_comes_back(item: str) -> None:
    """An unavailable item, trained or cold, leaves the next list and comes back when available."""
    over = space()
    over.add_cold(["new"], axis(7)[None])
    wide, scores, towards = RankConfig(50, 0.0, 0.0), {7: 5.0}, 2 * axis(7)
    over.set_available(item, available=False)
    assert item not in names(one_list(over, scores, wide, embedding=towards))
    assert item not in names(rank_popular(over, None, 50))
    over.set_available(item, available=True)
    assert item in names(one_list(over, scores, wide, embedding=towards))


def test_seen_items_are_filtered_from_wherever_they_are_known() -> None:
    """Items in the history and items in `seen` are filtered."""
    gone = state_of("i3", *(f"x{number}" for number in range(HISTORY)))
    assert "i3" in gone.seen
    assert names(one_list(space(), {5: 9.0, 6: 8.0}, state=gone))[0] == "i4"
    assert names(one_list(space(), {5: 9.0, 6: 8.0}, state=state_of("i3")))[0] == "i4"


def test_full_diversity_prefers_the_unlike() -> None:
    """Full diversity lists an unlike item ahead of an equal of the first."""
    over = ItemSpace(["a", "b", "c", *ITEMS[3:]], np.stack([axis(1), axis(1), axis(2), *(axis(3) for _ in ITEMS[3:])]))
    scores = {2: 3.0, 3: 2.9, 4: 2.8}
    assert names(one_list(over, scores, RankConfig(2, 0.0, 0.0))) == ["a", "b"]
    assert names(one_list(over, scores, RankConfig(2, 0.9, 0.0))) == ["a", "c"]


def test_reasons_are_the_two_nearest_events() -> None:
    """The reasons are the two events that pull most, with their shares, and an older event pulls less."""
    vectors = [axis(1), axis(1, 2), axis(9), *(axis(20) for _ in ITEMS[3:])]
    over = ItemSpace(["a", "b", "c", *ITEMS[3:]], np.stack(vectors))
    over.add_cold(["target"], 2 * axis(1, 2)[None])
    state = state_of("a", "c", "b")
    history = np.zeros((1, HISTORY), np.int32)
    history[0, -3:] = [2, 4, 3]
    [[first]] = rank(
        over,
        RankConfig(1, 0.0, 0.0),
        [state],
        history,
        np.arange(FIRST_ITEM, FIRST_ITEM + TOP_K, dtype=np.int32)[None],
        np.full((1, TOP_K), -100, np.float32),
        axis(1, 2)[None],
    )
    assert first.item_id == "target"
    # b pulls 2, and a, two events further back, 1 times e^-.2
    assert [(reason.item_id, reason.weight) for reason in first.reasons] == [("b", 0.71), ("a", 0.29)]


def test_what_a_version_does_not_read_is_seen_all_the_same() -> None:
    """Items beyond the version's length are filtered, and a reason names an event within the length."""
    vectors = [axis(1), axis(2), axis(3), *(axis(20) for _ in ITEMS[3:])]
    over = ItemSpace(["a", "b", "c", *ITEMS[3:]], np.stack(vectors))
    over.add_cold(["target"], axis(3)[None])
    state = state_of("a", "b", "i5", "c")
    [ranked] = rank(
        over,
        RankConfig(50, 0.0, 0.0),
        [state],
        np.array([[7, 4]], np.int32),
        np.arange(FIRST_ITEM, FIRST_ITEM + TOP_K, dtype=np.int32)[None],
        np.full((1, TOP_K), -100, np.float32),
        axis(3)[None],
    )
    assert names(ranked)[0] == "target"
    assert not {"a", "b", "c", "i5"} & set(names(ranked))
    assert [(reason.item_id, reason.ts) for reason in ranked[0].reasons] == [("c", state.times[3])]


def test_popularity_of_unknown_items_is_kept_for_later() -> None:
    """Counts of an item without a vector take effect when the item gets a vector."""
    over = space()
    over.set_popularity(Popularity.of({"new": float(np.expm1(3.0)), "i2": float(np.expm1(1.0))}))
    assert names(rank_popular(over, None, 2)) == ["i2", "i0"]
    over.add_cold(["new"], axis(0)[None])
    assert [(item.item_id, item.score) for item in rank_popular(over, None, 2)] == [("new", 3.0), ("i2", 1.0)]
