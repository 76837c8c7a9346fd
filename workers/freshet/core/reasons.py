"""Reasons: which of a user's events moved an item most, from vectors alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freshet.core.recommendation import Reason
from freshet.core.state import UserState

DECAY = 0.1
"""With it the first reason is the event whose loss moves the item most in .52 of the cases on films (without it .22)
and .69 on beauty (.58)."""


def decay_weights(length: int, decay: float) -> NDArray[np.float32]:
    """Weights `[length]` of events, the oldest first: e^-`decay` for each one that came after."""
    weights: NDArray[np.float32] = np.exp(-decay * np.arange(length)[::-1]).astype(np.float32)
    return weights


def strongest_events(
    vectors: NDArray[np.float32], history: NDArray[np.int32], picks: list[list[int]], size: int, decay: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Per user and slot the two history positions that pull the item most, `[B, size, 2]`, and their shares.

    An event pulls by its item's positive dot product with the list's, the less the longer ago
    (`decay`): what leaving it out would show, at the cost of a product (`attribution` does leave it out).
    """
    batch = len(picks)
    rows = np.zeros((batch, size), np.int64)
    for user, picked in enumerate(picks):
        rows[user, : len(picked)] = picked
    weights = decay_weights(history.shape[1], decay)
    pull = np.maximum(np.matmul(vectors[rows], vectors[history].transpose(0, 2, 1)), 0.0) * weights
    whole = np.maximum(pull.sum(axis=2), 1e-9)
    positions = np.empty((batch, size, 2), np.int64)
    shares = np.empty((batch, size, 2))
    user_column, slot_row = np.arange(batch)[:, None], np.arange(size)[None, :]
    for reason in range(2):
        best = pull.argmax(axis=2)
        positions[:, :, reason] = best
        shares[:, :, reason] = pull[user_column, slot_row, best] / whole
        pull[user_column, slot_row, best] = -1.0
    return positions, shares.round(3)


def reasons_of(
    length: int, state: UserState, positions: list[list[int]], shares: list[list[float]]
) -> list[tuple[Reason, ...]]:
    """Per slot the user's events at two history positions, without those that pull nothing."""
    items, types, times = state.items, state.types, state.times
    padding = length - len(items)
    found = []
    for (first, second), (most, more) in zip(positions, shares, strict=True):
        reasons: tuple[Reason, ...] = ()
        if most > 0:
            at = first - padding
            reasons = (Reason(items[at], types[at], times[at], most),)
            if more > 0:
                at = second - padding
                reasons += (Reason(items[at], types[at], times[at], more),)
        found.append(reasons)
    return found
