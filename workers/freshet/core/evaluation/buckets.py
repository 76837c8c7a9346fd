"""Means with bootstrap intervals, streaming: users are hashed into buckets, and buckets are resampled.

A user's observations are not independent, so users are the units to resample.
Keeping one sum per user would grow with the log; a fixed number of buckets of
users does not, and two policies judged on the same events share their buckets,
so a difference is paired by resampling the same ones (Chamandy et al. 2012
resample streams in the same spirit; Efron 1979 is the percentile interval).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.evaluation.results import Estimate

BUCKETS = 1024
REPLICATES = 1000
GROUPS = 64
"""Coarser units, for what is kept per unit and item; a group is sixteen buckets."""
GROUP_REPLICATES = 200
UNDECIDED = "no difference shown"


@lru_cache(maxsize=100_000)
def bucket(user_id: str) -> int:
    """The bucket of a user, the same in every process."""
    digest = hashlib.blake2b(user_id.encode(errors="surrogatepass"), digest_size=2).digest()
    return int.from_bytes(digest) % BUCKETS


class SavedSums(msgspec.Struct, frozen=True, array_like=True):
    """The arrays of `Sums` in a checkpoint, float64 each."""

    counts: bytes
    sums: bytes


class Sums:
    """Counts `[BUCKETS]` and sums `[BUCKETS, metrics]` of one slice."""

    def __init__(self, metrics: int) -> None:
        self.counts = np.zeros(BUCKETS)
        self.sums = np.zeros((BUCKETS, metrics))

    def add(self, number: int, values: tuple[float, ...]) -> None:
        """One observation of a user in bucket `number`."""
        self.counts[number] += 1
        self.sums[number] += values

    @property
    def n(self) -> int:
        """Observations."""
        return int(self.counts.sum())

    def estimates(self, seed: int) -> list[Estimate]:
        """The mean of each metric with its 95 % interval."""
        return estimates(self.counts, self.sums, seed)

    def saved(self) -> SavedSums:
        """Both arrays, for a checkpoint."""
        return SavedSums(self.counts.tobytes(), self.sums.tobytes())

    def restore(self, saved: SavedSums) -> None:
        """Take over what `saved` gave."""
        self.counts = np.frombuffer(saved.counts).copy()
        self.sums = np.frombuffer(saved.sums).reshape(self.sums.shape).copy()


def paired(baseline: Sums, candidate: Sums, seed: int) -> list[Estimate]:
    """The difference of means, candidate minus baseline, of each metric.

    Raises `ValueError` where the two have not seen the same events.
    """
    if not np.array_equal(baseline.counts, candidate.counts):
        raise ValueError("the two have not judged the same events")
    return estimates(baseline.counts, candidate.sums - baseline.sums, seed)


def unpaired(baseline: Sums, candidate: Sums, seed: int) -> list[Estimate]:
    """The difference of means, candidate minus baseline, of each metric, where the users of the two are not the same.

    The buckets of each are resampled on their own. `n` is the observations of both.
    """
    found = []
    sides = [_replicates(sums.counts, sums.sums, seed + side) for side, sums in enumerate((baseline, candidate))]
    for metric in range(baseline.sums.shape[1]):
        (mean, means), (other_mean, other_means) = ((side[0][metric], side[1][:, metric]) for side in sides)
        low, high = np.quantile(other_means - means, [0.025, 0.975])
        found.append(Estimate(float(other_mean - mean), float(low), float(high), baseline.n + candidate.n))
    return found


def estimates(counts: NDArray[np.float64], sums: NDArray[np.float64], seed: int) -> list[Estimate]:
    """Sums `[buckets, metrics]` over counts `[buckets]`: each metric's ratio of totals with its 95 % interval."""
    middle, replicates = _replicates(counts, sums, seed)
    low, high = np.quantile(replicates, [0.025, 0.975], axis=0)
    n = int(counts.sum())
    return [Estimate(float(m), float(lo), float(hi), n) for m, lo, hi in zip(middle, low, high, strict=True)]


def _replicates(
    counts: NDArray[np.float64], sums: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ratios of totals `[metrics]`, and those of `[REPLICATES, metrics]` resamples of the buckets."""
    used = counts > 0
    counts, sums = counts[used], sums[used]
    total = counts.sum()
    if not total:
        return np.zeros(sums.shape[1]), np.zeros((REPLICATES, sums.shape[1]))
    picks = resampled(len(counts), seed, REPLICATES)
    return sums.sum(axis=0) / total, (picks @ sums) / np.maximum(picks @ counts, 1e-12)[:, None]


@lru_cache(maxsize=4)
def resampled(groups: int, seed: int, replicates: int = GROUP_REPLICATES) -> NDArray[np.float64]:
    """How often each unit is drawn in each replicate, `[replicates, groups]`."""
    picks = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), replicates)
    return picks.astype(np.float64)


def recentred(value: float, replicates: NDArray[np.float64], n: int, highest: float = 1.0) -> Estimate:
    """An estimate within 0 and `highest` from its replicates, moved so that their mean is the value.

    A resampled crowd has fewer different users, so what is counted over all of
    them (items shown, evenness) comes out too small or too large in every
    replicate: the spread is right, the place is not.
    """
    low, high = np.quantile(replicates, [0.025, 0.975]) - replicates.mean() + value
    return Estimate(value, max(0.0, float(low)), min(highest, float(high)), n)


def verdict(estimate: Estimate, neutral: float = 0.0) -> str:
    """What an interval says about a difference, or about a share whose neutral value is given."""
    if estimate.low > neutral:
        return "better"
    return "worse" if estimate.high < neutral else UNDECIDED
