"""The fallback list while the encoder is away."""

import numpy as np
import pytest
from freshet.core.fallback import DECAY, stand_in
from freshet.core.features import FIRST_ITEM, TOP_K, UNKNOWN
from freshet.core.item_space import ItemSpace
from freshet.core.popularity import Popularity
from freshet.core.ranking import RankConfig
from freshet.core.state import empty_state

from tests.ranked_items import rank

DIM = 16
READ = 8
SCALE = 12.0


def space(items: int, seed: int = 0) -> ItemSpace:
    """Items in random directions, every fourth near the one before it, and a cold one."""
    vectors = np.random.default_rng(seed).normal(size=(items, DIM)).astype(np.float32)
    vectors[3::4] = vectors[2::4][: len(vectors[3::4])] + 0.1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = ItemSpace([f"i{number}" for number in range(items)], vectors)
    made.add_cold(["cold"], vectors[:1])
    return made


def history(*rows: int) -> np.ndarray:
    """`item_index` of one user."""
    return np.array([[0] * (READ - len(rows)) + list(rows)], np.int32)


def test_what_is_near_the_last_items_comes_first() -> None:
    """Items near the newest event come first, and items near an older event follow."""
    over = space(40)
    older, newest = FIRST_ITEM + 2, FIRST_ITEM + 6
    index, score, embedding = stand_in(over, history(older, newest), SCALE)
    ranked = index[0][np.argsort(-score[0])].tolist()
    assert {*ranked[:2]} == {newest, newest + 1}
    assert max(ranked.index(older), ranked.index(older + 1)) < len(ranked) / 2
    assert np.linalg.norm(embedding) == pytest.approx(SCALE)
    mean = np.exp(-DECAY) * over.vectors[older] + over.vectors[newest]
    np.testing.assert_allclose(embedding[0], SCALE * mean / np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_allclose(score[0], over.vectors[index[0]] @ embedding[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("items", [40, 500])
def test_the_best_of_the_whole_table_are_there(items: int) -> None:
    """The fallback returns the best trained items of the whole table, as many as the graph, without repeats."""
    over = space(items)
    index, score, embedding = stand_in(over, history(FIRST_ITEM + 1, FIRST_ITEM + 9), SCALE)
    assert index.shape == score.shape == (1, min(TOP_K, items))
    assert index.dtype == np.int32
    assert len(set(index[0].tolist())) == min(TOP_K, items)
    assert index.min() >= FIRST_ITEM
    assert index.max() < over.trained
    scores = over.vectors[FIRST_ITEM : over.trained] @ embedding[0]
    assert score.min() >= np.sort(scores)[-min(TOP_K, items)] - 1e-5


def test_where_no_item_is_known_popularity_decides() -> None:
    """For an empty history and a history of unknown items the fallback's list is the popular one."""
    over = space(300)
    over.set_popularity(Popularity.of({"i200": 9.0, "i7": 4.0, "i120": 2.0}))
    unread = np.concatenate([history(UNKNOWN, UNKNOWN), history()])
    outputs = stand_in(over, unread, SCALE)
    assert not outputs[2].any()
    for items in rank(over, RankConfig(3, 0.0, 1.0), [empty_state(0)] * 2, unread, *outputs):
        assert [item.item_id for item in items] == ["i200", "i7", "i120"]


def test_an_answer_does_not_depend_on_the_batch() -> None:
    """A row of the fallback has the same bits alone, in a batch and after cold items are added."""
    over = space(700)
    random = np.random.default_rng(1)
    rows = random.integers(0, over.trained, (33, READ)).astype(np.int32)
    together = stand_in(over, rows, SCALE)
    over.add_cold([f"cold-{number}" for number in range(300)], random.normal(size=(300, DIM)).astype(np.float32))
    for user in range(0, 33, 4):
        alone = stand_in(over, rows[user : user + 1], SCALE)
        for row, batch_row in zip(alone, together, strict=True):
            assert row[0].tobytes() == batch_row[user].tobytes()
