"""Off-policy estimates against the target policy itself, let loose in the simulated shop."""

from __future__ import annotations

import math

import numpy as np
from freshet.core.evaluation.off_policy import off_policy, served

from tests.simulation.shop_policies import Moments, Policy, shop

DRAWS = 12
LISTS = 800


def test_what_the_target_earned_when_it_was_run_is_in_the_intervals() -> None:
    """Of 12 logs by chance at least 10 give a 95 % interval, of every estimator, that holds what the target earned.

    That is measured: its lists are shown to the same shoppers at the same moments, who click what they like. It is more
    than the logging policy earned, and what the closed form says.
    """
    moments = Moments(shop(1), Policy("live", blur=1.0), Policy("sharper", blur=0.2), LISTS)
    draws = [moments.live(draw, epsilon=1.0) for draw in range(DRAWS)]
    earned = np.array([clicks for _, clicks in draws])
    truth = float(earned.mean())
    error = float(earned.std(ddof=1)) / math.sqrt(DRAWS)
    assert abs(truth - moments.truth) < 3 * error
    assert np.mean([served(slots).value.mean for slots, _ in draws]) < truth - 10 * error
    for estimates in zip(*(off_policy("sharper", slots) for slots, _ in draws), strict=True):
        covered = sum(estimate.value.low <= truth <= estimate.value.high for estimate in estimates)
        assert covered >= 10, (estimates[0].estimator, covered)
