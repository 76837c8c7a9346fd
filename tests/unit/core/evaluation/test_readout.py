"""The readout of an experiment, against numbers worked by hand and over many repetitions."""

from __future__ import annotations

import numpy as np
import pytest
from freshet.core.assignment import variant
from freshet.core.evaluation.readout import Readout, sample_ratio_mismatch


def readout(lifts: dict[str, float], seed: int = 0) -> Readout:
    """Users of variants by hash, some busier than others, who click lists of their variant with a chance."""
    rng = np.random.default_rng(seed)
    found = Readout(["view", "click"])
    for user in (f"user-{number}" for number in range(2000)):
        name = variant(user, f"{seed}", dict.fromkeys(lifts, 1 / len(lifts)))
        liking = rng.beta(2, 8) + lifts[name]
        for _ in range(rng.integers(1, 6)):
            found.add(user, name, [1.0, float(rng.random() < liking)])
    return found


def test_a_readout_adds_up() -> None:
    """The readout gives users, lists and metrics of each variant, and the differences to the baseline."""
    found = Readout(["click"])
    for user, name, clicks in (("u1", "a", 1), ("u1", "a", 2), ("u2", "a", 0), ("u3", "b", 4), ("u4", "b", 0)):
        found.add(user, name, [float(clicks)])
    first, other = found.variants()
    assert (first.variant, first.users, first.lists) == ("a", 2, 3)
    assert first.metrics["click per list"].mean == pytest.approx(1.0)
    assert first.metrics["click per user"].mean == pytest.approx(1.5)
    assert (other.variant, other.users, other.lists) == ("b", 2, 2)
    differences = {difference.metric: difference for difference in found.differences("a")}
    assert differences["click per list"].estimate.mean == pytest.approx(1.0)
    assert differences["click per user"].estimate.mean == pytest.approx(0.5)
    assert (differences["click per user"].baseline, differences["click per user"].candidate) == ("a", "b")


def test_a_readout_finds_what_is_there() -> None:
    """The readout finds a real lift in clicks and none in views, and rarely finds a lift between equals."""
    lifted = {difference.metric: difference.verdict for difference in readout({"a": 0.0, "b": 0.06}).differences("a")}
    assert lifted["click per list"] == lifted["click per user"] == "better"
    assert lifted["view per list"] == "no difference shown"
    alarms = sum(
        difference.verdict != "no difference shown"
        for seed in range(6)
        for difference in readout({"a": 0.0, "b": 0.0}, seed).differences("a")
        if difference.metric == "click per list"
    )
    assert alarms <= 2  # of 6 at 5 %: more come about once in 400 times


def test_users_of_two_variants_are_in_none() -> None:
    """A user who had lists of two variants is reported and counts in neither."""
    found = readout({"a": 0.0, "b": 0.0})
    users = sum(outcome.users for outcome in found.variants())
    found.add("user-0", "a", [1.0, 1.0])
    found.add("user-0", "b", [1.0, 1.0])
    assert found.crossed == {"user-0"}
    assert sum(outcome.users for outcome in found.variants()) == users - 1


def test_uneven_shares_are_seen() -> None:
    """A variant that lost a tenth of its users is named, and a chance deviation is not."""
    shares = {"a": 0.5, "b": 0.5}
    assert sample_ratio_mismatch({"a": 1000, "b": 900}, shares) is None
    assert sample_ratio_mismatch({"a": 10_000, "b": 9_000}, shares) == "a"
    assert sample_ratio_mismatch({"a": 100, "b": 0}, shares) == "a"
    assert sample_ratio_mismatch({"all": 100}, {"all": 1.0}) is None
