"""How far a list is from changing: bounds on what was left out, made while the list is ranked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freshet.core.item_space import ItemSpace, Prior

ROUNDING = 1e-5
"""Scores of lists are rounded to it."""


def best_outside(
    space: ItemSpace, topk_score: NDArray[np.float32], prior_weight: float, priors: Sequence[Prior]
) -> NDArray[np.float64]:
    """The best that an item of the version can have which is no candidate, `[B, 2]`: by itself, and with popularity.

    Such an item is neither among the encoder's best, with scores `topk_score` `[B, K]`, nor among the popular ones.
    """
    own = topk_score.min(axis=1, initial=np.inf).astype(np.float64)
    own[~np.isfinite(own) | (topk_score.shape[1] >= len(space.ids) - 2)] = -np.inf
    lowest = {id(prior): prior.values[prior.popular].min(initial=np.inf) for prior in priors}
    popularity = np.array([lowest[id(prior)] for prior in priors], np.float64)
    return np.stack([own, own + prior_weight * np.where(np.isfinite(popularity), popularity, 0.0)], axis=1)


def bounds(
    scores: NDArray[np.float32],
    added: NDArray[np.float32],
    best: Sequence[Sequence[float]],
    size: int,
    outside: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The margins and needed priors of B lists with `size` slots, `[B]` each (`core.ranking.RankedList`).

    `scores` `[B, C]` are the candidates', of which popularity `added` so much; `best` are each user's best scores that
    may be listed, one more than a list has slots; `outside` is what `best_outside` gives.
    """
    last, next_best = np.full((2, len(best)), -np.inf)
    for user, values in enumerate(best):
        if len(values) >= size:
            last[user] = values[size - 1]
        if len(values) > size:
            next_best[user] = values[size]
    left_out = scores < next_best[:, None] + ROUNDING
    own = np.where(left_out, scores - added, -np.inf).max(axis=1, initial=-np.inf)
    is_full = np.isfinite(last)
    known = np.where(is_full, last, 0.0)
    margins = np.where(is_full, known - np.maximum(next_best, outside[:, 1]), -np.inf)
    needed = np.where(is_full, known - np.maximum(own, outside[:, 0]), -np.inf)
    return margins, needed
