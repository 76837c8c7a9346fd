"""The best of very many rows for each user of a batch, by one matrix product, and exact to the last bit.

A product through BLAS takes a tenth of the time, and its last bits depend on the batch. So the product only says
which rows can be among the best, give or take the largest error that it can make. Their scores are then computed row
by row, as they are for few rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

TOGETHER = 1 << 22
"""Users times rows that one product has, 16 MiB."""
BLOCK = 64
"""Rows whose largest score stands for them where the bound is looked for: finding it costs a pass, not a sort."""


def best_rows(
    embedding: NDArray[np.float32],
    vectors: NDArray[np.float32],
    longest: float,
    popularity: Sequence[NDArray[np.float32]],
    lift: NDArray[np.float32] | np.float32,
    rankable: Sequence[NDArray[np.bool_]],
    wanted: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of B users the `wanted` rows of highest score, in no order, and their dot products: `[B, wanted]`.

    A score is `embedding @ vector + popularity + lift`; equal scores go by the lower row. `embedding` is `[B, D]`,
    `vectors` `[N, D]` with `longest` a bound of their lengths, `lift` `[N]` or 0. `popularity` and `rankable` hold an
    array `[N]` per user. Where a user has fewer rankable rows, the row is -1.
    """
    rows = np.full((len(embedding), wanted), -1, np.int64)
    products = np.zeros((len(embedding), wanted), np.float32)
    masked: dict[tuple[int, int], NDArray[np.float32]] = {}
    for mine, may in zip(popularity, rankable, strict=True):
        if (id(mine), id(may)) not in masked:
            masked[id(mine), id(may)] = np.where(may, mine + lift, np.float32(-np.inf))
    added = [masked[id(mine), id(may)] for mine, may in zip(popularity, rankable, strict=True)]
    for user, possible in _possible(embedding, vectors, longest, added, wanted):
        exact = np.einsum("nd,d->n", vectors[possible], embedding[user])
        best = np.arange(len(possible))
        if len(possible) > wanted:
            lifted = lift if isinstance(lift, np.float32) else lift[possible]
            scores = (exact + popularity[user][possible]) + lifted
            best = np.argpartition(order_keys(scores, possible), wanted - 1)[:wanted]
        rows[user, : len(best)], products[user, : len(best)] = possible[best], exact[best]
    return rows, products


def _possible(
    embedding: NDArray[np.float32],
    vectors: NDArray[np.float32],
    longest: float,
    added: Sequence[NDArray[np.float32]],
    wanted: int,
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each user with the rows that can be among the `wanted` best; -inf is `added` to those that are not rankable."""
    together = max(1, TOGETHER // len(vectors))
    epsilon = float(np.finfo(np.float32).eps)
    for start in range(0, len(embedding), together):
        chunk = embedding[start : start + together]
        scores = chunk @ vectors.T
        for user in range(len(chunk)):
            scores[user] += added[start + user]
        bound = _bound(scores, wanted)
        # Higham, Accuracy and Stability of Numerical Algorithms, 3.1: both sums are off by no more than this
        length = np.linalg.norm(chunk, axis=1) * longest
        error = 2 * (vectors.shape[1] + 4) * epsilon * (length + np.abs(np.where(np.isfinite(bound), bound, 0)))
        least = np.maximum(bound - 2 * error, np.finfo(np.float32).min).astype(np.float32)
        for user in range(len(chunk)):
            yield start + user, np.flatnonzero(scores[user] >= least[user])


def _bound(scores: NDArray[np.float32], wanted: int) -> NDArray[np.float32]:
    """A score per user `[B]` that `wanted` of the user's scores `[B, N]` reach, -inf where there are not as many."""
    rows = scores.shape[1]
    if rows <= wanted:
        return np.full(len(scores), -np.inf, np.float32)
    blocks = rows // BLOCK
    if blocks >= 2 * wanted:
        scores = scores[:, : blocks * BLOCK].reshape(len(scores), blocks, BLOCK).max(axis=2)
    bound: NDArray[np.float32] = np.partition(scores, scores.shape[1] - wanted, axis=1)[:, scores.shape[1] - wanted]
    return bound


def order_keys(scores: NDArray[np.float32], rows: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.int64]:
    """Integers that rise as the score falls, then with the row, and hold both: sorting them moves all at once."""
    bits = (scores.astype(np.float32, copy=False) + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (-ascending << 32) | rows
