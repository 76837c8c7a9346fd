"""Off-policy estimators: by hand, and against a shop whose truth is known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from freshet.core.evaluation.off_policy import (
    FOLDS,
    TRUSTED,
    LoggedLists,
    Slots,
    against_served,
    effective_sample_size,
    off_policy,
    served,
    weights_of,
)
from freshet.core.evaluation.results import Estimate

from tests.simulation.shop_policies import SIZE, Moments, Policy, shop

LIVE = Policy("live", blur=1.0)
SHARPER = Policy("sharper", blur=0.2)
DRAWS = 24
LISTS = 1500


@cache
def moments_of(target: Policy) -> Moments:
    return Moments(shop(1), LIVE, target, LISTS)


def gathered(*lists: tuple[str, list[str], list[float], list[float], list[str]], size: int = 2) -> Slots:
    logged_lists = LoggedLists(size)
    for logged in lists:
        logged_lists.add(*logged)
    return logged_lists.slots()


def test_estimates_worked_by_hand() -> None:
    """Weights, sums over slots and means over three lists equal the values worked by hand."""
    slots = gathered(
        ("ann", ["a", "b"], [0.5, 0.8], [1.0, 0.0], ["a", "c"]),
        ("bob", ["c", "a"], [0.25, 1.0], [1.0, 1.0], ["c", "a"]),
        ("cyd", ["b"], [0.5], [1.0], ["a", "b"]),
    )
    assert weights_of(slots).tolist() == [[2.0, 0.0], [4.0, 1.0], [0.0, 0.0]]
    ips, snips, _ = off_policy("target", slots)
    assert (ips.policy, ips.estimator, ips.value.n) == ("target", "ips", 3)
    assert ips.value.mean == pytest.approx((2 + (4 + 1) + 0) / 3)
    assert snips.value.mean == pytest.approx(7 / 3 / (7 / 6))
    assert ips.mean_weight is not None
    assert ips.mean_weight.mean == pytest.approx(7 / 6)
    assert ips.effective_sample_size == pytest.approx(7**2 / (4 + 16 + 1) / 2)
    assert served(slots).value.mean == pytest.approx(4 / 3)


def test_the_doubly_robust_estimate_by_its_definition() -> None:
    """The doubly robust estimate adds weighted errors on the logged list to the value of the target list."""
    rng = np.random.default_rng(1)
    lists = []
    for number in range(300):
        items, target = ([f"i{n}" for n in rng.permutation(6)[:3]] for _ in range(2))
        rewards = [float(rng.random() < 0.3) for _ in range(3)]
        lists.append((f"user-{number}", items, rng.uniform(0.2, 1, 3).tolist(), rewards, target))
    slots = gathered(*lists, size=3)
    folds = slots.buckets % FOLDS

    def model(fold: int, item: str, slot: int) -> float:
        others = [logged for logged, where in zip(lists, folds, strict=True) if where != fold]
        means = [sum(logged[3][k] for logged in others) / len(others) for k in range(3)]
        held = [(logged[3][k], means[k]) for logged in others for k in range(3) if logged[1][k] == item]
        return means[slot] * (sum(r for r, _ in held) + 1) / (sum(m for _, m in held) + 1)

    total = 0.0
    for (_, items, propensities, rewards, target), fold in zip(lists, folds, strict=True):
        for k in range(3):
            weight = (items[k] == target[k]) / propensities[k]
            total += model(fold, target[k], k) + weight * (rewards[k] - model(fold, items[k], k))
    assert off_policy("t", slots)[2].value.mean == pytest.approx(total / len(lists))


def test_on_policy_every_estimator_is_the_mean() -> None:
    """Where the target shows the logged items with certainty, every estimate is the mean reward."""
    shown = Moments(shop(1), LIVE, LIVE, 300).draw(0, epsilon=0.0)
    mean = served(shown).value
    for estimate in off_policy("live", shown):
        assert estimate.value.mean == pytest.approx(mean.mean)
        assert estimate.effective_sample_size == pytest.approx(300)
    difference = against_served("live", shown, "click").estimate
    assert difference.mean == pytest.approx(0)
    assert difference.high - difference.low == pytest.approx(0)


def test_effective_sample_size() -> None:
    """The effective sample size is the number of lists for equal weights, and smaller for unequal ones."""
    assert effective_sample_size(np.ones((7, 3))) == pytest.approx(7)
    assert effective_sample_size(np.array([[100.0], [1.0], [1.0]])) == pytest.approx(1.04, abs=0.01)
    assert effective_sample_size(np.zeros((4, 2))) == 0


@pytest.fixture(scope="module")
def estimates() -> dict[str, tuple[float, list[Estimate]]]:
    """For each of two policies its true value, and doubly robust and inverse propensity estimates of many draws."""
    found = {}
    for target in (LIVE, SHARPER):
        moments = moments_of(target)
        drawn = [off_policy(target.name, moments.draw(draw, epsilon=1.0)) for draw in range(DRAWS)]
        for index, estimator in ((0, "ips"), (1, "snips"), (2, "dr")):
            found[f"{target.name} {estimator}"] = (
                moments.truth,
                [estimates_of_draw[index].value for estimates_of_draw in drawn],
            )
    return found


@pytest.mark.parametrize("policy", ["live", "sharper"])
@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
def test_estimates_are_unbiased_and_intervals_cover(
    estimates: dict[str, tuple[float, list[Estimate]]], policy: str, estimator: str
) -> None:
    """The mean of many estimates is the truth within its error, and 95 % intervals hold the truth."""
    true, drawn = estimates[f"{policy} {estimator}"]
    means = np.array([estimate.mean for estimate in drawn])
    assert abs(means.mean() - true) < 4 * means.std(ddof=1) / math.sqrt(DRAWS)
    covered = sum(estimate.low <= true <= estimate.high for estimate in drawn)
    assert covered >= 20  # of 24: at 95 % fewer come about once in 150 times


def test_planted_errors_are_caught(estimates: dict[str, tuple[float, list[Estimate]]]) -> None:
    """Propensities that are wrong by a third move every interval off the truth and the mean weight off 1."""
    moments = moments_of(SHARPER)
    missed = 0
    for draw in range(4):
        right = moments.draw(draw, epsilon=1.0)
        wrong = Slots(right.buckets, right.items, right.targets, right.propensities * 2 / 3, right.rewards, right.known)
        ips, *_ = off_policy("sharper", wrong)
        assert ips.mean_weight is not None
        assert ips.mean_weight.low > 1
        missed += not ips.value.low <= moments.truth <= ips.value.high
    assert missed >= 3


def test_no_support_is_seen_in_the_mean_weight() -> None:
    """A policy whose items are not in the logged pool has a mean weight below 1."""
    moments = Moments(shop(1), LIVE, SHARPER, LISTS, within_pool=False)
    _, _, robust = off_policy("sharper", moments.draw(0, epsilon=1.0))
    assert robust.mean_weight is not None
    assert robust.mean_weight.high < 1


def test_a_better_policy_is_found_and_few_lists_say_nothing() -> None:
    """Many lists give a better policy its verdict, and few effective lists give none."""
    weighed = against_served("sharper", Moments(shop(1), LIVE, SHARPER, 5000).draw(0, epsilon=1.0), "click")
    assert weighed.verdict == "better"
    few = Moments(shop(1), LIVE, SHARPER, 400).draw(0, epsilon=1.0)
    assert off_policy("sharper", few)[0].effective_sample_size < TRUSTED
    assert against_served("sharper", few, "click").verdict == "no difference shown"


def test_bad_lists_are_refused() -> None:
    """A list with a propensity outside (0, 1], without propensities or with too many slots is refused."""
    for propensities in ([0.0, 1.0], [1.0, 1.5], [1.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="propensity"):
            LoggedLists(SIZE).add("ann", ["a", "b"], propensities, [0.0, 0.0], ["a", "b"])
    with pytest.raises(ValueError, match="at most 1 slots"):
        LoggedLists(1).add("ann", ["a", "b"], [1.0, 1.0], [0.0, 0.0], ["a", "b"])
