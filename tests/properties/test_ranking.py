"""Lists are totally ordered, hold what they may, and do not depend on the batch."""

from dataclasses import dataclass, replace
from random import Random
from unittest.mock import patch

import msgspec
import numpy as np
from freshet.core import ranking
from freshet.core.features import FIRST_ITEM, TOP_K, featurise
from freshet.core.item_space import ItemSpace, Prior
from freshet.core.popularity import Popularity
from freshet.core.ranking import RankConfig, _common_candidates, rank_popular
from freshet.core.recommendation import Item
from freshet.core.state import UserState
from freshet.ports import Encoded
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.strategies import make_state
from tests.ranked_items import rank

TRAINED = 160
COLD = 40
ITEMS = [f"item-{number}" for number in range(TRAINED + COLD)]
DIM = 64
LENGTH = 40
"""Shorter than the longest history: what is not read is still seen."""
ODD_SCORES = (np.nan, np.inf, -np.inf)


@dataclass
class World:
    """A space of items and a batch of users with the encoder's outputs for them.

    Vectors and weights are small whole numbers, so that scores are exact whatever
    the order of summation, and often equal.
    """

    space: ItemSpace
    lifts: np.ndarray
    states: list[UserState]
    history: np.ndarray
    encoded: Encoded

    def rank(self, config: RankConfig, rows: slice = slice(None)) -> list[list[Item]]:
        """Lists of some of the users."""
        outputs = [output[rows] for output in self.encoded]
        return rank(self.space, config, self.states[rows], self.history[rows], *outputs)

    def scores(self, user: int, config: RankConfig) -> dict[int, float]:
        """Score of every rankable candidate row of a user, by definition."""
        space, state = self.space, self.states[user]
        seen = {*state.items, *state.seen}
        scores: dict[int, float] = {}
        embedding = self.encoded.embedding[user]
        graph = dict(zip(self.encoded.topk_index[user].tolist(), self.encoded.topk_score[user], strict=True))
        for row in {*graph, *_common_candidates(space, [space.prior], cold=True)[0].tolist()}:
            value, novelty = self.lifts[row - FIRST_ITEM if row < space.trained else -1]
            lift = config.value_weight * value + config.novelty_weight * novelty
            prior = np.float32(config.prior_weight) * space.prior.values[row]
            score = graph.get(row, embedding @ space.vectors[row]) + prior + lift
            if np.isfinite(score) and space.available[row] and space.ids[row] not in seen:
                scores[row] = float(score)
        return scores


def make_world(seed: int, users: int, odd: float) -> World:
    """A world; `odd` is the share of the graph's scores that are no numbers."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (TRAINED + COLD, DIM)).astype(np.float32)
    lifts = rng.integers(-2, 3, (TRAINED + 1, 2)).astype(np.float32)
    space = ItemSpace(ITEMS[:TRAINED], vectors[:TRAINED], lifts)
    space.add_cold(ITEMS[TRAINED:], vectors[TRAINED:])
    popular = rng.choice(len(ITEMS), 60, replace=False)
    space.set_popularity(Popularity.of({ITEMS[item]: float(np.expm1(rng.integers(1, 4))) for item in popular}))
    space._prior = Prior(
        np.round(space.prior.values), space.prior.popular, space.size
    )  # whole numbers, so that scores tie
    for item in rng.choice(len(ITEMS), rng.integers(0, 80), replace=False):
        space.set_available(ITEMS[item], available=False)
    states = []
    for _ in range(users):
        names = [*ITEMS, *(f"gone-{number}" for number in range(5))]
        items = [names[at] for at in rng.integers(0, len(names), rng.integers(0, 51))]
        seen = [ITEMS[at] for at in rng.choice(len(ITEMS), rng.choice([0, 0, 60, 180]), replace=False)]
        states.append(make_state(items, range(len(items)), seen))
    index = {item: row + FIRST_ITEM for row, item in enumerate(ITEMS[:TRAINED])}
    history = featurise(states, index, {"view": 1}, LENGTH)["item_index"]
    embedding = rng.integers(-2, 3, (users, DIM)).astype(np.float32)
    scores = embedding @ space.vectors[FIRST_ITEM : space.trained].T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
    topk_score = np.take_along_axis(scores, order, axis=1)
    topk_score[rng.random(topk_score.shape) < odd] = rng.choice(ODD_SCORES)
    return World(space, lifts, states, history, Encoded((order + FIRST_ITEM).astype(np.int32), topk_score, embedding))


worlds = st.builds(make_world, st.integers(0, 2**32), st.integers(1, 9), st.sampled_from((0.0, 0.0, 0.3, 1.0)))
sizes, weights = st.integers(1, 50), st.sampled_from((0.0, 1.0, 2.0))
lifted = {"value_weight": weights, "novelty_weight": weights}
configs = st.builds(RankConfig, sizes, st.sampled_from((0.0, 0.3, 1.0)), weights, **lifted)
by_score = st.builds(RankConfig, sizes, st.just(0.0), weights, **lifted)


@given(worlds, by_score)
def test_the_order_is_score_then_index(world: World, config: RankConfig) -> None:
    """Without diversity a list has the best scores, ordered by score and item index, and no NaN."""
    for user, items in enumerate(world.rank(config)):
        scores = world.scores(user, config)
        best = sorted(scores, key=lambda row: (-scores[row], row))[: config.list_size]
        assert [(item.item_id, item.score) for item in items] == [
            (world.space.ids[row], round(scores[row], 5)) for row in best
        ]


@given(worlds, configs)
def test_a_list_holds_only_what_it_may(world: World, config: RankConfig) -> None:
    """A list holds available and unseen items without repeats, as many as there are up to its size."""
    for user, items in enumerate(world.rank(config)):
        names = [item.item_id for item in items]
        state = world.states[user]
        assert len(set(names)) == len(names) == min(config.list_size, len(world.scores(user, config)))
        assert not {*names} & {*state.items, *state.seen}
        for item in items:
            row = world.space.index[item.item_id]
            assert world.space.available[row]
            assert np.isfinite(item.score)
            assert item.source == ("cold" if row >= world.space.trained else "model")


@given(worlds, configs, st.randoms(use_true_random=False))
def test_a_list_does_not_depend_on_the_batch(world: World, config: RankConfig, random: Random) -> None:
    """A user's list and reasons are the same alone and in a batch."""
    together = world.rank(config)
    cut = random.randint(0, len(together))
    assert world.rank(config, slice(cut)) + world.rank(config, slice(cut, None)) == together
    for user, items in enumerate(together):
        assert world.rank(config, slice(user, user + 1)) == [items]


@given(worlds, configs, st.integers(0, 2**32))
def test_real_scores_agree_between_batches_to_rounding(world: World, config: RankConfig, seed: int) -> None:
    """With real vectors a slot's score alone and in a batch differs by rounding at most."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=world.encoded.embedding.shape).astype(np.float32)
    world.encoded = world.encoded._replace(embedding=world.encoded.embedding + noise)
    config = replace(config, diversity=0.0)
    for user, items in enumerate(world.rank(config)):
        [alone] = world.rank(config, slice(user, user + 1))
        scores = [item.score for item in items]
        np.testing.assert_allclose([item.score for item in alone], scores, atol=2.1e-5)


@given(worlds, configs)
def test_reasons_are_the_users_own_events(world: World, config: RankConfig) -> None:
    """A reason names an event of the user's history; weights are shares, the larger one first.

    Without reasons lists are the same.
    """
    lists = world.rank(config)
    bare = [[msgspec.structs.replace(item, reasons=()) for item in items] for items in lists]
    assert world.rank(replace(config, reasons=False)) == bare
    for state, items in zip(world.states, lists, strict=True):
        events = set(zip(state.items, state.types, state.times, strict=True))
        for item in items:
            weights = [reason.weight for reason in item.reasons]
            assert weights == sorted(weights, reverse=True)
            assert 0 <= sum(weights) <= 1.001
            assert len(weights) <= 2
            for reason in item.reasons:
                assert (reason.item_id, reason.type, reason.ts) in events


@given(worlds, st.integers(1, 50))
def test_a_little_diversity_keeps_the_best_item_first(world: World, size: int) -> None:
    """MMR starts with the best score and picks among the best scores."""
    plain = world.rank(RankConfig(size * 5, 0.0, 1.0))
    for best, diverse in zip(plain, world.rank(RankConfig(size, 0.5, 1.0)), strict=True):
        assert [item.item_id for item in diverse][:1] == [item.item_id for item in best][:1]
        assert {item.item_id for item in diverse} <= {item.item_id for item in best}


@given(worlds, st.integers(1, 50))
def test_the_fallback_is_the_popular_order(world: World, size: int) -> None:
    """The popular list has available and unseen items by popularity, ties by item index."""
    space = world.space
    for state in (*world.states, None):
        items = rank_popular(space, state, size)
        seen = {*state.items, *state.seen} if state else set()
        sort_keys = [(-item.score, space.index[item.item_id]) for item in items]
        assert sort_keys == sorted(sort_keys)
        assert all(space.available[row] and space.ids[row] not in seen for _, row in sort_keys)
        assert all(item.source == "popular" for item in items)


@given(
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.sampled_from((300, 2000, 9000)),
    st.builds(RankConfig, st.sampled_from((1, 10, 50)), st.sampled_from((0.0, 0.5)), weights, **lifted),
)
def test_many_cold_items_are_ranked_as_if_all_were_scored(seed: int, users: int, cold: int, config: RankConfig) -> None:
    """Preselecting each user's best cold items changes no bit of a list."""
    rng = np.random.default_rng(seed)
    world = make_world(seed, users, 0.0)
    names = [f"cold-{number}" for number in range(cold)]
    vectors = rng.normal(size=(cold, DIM)).astype(np.float32)
    vectors[rng.integers(0, cold, cold // 3)] = vectors[0]  # texts that are the same
    world.space.add_cold(names, vectors)
    for name in rng.choice(names, cold // 10, replace=False):
        world.space.set_available(name, available=False)
    world.space.set_popularity(
        Popularity.of({name: float(rng.integers(1, 50)) for name in rng.choice(names, 40, replace=False)})
    )
    seen = [names[at] for at in rng.integers(0, cold, 120)]
    world.states = [make_state(seen[:50], range(50), seen[50:]) for _ in world.states]
    world.history = featurise(world.states, {}, {"view": 1}, LENGTH)["item_index"]
    sizes = rng.integers(world.space.trained, world.space.size + 1, users)
    index = np.array([world.space.index[name] for name in names[:30]])
    priors = [
        world.space.prior_of(index[index < size], np.full((index < size).sum(), 3.0), int(size)) for size in sizes
    ]
    for own in (None, priors):
        made = rank(world.space, config, world.states, world.history, *world.encoded, own)
        with patch.object(ranking, "FEW_COLD", cold + COLD):
            assert made == rank(world.space, config, world.states, world.history, *world.encoded, own)
