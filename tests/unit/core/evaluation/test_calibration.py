"""Calibration: predicted chances against true chances that are known."""

import math
import random

import pytest
from freshet.core.evaluation.buckets import BUCKETS
from freshet.core.evaluation.calibration import Calibration


def learned(delay_ms: int, lists: int = 4000) -> Calibration:
    """Scores whose true chance is known: slot chance 0.3 at score 1, 0.03 at score -1."""
    rng = random.Random(2)
    calibration = Calibration(delay_ms)
    for number in range(lists):
        score = rng.choice((-1.0, 1.0))
        hit = 0 if rng.random() < (0.3 if score > 0 else 0.03) else -1
        calibration.observe(number % BUCKETS, number * 1000, [score], hit)
    return calibration


def test_calibration_finds_the_true_chances() -> None:
    """Predicted and observed chances agree with the truth in every bin in use, and the error is near 0."""
    bins, error = learned(0).bins(0)
    used = [chance_bin for chance_bin in bins if chance_bin.observed.n > 500]
    assert sum(chance_bin.observed.n for chance_bin in bins) == 4000
    assert {abs(chance_bin.observed.mean - 0.3) < 0.05 for chance_bin in used} == {True, False}
    for chance_bin in used:
        assert chance_bin.observed.low < chance_bin.observed.mean < chance_bin.observed.high
        assert chance_bin.predicted == pytest.approx(chance_bin.observed.mean, abs=0.05)
        assert min(abs(chance_bin.observed.mean - 0.3), abs(chance_bin.observed.mean - 0.03)) < 0.05
    assert error is not None
    assert 0 <= error.low <= error.mean <= error.high
    assert error.mean < 0.03


def test_calibration_learns_from_old_labels_only() -> None:
    """With a delay longer than the log, every prediction is the initial one and far from the truth."""
    [only], error = learned(10**9).bins(0)
    assert only.predicted == pytest.approx(1 / (1 + math.exp(4)))
    assert error is not None
    assert error.mean > 0.05
