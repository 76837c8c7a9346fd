"""Exploration: the propensities that a list logs are the frequencies of its items."""

from __future__ import annotations

import numpy as np
import pytest
from freshet.core.exploration import explore, propensity


@pytest.mark.parametrize(("pool", "size"), [(12, 4), (4, 4), (3, 5)])
def test_logged_propensities_are_how_often_it_happens(pool: int, size: int) -> None:
    """Every slot holds every item as often as `propensity` says, and each list logs that number."""
    candidates = [f"i{n}" for n in range(pool)]
    draws, epsilon = 6000, 0.8
    held = np.zeros((min(pool, size), pool))
    for seed in range(draws):
        explored = explore(candidates, size, epsilon, str(seed))
        for slot, (item, logged) in enumerate(zip(explored.items, explored.propensities, strict=True)):
            assert logged == pytest.approx(propensity(candidates, size, epsilon, slot, item))
            held[slot, candidates.index(item)] += 1
    chances = np.array([[propensity(candidates, size, epsilon, s, i) for i in candidates] for s in range(len(held))])
    assert chances.sum(axis=1) == pytest.approx(1)
    spread = np.sqrt(draws * chances * (1 - chances)) + 1e-9
    assert (np.abs(held - draws * chances) < 5 * spread).all()
