"""Whatever popularity, items or versions do: a list that the record leaves alone would come out as it stands."""

from __future__ import annotations

import numpy as np
from freshet.core.features import FIRST_ITEM
from freshet.core.ranking import RankConfig, RankedList, rank_lists
from freshet.core.standing_lists import ItemNumbers, StandingList, StandingLists, rises_of
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.test_ranking import TRAINED, World, make_world

NOW = 1_800_000_000.0
worlds = st.builds(make_world, st.integers(0, 2**32), st.integers(1, 9), st.just(0.0))
configs = st.builds(RankConfig, st.integers(1, 12), st.just(0.0), st.sampled_from((0.5, 1.0, 2.0)))


def ranked(world: World, config: RankConfig) -> list[RankedList]:
    """Every user's list, with its bounds."""
    return rank_lists(world.space, config, world.states, world.history, *world.encoded)


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


def moved(world: World, seed: int, *, rises: int, returns: int) -> tuple[np.ndarray, set[int]]:
    """Let popularity move and items come back; returns what popularity added before, and the rows that came back."""
    rng = np.random.default_rng(seed)
    before = world.space.prior.values[: world.space.size].copy()
    values = before.copy()
    rows = rng.integers(FIRST_ITEM, TRAINED, rises)
    values[rows] += rng.choice([0.25, 1.0, 3.0, -0.5, -1.0], rises).astype(np.float32)
    values = np.maximum(values, 0).astype(np.float32)
    world.space._prior = world.space.prior_of(np.arange(len(values)), np.expm1(values.astype(np.float64)))
    hidden = np.flatnonzero(~world.space.available[: world.space.size])
    back = set(rng.choice(hidden[hidden >= FIRST_ITEM], min(returns, max(0, len(hidden) - 2)), replace=False).tolist())
    for row in back:
        world.space.set_available(world.space.ids[row], available=True)
    return before, back


@given(worlds, configs, st.integers(0, 2**32), st.integers(1, 3), st.integers(0, 8), st.integers(0, 3))
def test_a_list_that_no_rise_touches_holds_the_same_items(
    world: World, config: RankConfig, seed: int, steps: int, rises: int, returns: int
) -> None:
    """However often popularity moves by a little, and items come back."""
    for item in world.space.ids[TRAINED + FIRST_ITEM :]:  # of cold items no score is known
        world.space.set_available(item, available=False)
    lists = ranked(world, config)
    record = entered(lists, config, ItemNumbers())
    weight = np.float32(config.prior_weight)
    for step in range(steps):
        before, back = moved(world, seed + step, rises=rises, returns=returns)
        now = weight * world.space.prior.values[: world.space.size]
        available = world.space.available[: world.space.size]
        record.mark_rises(rises_of(weight * before, now, available, back), NOW, 0.0)
    touched = {int(record.take(position)) for position in record.due(NOW + 1, 0.0).tolist()}
    for user, (stood, again) in enumerate(zip(lists, ranked(world, config), strict=True)):
        if user not in touched:
            assert {item.item_id for item in again.items} == {item.item_id for item in stood.items}


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
