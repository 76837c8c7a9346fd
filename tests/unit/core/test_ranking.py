"""Ranking, case by case."""

from dataclasses import replace

import numpy as np
import pytest
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, TOP_K
from freshet.core.item_space import ItemSpace
from freshet.core.ranking import RankConfig, rank, rank_popular
from freshet.core.recommendation import Item
from freshet.core.state import HISTORY, UserState, empty_state, fold

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
    """NaN and the infinities sink below everything: such an item is not listed."""
    items = one_list(space(), {2: np.nan, 3: np.inf, 4: -np.inf, 5: 1.0}, RankConfig(50, 0.0, 0.0))
    assert names(items)[0] == "i3"
    assert not {"i0", "i1", "i2"} & {*names(items)}


def test_equal_scores_go_by_item_index() -> None:
    """Whatever order the graph gave them in, and whichever source they are from."""
    over = space()
    over.add_cold(["cold"], axis(9)[None])
    items = one_list(over, {7: 3.0, 5: 3.0, 90: 3.0}, embedding=3 * axis(9))
    assert names(items)[:4] == ["i3", "i5", "i88", "cold"]


def test_minus_zero_is_zero() -> None:
    """The two zeros are one score."""
    assert names(one_list(space(), {9: 0.0, 5: -0.0}))[:2] == ["i3", "i7"]


def test_the_prior_moves_items_by_its_weight() -> None:
    """The log of one plus the popularity is added, times the weight."""
    over = space()
    over.set_popularity({"i6": float(np.expm1(2.0))})
    assert names(one_list(over, {5: 1.0, 8: 0.5}, RankConfig(5, 0.0, 0.2)))[0] == "i3"
    [first, *_] = one_list(over, {5: 1.0, 8: 0.5}, RankConfig(5, 0.0, 1.0))
    assert (first.item_id, first.score) == ("i6", 2.5)


def test_value_and_novelty_move_items_by_their_weights() -> None:
    """Each lift is added times its weight; a weight of 0 adds nothing, and a bundle without lifts has none to add."""
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
    """The last row of the lifts is that of an item without events, however many come."""
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
    over.set_popularity({"hit": 10.0})
    [first, *_] = one_list(over, {}, embedding=4 * axis(5))
    assert (first.item_id, first.score, first.source) == ("hit", 4.0, "model")


def test_a_cold_item_is_ranked_by_its_vector() -> None:
    """It is marked cold, moves when its text changes, and is filtered once seen."""
    over = space()
    over.add_cold(["new"], axis(7)[None])
    [first, *_] = one_list(over, {}, embedding=2 * axis(7))
    assert (first.item_id, first.score, first.source) == ("new", 2.0, "cold")
    over.add_cold(["new"], axis(8)[None])
    assert one_list(over, {}, embedding=2 * axis(8))[0].item_id == "new"
    assert "new" not in names(one_list(over, {}, RankConfig(50, 0.0, 0.0), state_of("new")))


@pytest.mark.parametrize("position", [0, 1, 2500, 4999])
def test_every_cold_item_is_a_candidate(position: int) -> None:
    """A perfect match is first, were it the oldest of five thousand new items."""
    over = space()
    new_items = [f"new-{number}" for number in range(5000)]
    vectors = np.stack([axis(7 + number % 9) for number in range(len(new_items))])
    vectors[position] = axis(3)
    over.add_cold(new_items, vectors)
    assert one_list(over, {}, embedding=2 * axis(3))[0].item_id == new_items[position]


def test_of_equal_cold_items_the_oldest_unseen_are_listed() -> None:
    """Ten thousand items of one text, of which the user has seen the first sixty and two are out."""
    over = space()
    new_items = [f"new-{number}" for number in range(10_000)]
    over.add_cold(new_items, np.broadcast_to(axis(3), (len(new_items), DIM)))
    for gone in new_items[60:62]:
        over.set_available(gone, available=False)
    assert names(one_list(over, {}, PLAIN, state_of(*new_items[:60]), axis(3))) == new_items[62:67]


@pytest.mark.parametrize("item", ["i5", "new"])
def test_an_unavailable_item_leaves_and_comes_back(item: str) -> None:
    """Trained or cold, from the very next list on."""
    over = space()
    over.add_cold(["new"], axis(7)[None])
    wide, scores, towards = RankConfig(50, 0.0, 0.0), {7: 5.0}, 2 * axis(7)
    over.set_available(item, available=False)
    assert item not in names(one_list(over, scores, wide, embedding=towards))
    assert item not in names(rank_popular(over, None, 50))
    over.set_available(item, available=True)
    assert item in names(one_list(over, scores, wide, embedding=towards))


def test_seen_items_are_filtered_from_wherever_they_are_known() -> None:
    """From the history, and from what has left it."""
    gone = state_of("i3", *(f"x{number}" for number in range(HISTORY)))
    assert "i3" in gone.seen
    assert names(one_list(space(), {5: 9.0, 6: 8.0}, state=gone))[0] == "i4"
    assert names(one_list(space(), {5: 9.0, 6: 8.0}, state=state_of("i3")))[0] == "i4"


def test_full_diversity_prefers_the_unlike() -> None:
    """Of two equals and one unlike them, the unlike one is second."""
    over = ItemSpace(["a", "b", "c", *ITEMS[3:]], np.stack([axis(1), axis(1), axis(2), *(axis(3) for _ in ITEMS[3:])]))
    scores = {2: 3.0, 3: 2.9, 4: 2.8}
    assert names(one_list(over, scores, RankConfig(2, 0.0, 0.0))) == ["a", "b"]
    assert names(one_list(over, scores, RankConfig(2, 0.9, 0.0))) == ["a", "c"]


def test_reasons_are_the_two_nearest_events() -> None:
    """The events whose items point the same way, with their shares of the pull; an older one pulls less."""
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
    """Of a history longer than the version's length all is filtered, and a reason names the event that was read."""
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
    """Counts of an item without a place take effect when it gets one."""
    over = space()
    over.set_popularity({"new": float(np.expm1(3.0)), "i2": float(np.expm1(1.0))})
    assert names(rank_popular(over, None, 2)) == ["i2", "i0"]
    over.add_cold(["new"], axis(0)[None])
    assert [(item.item_id, item.score) for item in rank_popular(over, None, 2)] == [("new", 3.0), ("i2", 1.0)]
