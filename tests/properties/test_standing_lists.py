"""Whatever popularity, items or versions do: a list that the record leaves alone would come out as it stands."""

from __future__ import annotations

import numpy as np
from freshet.core.features import FIRST_ITEM
from freshet.core.popularity_moves import rises_of
from freshet.core.ranking import RankConfig, RankedList, rank
from freshet.core.standing_lists import ItemNumbers, StandingList, StandingLists
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.test_ranking import TRAINED, World, make_world

NOW = 1_800_000_000.0
EXAMPLES = 300
"""Few worlds come close to an edge."""
worlds = st.builds(make_world, st.integers(0, 2**32), st.integers(1, 9), st.just(0.0))
configs = st.builds(RankConfig, st.integers(1, 12), st.just(0.0), st.sampled_from((0.5, 1.0, 2.0)))


def ranked(world: World, config: RankConfig) -> list[RankedList]:
    """Every user's list, with its bounds."""
    return rank(world.space, config, world.states, world.history, *world.encoded)


def entered(lists: list[RankedList], config: RankConfig, numbers: ItemNumbers) -> StandingLists:
    """The record of these lists."""
    record = StandingLists(config.list_size, NOW - 1000)
    record.enter(
        [
            StandingList(str(user), numbers.of([item.item_id for item in items]), 1, margin, needed, 0, NOW)
            for user, (items, margin, needed) in enumerate(lists)
        ],
        NOW,
    )
    return record


def moved(world: World, seed: int, rises: int) -> np.ndarray:
    """Let popularity move; returns what it was before, by row."""
    rng = np.random.default_rng(seed)
    before = world.space.prior.values[: world.space.size].copy()
    values = before.copy()
    rows = rng.integers(FIRST_ITEM, TRAINED, rises)
    values[rows] += rng.choice([0.25, 1.0, 3.0, -0.5, -1.0], rises).astype(np.float32)
    values = np.maximum(values, 0).astype(np.float32)
    world.space._prior = world.space.prior_of(np.arange(len(values)), np.expm1(values.astype(np.float64)))
    return before


@settings(max_examples=EXAMPLES)
@given(worlds, configs, st.integers(0, 2**32), st.integers(1, 3), st.integers(0, 8))
def test_a_list_that_no_rise_touches_holds_the_same_items(
    world: World, config: RankConfig, seed: int, steps: int, rises: int
) -> None:
    """However often popularity moves by a little.

    Of items that are candidates for their popularity alone this is not said: such an item leaves a list when another
    item pushes it out of the most popular ones.
    """
    for item in world.space.ids[TRAINED + FIRST_ITEM :]:  # of cold items no score is known
        world.space.set_available(item, available=False)
    lists = ranked(world, config)
    record = entered(lists, config, ItemNumbers())
    weight = np.float32(config.prior_weight)
    for step in range(steps):
        before = moved(world, seed + step, rises)
        now = weight * world.space.prior.values[: world.space.size]
        available = world.space.available[: world.space.size]
        record.mark_rises(rises_of(weight * before, now, available, ()), NOW, 0.0)
    touched = {int(record.take(position)) for position in record.due(NOW + 1, 0.0).tolist()}
    for user, (stood, again) in enumerate(zip(lists, ranked(world, config), strict=True)):
        items, now_items = ({item.item_id for item in made.items} for made in (stood, again))
        encoded = {world.space.ids[row] for row in world.encoded.topk_index[user]}
        if user not in touched and items | now_items <= encoded:
            assert now_items == items


@given(worlds, configs, st.integers(0, 2**32))
def test_an_item_that_goes_touches_every_list_that_held_it_and_no_other(
    world: World, config: RankConfig, seed: int
) -> None:
    """Of all others nothing changes, to the last bit."""
    lists, numbers = ranked(world, config), ItemNumbers()
    record = entered(lists, config, numbers)
    shown = sorted({item.item_id for user in lists for item in user.items})
    if not shown:
        return
    gone = shown[seed % len(shown)]
    world.space.set_available(gone, available=False)
    record.mark_items(numbers.known([gone]), NOW, 0.0)
    touched = {int(record.take(position)) for position in record.due(NOW + 1, 0.0).tolist()}
    assert touched == {user for user, stood in enumerate(lists) if gone in {item.item_id for item in stood.items}}
    for user, (stood, again) in enumerate(zip(lists, ranked(world, config), strict=True)):
        assert gone not in {item.item_id for item in again.items}
        if user not in touched:
            assert again.items == stood.items
