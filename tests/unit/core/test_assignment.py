"""Assignment of users to the variants of experiments."""

from __future__ import annotations

import numpy as np
from freshet.core.assignment import variant
from freshet.core.evaluation.buckets import BUCKETS, bucket

USERS = [f"user-{number}" for number in range(20_000)]
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}


def test_shares_hold_and_assignments_stay() -> None:
    """Each variant has its share of users within five standard deviations, and a user keeps the variant."""
    given = [variant(user, "first", SHARES) for user in USERS]
    assert given == [variant(user, "first", dict(reversed(SHARES.items()))) for user in USERS]
    for name, share in SHARES.items():
        spread = (len(USERS) * share * (1 - share)) ** 0.5
        assert abs(given.count(name) - len(USERS) * share) < 5 * spread


def test_experiments_are_independent() -> None:
    """The assignments of two experiments are independent by a chi-squared test."""
    table = {(first, second): 0 for first in SHARES for second in SHARES}
    for user in USERS:
        table[variant(user, "first", SHARES), variant(user, "second", SHARES)] += 1
    expected = {(first, second): len(USERS) * SHARES[first] * SHARES[second] for first, second in table}
    chi_squared = sum((table[cell] - expected[cell]) ** 2 / expected[cell] for cell in table)
    assert chi_squared < 26.1  # eight degrees of freedom: more comes about once in 1,000 times


def test_a_variant_says_nothing_of_the_bucket() -> None:
    """Users of a variant are spread evenly over the buckets that intervals resample."""
    counts = np.zeros(BUCKETS)
    for user in USERS:
        counts[bucket(user)] += variant(user, "first", SHARES) == "a"
    expected = counts.sum() / BUCKETS
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - (BUCKETS - 1)) < 5 * (2 * (BUCKETS - 1)) ** 0.5
