"""Rankers without a network, and the best mix of them: what a network must beat to be worth serving.

The mix adds up the log of popularity, of late or of all time, co-occurrence with the user's last items, and the
nearness of texts to them. Each weight is chosen on the validation part, one source after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from freshet.core.events import CONTROL_TYPES, Event
from freshet.core.reasons import decay_weights
from scipy.sparse import csr_array, diags_array, vstack

from freshet_training.evaluate import CachedRanker, EvaluationBatch, Floats, Ranker, RankingResult, evaluate
from freshet_training.text.whitening import fit_whitening

BASKET = 200
"""Of a user with more items, the last ones are counted as taken together."""
NEIGHBOURS = 500
"""Items that are kept as taken together with an item, at most."""
ROWS_TOGETHER = 2048
"""Rows of the co-occurrence table that are computed at a time."""
CO_OCCURRENCE_LAST = (1, 5, 10, 50)
FADING = 0.3
"""How much less an item counts for each one that came after it, on a log scale, where texts are compared."""
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Weights that are tried of a source beside those before it."""

Batches = Callable[[], Iterator[EvaluationBatch]]


def popularity(batch: EvaluationBatch) -> Floats:
    """All-time popularity, counted up to the event."""
    return batch.popular


def recent_popularity(batch: EvaluationBatch) -> Floats:
    """Popularity decayed by the half-life, counted up to the event: the worker's streaming prior."""
    return batch.recent


class CoOccurrence:
    """Item-item co-occurrence: how many users touched both, cosine-normalised, summed over the last items.

    The table is sparse: `NEIGHBOURS` an item, and a user is counted with the last `BASKET` items.
    """

    def __init__(self, events: Sequence[Event], row: Mapping[str, int]) -> None:
        users: dict[str, dict[int, None]] = {}
        for event in events:
            if event.type not in CONTROL_TYPES and event.item_id in row:
                users.setdefault(event.user_id, {})[row[event.item_id]] = None
        baskets = [list(items)[-BASKET:] for items in users.values()]
        columns = np.array([item for basket in baskets for item in basket], np.int32)
        lines = np.repeat(np.arange(len(baskets), dtype=np.int32), [len(basket) for basket in baskets])
        weights = np.ones(len(columns), np.float32)
        touched = csr_array((weights, (lines, columns)), shape=(len(baskets), len(row)))  # [users, M]
        norm = 1 / np.sqrt(np.maximum(touched.sum(axis=0), 1))
        touched = (touched @ diags_array(norm)).astype(np.float32).tocsr()
        by_item = touched.T.tocsr()
        parts = range(0, len(row), ROWS_TOGETHER)
        self._similarity = vstack([_nearest(by_item[part : part + ROWS_TOGETHER] @ touched) for part in parts]).tocsr()

    def over(self, last: int) -> Ranker:
        """The ranker by the sum over a user's `last` items: scores `[B, M]`."""

        def score(batch: EvaluationBatch) -> Floats:
            histories = [history[-last:] for history in batch.history]
            rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
            items = np.concatenate(histories) if histories else rows
            shape = len(histories), self._similarity.shape[0]
            chosen = csr_array((np.ones(len(items), np.float32), (rows, items)), shape=shape)
            scores: Floats = (chosen @ self._similarity).toarray()
            return scores

        return score


def _nearest(table: csr_array) -> csr_array:
    """The `NEIGHBOURS` largest values of each row."""
    table = table.tocsr()
    kept = np.ones(table.nnz, np.bool_)
    for begin, end in zip(table.indptr[:-1], table.indptr[1:], strict=True):
        if end - begin > NEIGHBOURS:
            kept[begin + np.argpartition(-table.data[begin:end], NEIGHBOURS)[NEIGHBOURS:]] = False
    table.data[~kept] = 0
    table.eliminate_zeros()
    return table


def nearest_text(texts: Floats) -> Ranker:
    """Rank by the cosine of an item's text to the faded mean of the user's items' texts, whitened: `[M, TEXT_DIM]`."""
    unit = fit_whitening(texts)(texts)

    def score(batch: EvaluationBatch) -> Floats:
        means = np.zeros((len(batch.users), unit.shape[1]), np.float32)
        for user, history in enumerate(batch.history):
            means[user] = decay_weights(len(history), FADING) @ unit[history]
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
        scores: Floats = means @ unit.T
        return scores

    return score


@dataclass(frozen=True)
class Mix:
    """The best ranker without a network: the sum of its sources by their weights."""

    sources: Mapping[str, tuple[Ranker, float]]

    def __call__(self, batch: EvaluationBatch) -> Floats:
        """Scores `[B, M]`."""
        scores: Floats = sum(  # type: ignore[assignment]
            (np.float32(weight) * ranker(batch) for ranker, weight in self.sources.values()),
            np.zeros(batch.seen.shape, np.float32),
        )
        return scores

    def __str__(self) -> str:
        """The sources and their weights, as a person reads them."""
        return " + ".join(f"{weight:g} {name}" for name, (_, weight) in self.sources.items())


@dataclass(frozen=True)
class Baselines:
    """The rankers without a network: each alone, and their best mix."""

    alone: Mapping[str, Ranker]
    mix: Mix


def fit_baselines(
    batches: Batches, co_occurrence: CoOccurrence, texts: Floats, score: Callable[[RankingResult], float]
) -> Baselines:
    """The baselines by their `score` on the validation part, which `batches` gives any number of times.

    `texts` are `[M, TEXT_DIM]`. Raises `ValueError` where there is no event.
    """
    popular: dict[str, Ranker] = {"popularity": popularity, "recent popularity": recent_popularity}
    together = {f"co-occurrence of the last {last}": co_occurrence.over(last) for last in CO_OCCURRENCE_LAST}
    near = {"nearest text": nearest_text(texts)} if texts.any() else {}
    scores = {name: score(result) for name, result in evaluate(batches(), popular | together).items()}
    first, [window] = _by_score(popular, scores), _by_score(together, scores)[:1]
    mix = Mix({f"log {first[0]}": (_log(popular[first[0]]), 1.0)})
    best = scores[first[0]]
    for name, ranker in ({window: together[window]} | near).items():
        once = CachedRanker(ranker)
        tried = {f"{weight}": Mix({**mix.sources, name: (once, weight)}) for weight in WEIGHTS}
        found = {weight: score(result) for weight, result in evaluate(batches(), tried).items()}
        [weight] = _by_score(tried, found)[:1]
        if found[weight] > best:
            mix, best = tried[weight], found[weight]
    return Baselines(popular | {"co-occurrence": together[window]} | near, mix)


def _by_score(names: Mapping[str, object], scores: Mapping[str, float]) -> list[str]:
    return sorted(names, key=lambda name: -scores[name])


def _log(ranker: Ranker) -> Ranker:
    return lambda batch: np.log1p(ranker(batch))
