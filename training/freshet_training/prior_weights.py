"""The weight of the prior: many weights judged at once, over the few items that a list can hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from freshet_training.evaluate import (
    CUTOFF,
    NOTHING_TO_EVALUATE,
    UNRANKED,
    EvaluationBatch,
    Floats,
    Ranker,
    RankingResult,
    result_of,
)


def by_prior_weight(
    batches: Iterable[EvaluationBatch], encoder: Ranker, weights: Sequence[float]
) -> dict[float, RankingResult]:
    """What `evaluate` gives of `with_prior(encoder, weight)`, for each weight.

    An item without popularity has its score of the encoder under every weight. Only the best of these items and all
    items with popularity can therefore be listed. Raises `ValueError` where there is no event.
    """
    users: list[str] = []
    untied: list[NDArray[np.bool_]] = []
    ranks: dict[float, list[NDArray[np.int64]]] = {weight: [] for weight in weights}
    for batch in batches:
        users.extend(batch.users)
        untied.append(batch.untied)
        scores = encoder(batch)
        scores = np.where(np.isnan(scores) | batch.seen, np.float32(-np.inf), scores)
        columns = _listable(scores, batch)
        few = np.take_along_axis(scores, columns, axis=1)
        popular = np.log1p(np.take_along_axis(batch.recent, columns, axis=1))
        earlier = columns < batch.target[:, None]
        for weight, found in ranks.items():
            mixed = few + np.float32(weight) * popular
            own = mixed[:, -1:]
            ahead = (mixed > own) | ((mixed == own) & earlier)
            found.append(np.where(own[:, 0] > -np.inf, ahead.sum(axis=1), UNRANKED))
    if not users:
        raise ValueError(NOTHING_TO_EVALUATE)
    return {weight: result_of(users, np.concatenate(found), np.concatenate(untied)) for weight, found in ranks.items()}


def _listable(scores: Floats, batch: EvaluationBatch) -> NDArray[np.int64]:
    """Columns `[B, C]`: all items with popularity, the first `CUTOFF` + 1 of the others, and last the target."""
    touched = (batch.recent > 0).any(axis=0)
    popular, quiet = np.flatnonzero(touched), np.flatnonzero(~touched)
    best = np.broadcast_to(quiet, (len(scores), len(quiet)))
    if len(quiet) > CUTOFF + 1:
        best = quiet[[_first(row[quiet], CUTOFF + 1) for row in scores]]
    return np.concatenate([np.broadcast_to(popular, (len(scores), len(popular))), best, batch.target[:, None]], axis=1)


def _first(scores: Floats, number: int) -> NDArray[np.int64]:
    """The columns of the `number` highest scores; of equal scores the lower column comes first."""
    lowest = np.partition(scores, -number)[-number]
    above, level = np.flatnonzero(scores > lowest), np.flatnonzero(scores == lowest)
    return np.concatenate([above, level[: number - len(above)]])
