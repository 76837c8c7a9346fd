"""Exposure metrics of lists, against numbers worked by hand and against known tastes."""

import numpy as np
import pytest
from freshet.core.evaluation.exposure import SAMPLE, Exposure, gini, mean_distance, personalisation


def test_gini_of_known_distributions() -> None:
    """Gini is 0 for even exposure and 1 - 1/n for a single shown item, and counts items that are never shown."""
    assert gini(np.array([3.0, 3.0, 3.0]), 3) == pytest.approx(0)
    assert gini(np.array([9.0]), 4) == pytest.approx(1 - 1 / 4)
    assert gini(np.array([1.0, 3.0]), 4) == pytest.approx(gini(np.array([0.0, 3.0, 0.0, 1.0]), 4))


def test_distance_within_a_list() -> None:
    """The mean distance is 1 for orthogonal vectors and 0 for parallel vectors of any length."""
    assert mean_distance(np.eye(3, dtype=np.float32)) == pytest.approx(1)
    assert mean_distance(3 * np.eye(1, 3, dtype=np.float32).repeat(2, axis=0)) == pytest.approx(0)


def test_personalisation_of_known_lists() -> None:
    """Personalisation is 0 for equal lists, 1 for disjoint lists and 1/2 where half of the items is shared."""
    assert personalisation([["a", "b"], ["b", "a"]], 2, 0).mean == 0
    assert personalisation([["a", "b"], ["c", "d"]], 2, 0).mean == 1
    assert personalisation([["a", "b"], ["b", "c"], ["c", "a"]], 2, 0).mean == pytest.approx(1 / 2)


def test_the_sample_of_users_does_not_depend_on_who_comes_first() -> None:
    """The sample holds the same users, each with the latest list, in every order of arrival."""
    users = [f"user-{number}" for number in range(3 * SAMPLE)]
    samples = []
    for order in (users, users[::-1]):
        exposure = Exposure(2, 10)
        for step in range(2):
            for user in order:
                exposure.add(user, [f"item-{step}"], 0.0, None)
        samples.append(exposure._latest)
    assert samples[0] == samples[1]
    assert len(samples[0]) == SAMPLE
    assert set(map(tuple, samples[0].values())) == {("item-1",)}


def test_intervals_cover_true_coverage_and_evenness() -> None:
    """The intervals of coverage, Gini and personalisation hold the true value in at least 85 of a hundred draws."""
    rng = np.random.default_rng(5)
    items = np.array([f"item-{number}" for number in range(200)])
    popularity = np.log(1 / np.arange(1, 201))

    def crowd(trial: int) -> Exposure:
        exposure = Exposure(5, len(items))
        for number in range(120):
            order = np.argsort(-(popularity + rng.gumbel(size=len(items))))[:5]
            exposure.add(f"{trial}-{number}", items[order].tolist(), 0.0, None)
        return exposure

    found = [crowd(trial).estimates(seed=trial) for trial in range(60)]
    for metric in ("coverage", "gini", "personalisation"):
        truth = np.mean([estimates[metric].mean for estimates in found])
        held = np.mean([estimates[metric].low <= truth <= estimates[metric].high for estimates in found])
        assert held >= 0.85, metric
        assert np.mean([estimates[metric].high - estimates[metric].low for estimates in found]) < 0.25, metric
