"""Sums of metrics in buckets of users: the intervals and the verdicts that they give."""

from __future__ import annotations

import numpy as np
from freshet.core.evaluation.buckets import BUCKETS, Sums, bucket, paired, unpaired, verdict
from freshet.core.evaluation.results import Estimate

TRIALS = 150
REPETITIONS = 200
FALSE_ALARMS = range(2, 21)
"""Of 200 at 5 %: fewer or more come about once in 300 times."""


def test_intervals_cover_the_true_mean() -> None:
    """A 95 % interval holds the true mean 95 times in a hundred, though users differ in taste and activity."""
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(TRIALS):
        sums = Sums(1)
        for number in range(100):
            taste = rng.beta(2, 6)  # mean 1/4
            for _ in range(1 + rng.poisson(3)):
                sums.add(bucket(f"{trial}-{number}"), (float(rng.random() < taste),))
        [found] = sums.estimates(seed=trial)
        covered += found.low <= 1 / 4 <= found.high
    assert 0.89 <= covered / TRIALS <= 0.99


def test_an_interval_has_its_verdict() -> None:
    """An interval that holds the neutral value gives no verdict."""
    assert verdict(Estimate(0.1, 0.01, 0.2, 9)) == "better"
    assert verdict(Estimate(0.1, -0.01, 0.2, 9)) == "no difference shown"
    assert verdict(Estimate(0.4, 0.3, 0.49, 9), neutral=0.5) == "worse"


def sums(counts: np.ndarray, totals: np.ndarray) -> Sums:
    found = Sums(1)
    found.counts[:], found.sums[:, 0] = counts, totals
    return found


def repetitions(effect: float) -> list[tuple[str, str]]:
    """Verdicts of a paired and of an unpaired comparison, each of two policies that differ by an effect."""
    found = []
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 9, BUCKETS).astype(float)
        taste = rng.beta(2, 8, BUCKETS)  # what all of a bucket's lists have in common
        first, other = (rng.binomial(counts.astype(int), np.clip(taste + more, 0, 1)) for more in (0.0, effect))
        half = np.arange(BUCKETS) % 2 == 0
        [pair] = paired(sums(counts, first), sums(counts, other), 0)
        [apart] = unpaired(sums(counts * half, first * half), sums(counts * ~half, other * ~half), 0)
        found.append((verdict(pair), verdict(apart)))
    return found


def test_no_false_verdicts_beyond_their_share() -> None:
    """Of 200 comparisons of equal policies about one in twenty has a verdict."""
    same = repetitions(0.0)
    for way in (0, 1):
        assert sum(verdicts[way] != "no difference shown" for verdicts in same) in FALSE_ALARMS


def test_real_differences_are_found() -> None:
    """A large difference has a verdict of the right sign in more than 95 of a hundred comparisons."""
    for effect, says in ((0.08, "better"), (-0.08, "worse")):
        found = repetitions(effect)
        for way in (0, 1):
            assert sum(verdicts[way] == says for verdicts in found) > 0.95 * REPETITIONS
