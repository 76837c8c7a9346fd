"""Off-policy evaluation: what lists of another policy would have earned, from lists that were shown at random.

A list earns the sum of what its slots earn, and a slot's reward depends on its
item and its place alone (the item-position model of Li et al., KDD 2018), so the
logged marginal chance of an item in its slot is all that is needed. For list i
and slot k, with w the target policy's chance of the logged item over the logged
one, r the reward, and q a model of it:

- `ips` is the mean of Σ w r: unbiased, and wide where the policies differ;
- `snips` is Σ w r over the mean weight of a slot (Swaminathan & Joachims, NIPS
  2015): a little biased, mostly less wide;
- `dr` is the mean of Σ q(target's item) + w (r - q(logged item)) (doubly robust;
  Dudík et al., ICML 2011): unbiased as `ips` is, whatever the model, and less
  wide the better it is. The model is fitted on the lists of other users.

Intervals are bootstrapped over users. The effective sample size is Kish's, in
lists: (Σ w)² / Σ w² over all slots, divided by the slots of a list. The mean weight is 1 in expectation; where
its interval lies below, the lists that were shown could not have held all that
the target's hold (no support), and where it lies above, the propensities are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshet.core.evaluation.buckets import BUCKETS, UNDECIDED, Sums, bucket, estimates, paired, verdict
from freshet.core.evaluation.results import Difference, Estimate, OffPolicyEstimate

FOLDS = 4
"""The reward model for a user is fitted on the lists of users in other folds."""
SHRINKAGE = 1.0
"""Clicks' worth of the average item that every item's record is mixed with."""
SERVED = "as served"
TRUSTED = 100
"""With an effective sample of fewer lists no interval is to be trusted, and no verdict is given."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Lists that were shown, as arrays `[lists, slots]`, with a target policy's lists of the same moments.

    `items` and `targets` are numbers below `known`, or -1 in an empty slot;
    `buckets` `[lists]` are the users'.
    """

    buckets: NDArray[np.int64]
    items: NDArray[np.int64]
    targets: NDArray[np.int64]
    propensities: NDArray[np.float64]
    rewards: NDArray[np.float64]
    known: int


class LoggedLists:
    """Gathers lists for `Slots`. Memory grows with the lists."""

    def __init__(self, size: int) -> None:
        """`size` is the most slots that a list has; shorter lists have empty ones."""
        self._size = size
        self._numbers: dict[str, int] = {}
        self._buckets: list[int] = []
        self._items: list[list[int]] = []
        self._targets: list[list[int]] = []
        self._propensities: list[list[float]] = []
        self._rewards: list[list[float]] = []

    def add(
        self,
        user_id: str,
        items: Sequence[str],
        propensities: Sequence[float],
        rewards: Sequence[float],
        target: Sequence[str],
    ) -> None:
        """One list that was shown, slot by slot, with the list that the target policy would have shown.

        Raises `ValueError` for a propensity that is no chance above 0, and for parts that do not fit.
        """
        if not len(items) == len(propensities) == len(rewards) <= self._size:
            raise ValueError(f"a list has an item, a propensity and a reward in each of at most {self._size} slots")
        if not all(0 < propensity <= 1 for propensity in propensities):
            raise ValueError(f"a propensity is more than 0 and at most 1: {propensities}")
        empty = self._size - len(items)
        target = target[: self._size]
        self._buckets.append(bucket(user_id))
        self._items.append([*map(self._number, items), *[-1] * empty])
        self._targets.append([*map(self._number, target), *[-1] * (self._size - len(target))])
        self._propensities.append([*propensities, *[1.0] * empty])
        self._rewards.append([*rewards, *[0.0] * empty])

    def _number(self, item: str) -> int:
        return self._numbers.setdefault(item, len(self._numbers))

    def slots(self) -> Slots:
        """All that was gathered."""
        shape = (len(self._buckets), self._size)
        return Slots(
            np.array(self._buckets, np.int64),
            np.array(self._items, np.int64).reshape(shape),
            np.array(self._targets, np.int64).reshape(shape),
            np.array(self._propensities).reshape(shape),
            np.array(self._rewards).reshape(shape),
            len(self._numbers),
        )


def served(slots: Slots) -> OffPolicyEstimate:
    """What the lists that were shown earned: the mean, for no weights are needed."""
    value = _sums(slots.buckets, slots.rewards.sum(axis=1)).estimates(0)[0]
    return OffPolicyEstimate(SERVED, "mean", value, float(len(slots.buckets)))


def off_policy(policy: str, slots: Slots) -> list[OffPolicyEstimate]:
    """What the target policy's lists would have earned, by every estimator."""
    weights = weights_of(slots)
    weighted = weights * slots.rewards
    size = effective_sample_size(weights)
    values = {
        "ips": _sums(slots.buckets, weighted.sum(axis=1)).estimates(0)[0],
        "snips": _self_normalised(slots.buckets, weighted, weights),
        "dr": _robust(slots).estimates(0)[0],
    }
    mean_weight = _sums(slots.buckets, weights.mean(axis=1)).estimates(0)[0]
    return [OffPolicyEstimate(policy, name, value, size, mean_weight) for name, value in values.items()]


def against_served(policy: str, slots: Slots, metric: str) -> Difference:
    """The target policy against the lists that were shown: doubly robust, paired list by list."""
    [estimate] = paired(_sums(slots.buckets, slots.rewards.sum(axis=1)), _robust(slots), seed=0)
    trusted = effective_sample_size(weights_of(slots)) >= TRUSTED
    return Difference(SERVED, policy, metric, estimate, verdict(estimate) if trusted else UNDECIDED)


def weights_of(slots: Slots) -> NDArray[np.float64]:
    """`[lists, slots]`; a slot that both leave empty agrees, and earns nothing."""
    weights: NDArray[np.float64] = (slots.items == slots.targets) / slots.propensities
    return weights


def _robust(slots: Slots) -> Sums:
    model = RewardModel(slots)
    corrections = weights_of(slots) * (slots.rewards - model.predict(slots.items))
    return _sums(slots.buckets, (model.predict(slots.targets) + corrections).sum(axis=1))


class RewardModel:
    """Slot times item: a slot's mean reward, and how an item fares against the mean of the slots it was in."""

    def __init__(self, slots: Slots) -> None:
        self._folds = slots.buckets % FOLDS
        self._slots = np.zeros((FOLDS, slots.items.shape[1]))
        self._appeal = np.ones((FOLDS, slots.known + 1))  # the last is that of an empty slot
        for fold in range(FOLDS):
            items, rewards = (part[self._folds != fold] for part in (slots.items, slots.rewards))
            there = items >= 0
            self._slots[fold] = rewards.sum(axis=0) / np.maximum(there.sum(axis=0), 1)
            expected = np.broadcast_to(self._slots[fold], there.shape)[there]
            earned = np.bincount(items[there], rewards[there], slots.known + 1)
            due = np.bincount(items[there], expected, slots.known + 1)
            self._appeal[fold] = (earned + SHRINKAGE) / (due + SHRINKAGE)

    def predict(self, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """Expected rewards `[lists, slots]` of these items in their slots."""
        predicted: NDArray[np.float64] = self._slots[self._folds] * self._appeal[self._folds[:, None], items]
        predicted[items < 0] = 0.0
        return predicted


def effective_sample_size(weights: NDArray[np.float64]) -> float:
    """How many lists, all with weight 1, would say as much as these with weights `[lists, slots]`."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares / weights.shape[1] if squares else 0.0


def _sums(buckets: NDArray[np.int64], values: NDArray[np.float64]) -> Sums:
    sums = Sums(1)
    np.add.at(sums.counts, buckets, 1)
    np.add.at(sums.sums[:, 0], buckets, values)
    return sums


def _self_normalised(
    buckets: NDArray[np.int64], weighted: NDArray[np.float64], weights: NDArray[np.float64]
) -> Estimate:
    """Σ w r over the mean weight of a slot, with its interval."""
    counts, sums = np.zeros(BUCKETS), np.zeros((BUCKETS, 1))
    np.add.at(counts, buckets, weights.mean(axis=1))
    np.add.at(sums[:, 0], buckets, weighted.sum(axis=1))
    [ratio] = estimates(counts, sums, 0)
    return Estimate(ratio.mean, ratio.low, ratio.high, len(buckets))
