"""What is trained is what is served: the same popularity of a long tail in training and in a worker."""

from __future__ import annotations

import numpy as np
import pytest
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, featurise
from freshet.core.item_space import ItemSpace
from freshet.core.popularity import PartialPopularity, PopularityTable, decode_partial, encode_partial
from freshet.core.ranking import RankConfig
from freshet.core.state import FIRST_TOUCH, UserState, empty_state, fold
from freshet_training.evaluate import EvaluationBatch, EvaluationReplay, Floats, evaluate, with_prior

from tests.ranked_items import rank

ITEMS = [f"toy-{number}" for number in range(4000)]
INDEX = {item: row + FIRST_ITEM for row, item in enumerate(ITEMS)}
TYPES = {"click": 1}
HALF_LIFE = 7 * 86_400.0
USERS, BEFORE, AFTER, BATCH = 300, 12_000, 400, 50
PRIOR_WEIGHT = 0.7
DIM = 8


@pytest.fixture
def log() -> list[Event]:
    """A month of clicks, most of them on a tail of items that few others touch."""
    rng = np.random.default_rng(0)
    chance = 1 / (30 + np.arange(len(ITEMS)))
    items = rng.choice(len(ITEMS), BEFORE + AFTER, p=chance / chance.sum())
    users = rng.integers(0, USERS, BEFORE + AFTER)
    return [
        Event(f"e{at}", f"u{user}", "click", 1_700_000_000_000 + 200_000 * at, ITEMS[item])
        for at, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True))
    ]


def encode(histories: np.ndarray, vectors: Floats) -> Floats:
    """Users `[B, DIM]`: a sum of what they touched."""
    table = np.concatenate([np.zeros((FIRST_ITEM, DIM), np.float32), vectors])
    users: Floats = table[histories].sum(axis=1)
    return users


def served(log: list[Event], vectors: Floats) -> list[list[str]]:
    """The list that stands before each of the last events, of workers that publish and read counts batch by batch."""
    space, table = ItemSpace(ITEMS, vectors), PopularityTable()
    states: dict[str, UserState] = {}
    counts = [PartialPopularity(partition, HALF_LIFE) for partition in range(2)]
    config = RankConfig(list_size=10, diversity=0.0, prior_weight=PRIOR_WEIGHT, reasons=False)
    lists = []
    for offset, event in enumerate(log):
        partition = int(event.user_id[1:]) % 2
        state = states.setdefault(event.user_id, empty_state(partition))
        if offset >= BEFORE:
            space.set_popularity(table.popularity())
            history = featurise([state], INDEX, TYPES, 50)["item_index"]
            embedding = encode(history, vectors)
            top = np.argsort(-(embedding @ vectors.T), axis=1, kind="stable")[:, :1000].astype(np.int32)
            score = np.take_along_axis(embedding @ vectors.T, top, axis=1)
            [made] = rank(space, config, [state], history, top + FIRST_ITEM, score, embedding)
            lists.append([item.item_id for item in made])
        if fold(state, event, partition, offset) is FIRST_TOUCH:
            counts[partition].add(event.item_id or "", event.ts, offset)
        if offset >= BEFORE or offset % BATCH == BATCH - 1:
            for counting in counts:
                for partial in counting.changes():
                    read = decode_partial(encode_partial(partial))
                    assert not isinstance(read, str)
                    assert not isinstance(table.apply(read), str)
    return lists


def test_the_trainers_figure_is_what_is_ranked(log: list[Event]) -> None:
    """NDCG@10 of the last events, to the last digit, where more than 3,000 items of each partition are counted."""
    vectors = np.random.default_rng(1).normal(size=(len(ITEMS), DIM)).astype(np.float32) / 4

    def encoder(batch: EvaluationBatch) -> Floats:
        scores: Floats = encode(batch.tensors["item_index"], vectors) @ vectors.T
        return scores

    replay = EvaluationReplay(log, ITEMS, INDEX, TYPES, HALF_LIFE, 50)
    batches = list(replay.batches(BEFORE, len(log)))
    trained = evaluate(batches, {"mix": with_prior(encoder, PRIOR_WEIGHT)})["mix"]
    targets = [ITEMS[row] for batch in batches for row in batch.target]
    known: set[tuple[str, str | None]] = {(event.user_id, event.item_id) for event in log[:BEFORE]}
    gains = []
    for event, made in zip(log[BEFORE:], served(log, vectors), strict=True):
        if (event.user_id, event.item_id) in known:
            continue
        known.add((event.user_id, event.item_id))
        gains.append(1 / np.log2(2 + made.index(event.item_id)) if event.item_id in made else 0.0)
    assert len(gains) == len(targets) > AFTER / 2
    assert trained.ndcg > 0
    assert float(np.mean(gains)) == trained.ndcg
