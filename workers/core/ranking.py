"""Ranking: from the encoder's candidates and the prior to a list with reasons.

The score of an item is the encoder's score plus `prior_weight` times the log
of one plus its popularity. Candidates are the served graph's top-K, the items
newer than the version, and the most popular ones. The order is total:
non-finite scores sink, equal scores go by item index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.core.features import DIM, FIRST_ITEM, UNKNOWN
from workers.core.recommendation import Item, Reason
from workers.core.state import HISTORY, UserState

POPULAR_CANDIDATES = 50
COLD_CANDIDATES = 200
"""The newest items beyond the version's own that are candidates for everybody."""
MMR_POOL = 5
"""Diversity picks among this many times the list's size."""


@dataclass(frozen=True)
class RankConfig:
    """How lists are made; `diversity` is 0 for pure score to 1 for pure dissimilarity (MMR, SIGIR 1998)."""

    list_size: int
    diversity: float
    prior_weight: float


class ItemSpace:
    """All rankable items of one model version: its own, then the cold ones in order of arrival.

    Row = the encoder's item index. `vectors` is float32 `[rows, DIM]`, `prior`
    float32 `[rows]` is log1p of popularity, `available` bool `[rows]`.
    """

    def __init__(self, item_ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self.trained = FIRST_ITEM + len(item_ids)
        self.size = self.trained
        self.ids: list[str] = ["", "", *item_ids]
        self.index: dict[str, int] = {item: row for row, item in enumerate(self.ids) if row >= FIRST_ITEM}
        self.vectors = np.zeros((self.size, DIM), np.float32)
        self.vectors[FIRST_ITEM:] = vectors
        self.prior = np.zeros(self.size, np.float32)
        self.available = np.ones(self.size, np.bool_)
        self.available[:FIRST_ITEM] = False
        self.popular = np.arange(FIRST_ITEM, min(self.size, FIRST_ITEM + POPULAR_CANDIDATES))
        self._popularity: Mapping[str, float] = {}
        self._common: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None

    def add_cold(self, items: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Place items `[n]` by their vectors `[n, DIM]`; one already cold moves to its new place."""
        for item, vector in zip(items, vectors, strict=True):
            row = self.index.get(item)
            if row is None:
                row = self._append(item)
            self.vectors[row] = vector
        self.set_popularity(self._popularity)

    def _append(self, item: str) -> int:
        row = self.size
        if row == len(self.vectors):
            spare = max(256, row // 2)
            self.vectors = np.concatenate([self.vectors, np.zeros((spare, DIM), np.float32)])
            self.prior = np.concatenate([self.prior, np.zeros(spare, np.float32)])
            self.available = np.concatenate([self.available, np.zeros(spare, np.bool_)])
        self.available[row] = True
        self.ids.append(item)
        self.index[item] = row
        self.size = row + 1
        return row

    def set_available(self, item: str, available: bool) -> None:
        """Let an item into lists, or keep it out of them at once."""
        row = self.index.get(item)
        if row is not None:
            self.available[row] = available

    def set_popularity(self, counts: Mapping[str, float]) -> None:
        """Take new popularity counts."""
        self._popularity = counts
        self.prior[:] = 0.0
        rows = [(row, count) for item, count in counts.items() if (row := self.index.get(item)) is not None]
        if rows:
            index, values = np.array([row for row, _ in rows]), np.array([count for _, count in rows])
            self.prior[index] = np.log1p(values)
        order = np.argsort(-self.prior[FIRST_ITEM : self.size], kind="stable")[:POPULAR_CANDIDATES]
        self.popular = order + FIRST_ITEM
        self._common = None

    def common_candidates(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows that are candidates for every user, ascending, and their vectors: the popular, the newest cold."""
        if self._common is None:
            cold = np.arange(max(self.trained, self.size - COLD_CANDIDATES), self.size)
            rows = np.union1d(self.popular, cold).astype(np.int32)
            self._common = rows, self.vectors[rows]
        return self._common


def rank(
    space: ItemSpace,
    config: RankConfig,
    states: Sequence[UserState],
    history: NDArray[np.int32],
    topk_index: NDArray[np.int32],
    topk_score: NDArray[np.float32],
    embedding: NDArray[np.float32],
) -> list[list[Item]]:
    """Rank for a batch of B users.

    `history` `[B, HISTORY]` is the encoder's `item_index` input; the rest are
    its outputs: `[B, TOP_K]`, `[B, TOP_K]`, `[B, DIM]`.
    """
    common, vectors = space.common_candidates()
    extra = embedding @ vectors.T
    candidates = np.concatenate([topk_index, np.broadcast_to(common, extra.shape)], axis=1)
    scores = np.concatenate([topk_score, extra], axis=1) + config.prior_weight * space.prior[candidates]
    rankable = np.isfinite(scores) & space.available[candidates]
    rankable &= ~(candidates[:, :, None] == history[:, None, :]).any(axis=2)
    rankable[:, topk_index.shape[1] :] &= ~(common[None, :, None] == topk_index[:, None, :]).any(axis=2)
    scores[~rankable] = -np.inf
    order = np.argsort(_order_key(scores, candidates), axis=1)
    pool = config.list_size * (MMR_POOL if config.diversity else 1)
    user_column = np.arange(len(states))[:, None]
    best = order[:, :pool]
    picks, values = candidates[user_column, best].tolist(), _rounded(scores[user_column, best])
    more_seen = (history == UNKNOWN).any(axis=1)
    for user, state in enumerate(states):
        if more_seen[user] or len(state.seen_log) > 1 or values[user][-1] == -np.inf:
            ranked = order[user]
            picks[user], values[user] = _unseen(
                space.ids, state, candidates[user][ranked].tolist(), _rounded(scores[user][ranked]), pool
            )
        if config.diversity:
            picks[user], values[user] = _diversify(space.vectors, picks[user], values[user], config)
    positions, shares = _strongest_events(space.vectors, history, picks, config.list_size)
    return [
        _items(space, state, picked, value, *why)
        for state, picked, value, why in zip(
            states, picks, values, zip(positions.tolist(), shares.tolist(), strict=True), strict=True
        )
    ]


def rank_popular(space: ItemSpace, state: UserState | None, list_size: int) -> list[Item]:
    """The fallback: the most popular available items, without those the user (if any profile) has seen."""
    seen = {*state.items, *state.seen} if state is not None else ()
    items: list[Item] = []
    for row in space.popular.tolist():
        if space.available[row] and space.ids[row] not in seen:
            items.append(Item(space.ids[row], round(float(space.prior[row]), 5), "popular"))
            if len(items) == list_size:
                break
    return items


def _rounded(scores: NDArray[np.float32]) -> list[Any]:
    rounded: list[Any] = scores.astype(np.float64).round(5).tolist()
    return rounded


def _order_key(scores: NDArray[np.float32], candidates: NDArray[np.int32]) -> NDArray[np.int64]:
    """Integers that rise as the score falls, then with the item index; they sort twice as fast as floats do stably."""
    bits = (scores.astype(np.float32, copy=False) + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (-ascending << 32) | candidates


def _unseen(
    ids: list[str], state: UserState, rows: list[int], scores: list[float], size: int
) -> tuple[list[int], list[float]]:
    """The first `size` finite candidates that the user has not seen."""
    seen = {*state.items, *state.seen}
    picked: list[int] = []
    values: list[float] = []
    for row, score in zip(rows, scores, strict=True):
        if score == -np.inf:
            break
        if ids[row] not in seen:
            picked.append(row)
            values.append(score)
            if len(picked) == size:
                break
    return picked, values


def _diversify(
    vectors: NDArray[np.float32], rows: list[int], scores: list[float], config: RankConfig
) -> tuple[list[int], list[float]]:
    """Maximal marginal relevance over the pool, scores scaled to [0, 1], cosine similarity."""
    if not rows:
        return rows, scores
    unit = vectors[rows]
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    relevance = np.array(scores)
    spread = relevance[0] - relevance[-1]
    relevance = (relevance - relevance[-1]) / spread if spread > 0 else np.ones_like(relevance)
    nearest = np.zeros(len(rows))
    chosen: list[int] = []
    left = np.ones(len(rows), np.bool_)
    while len(chosen) < min(config.list_size, len(rows)):
        gain = (1 - config.diversity) * relevance - config.diversity * nearest
        best = int(np.argmax(np.where(left, gain, -np.inf)))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, unit @ unit[best])
    return [rows[i] for i in chosen], [scores[i] for i in chosen]


def _strongest_events(
    vectors: NDArray[np.float32], history: NDArray[np.int32], picks: list[list[int]], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Per user and slot the two history positions nearest to the item, `[B, size, 2]`, and their shares.

    A share is the event's part of the sum of the positive dot products: an
    attribution by similarity in the item space, not by leaving events out.
    """
    batch = len(picks)
    rows = np.zeros((batch, size), np.int64)
    for user, picked in enumerate(picks):
        rows[user, : len(picked)] = picked
    pull = np.maximum(np.matmul(vectors[rows], vectors[history].transpose(0, 2, 1)), 0.0)
    whole = np.maximum(pull.sum(axis=2), 1e-9)
    positions = np.empty((batch, size, 2), np.int64)
    shares = np.empty((batch, size, 2))
    user_column, slot_row = np.arange(batch)[:, None], np.arange(size)[None, :]
    for place in range(2):
        best = pull.argmax(axis=2)
        positions[:, :, place] = best
        shares[:, :, place] = pull[user_column, slot_row, best] / whole
        pull[user_column, slot_row, best] = -1.0
    return positions, shares.round(3)


def _items(
    space: ItemSpace,
    state: UserState,
    picked: list[int],
    scores: list[float],
    positions: list[list[int]],
    shares: list[list[float]],
) -> list[Item]:
    ids, trained = space.ids, space.trained
    items, types, times = state.items, state.types, state.times
    padding = HISTORY - len(items)
    ranked = []
    for row, score, (first, second), (most, more) in zip(picked, scores, positions, shares, strict=False):
        reasons: tuple[Reason, ...] = ()
        if most > 0:
            at = first - padding
            reasons = (Reason(items[at], types[at], times[at], most),)
            if more > 0:
                at = second - padding
                reasons += (Reason(items[at], types[at], times[at], more),)
        ranked.append(Item(ids[row], score, "cold" if row >= trained else "model", 1.0, reasons))
    return ranked
