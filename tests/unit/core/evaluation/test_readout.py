"""Experiments told apart from chance: assignment, readout, paired differences, interleaving, over many repetitions."""

from __future__ import annotations

import numpy as np
import pytest
from freshet.core.assignment import variant
from freshet.core.evaluation.buckets import BUCKETS, Sums, bucket, paired, unpaired, verdict
from freshet.core.evaluation.interleaving import Interleaver, interleave
from freshet.core.evaluation.readout import Readout, sample_ratio_mismatch
from freshet.core.exploration import explore, propensity

USERS = [f"user-{number}" for number in range(20_000)]
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}
REPETITIONS = 200
FALSE_ALARMS = range(2, 21)
"""Of 200 at 5 %: fewer or more come about once in 300 times."""


def sums(counts: np.ndarray, totals: np.ndarray) -> Sums:
    found = Sums(1)
    found.counts[:], found.sums[:, 0] = counts, totals
    return found


def test_shares_hold_and_assignments_stay() -> None:
    """Each variant has its share of the users within five standard deviations, and the same users every time."""
    given = [variant(user, "first", SHARES) for user in USERS]
    assert given == [variant(user, "first", dict(reversed(SHARES.items()))) for user in USERS]
    for name, share in SHARES.items():
        spread = (len(USERS) * share * (1 - share)) ** 0.5
        assert abs(given.count(name) - len(USERS) * share) < 5 * spread


def test_experiments_are_independent() -> None:
    """Whoever has a variant of one experiment has those of another as everybody has."""
    table = {(one, other): 0 for one in SHARES for other in SHARES}
    for user in USERS:
        table[variant(user, "first", SHARES), variant(user, "second", SHARES)] += 1
    expected = {(one, other): len(USERS) * SHARES[one] * SHARES[other] for one, other in table}
    chi_squared = sum((table[cell] - expected[cell]) ** 2 / expected[cell] for cell in table)
    assert chi_squared < 26.1  # eight degrees of freedom: more comes about once in 1,000 times


def test_a_variant_says_nothing_of_the_bucket() -> None:
    """Users of a variant are spread over the buckets that intervals resample."""
    counts = np.zeros(BUCKETS)
    for user in USERS:
        counts[bucket(user)] += variant(user, "first", SHARES) == "a"
    expected = counts.sum() / BUCKETS
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - (BUCKETS - 1)) < 5 * (2 * (BUCKETS - 1)) ** 0.5


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
    """Of 200 comparisons of equals about one in twenty has a verdict, as a 95 % interval promises."""
    same = repetitions(0.0)
    for way in (0, 1):
        assert sum(one[way] != "no difference shown" for one in same) in FALSE_ALARMS


def test_real_differences_are_found() -> None:
    """Nearly always where they are large, on the right side."""
    for effect, says in ((0.08, "better"), (-0.08, "worse")):
        found = repetitions(effect)
        for way in (0, 1):
            assert sum(one[way] == says for one in found) > 0.95 * REPETITIONS


def readout(lifts: dict[str, float], seed: int = 0) -> Readout:
    """Users of variants by hash, some busier than others, who click lists of their variant with a chance."""
    rng = np.random.default_rng(seed)
    found = Readout(["view", "click"])
    for user in USERS[:2000]:
        name = variant(user, f"{seed}", dict.fromkeys(lifts, 1 / len(lifts)))
        liking = rng.beta(2, 8) + lifts[name]
        for _ in range(rng.integers(1, 6)):
            found.add(user, name, [1.0, float(rng.random() < liking)])
    return found


def test_a_readout_adds_up() -> None:
    """Users, lists and acts of each variant, and the differences to the baseline."""
    found = Readout(["click"])
    for user, name, clicks in (("u1", "a", 1), ("u1", "a", 2), ("u2", "a", 0), ("u3", "b", 4), ("u4", "b", 0)):
        found.add(user, name, [float(clicks)])
    first, other = found.variants()
    assert (first.variant, first.users, first.lists) == ("a", 2, 3)
    assert first.metrics["click per list"].mean == pytest.approx(1.0)
    assert first.metrics["click per user"].mean == pytest.approx(1.5)
    assert (other.variant, other.users, other.lists) == ("b", 2, 2)
    differences = {one.metric: one for one in found.differences("a")}
    assert differences["click per list"].estimate.mean == pytest.approx(1.0)
    assert differences["click per user"].estimate.mean == pytest.approx(0.5)
    assert (differences["click per user"].baseline, differences["click per user"].candidate) == ("a", "b")


def test_a_readout_finds_what_is_there() -> None:
    """A real lift in clicks, and none in views; an experiment of equals shows nothing nearly always."""
    lifted = {one.metric: one.verdict for one in readout({"a": 0.0, "b": 0.06}).differences("a")}
    assert lifted["click per list"] == lifted["click per user"] == "better"
    assert lifted["view per list"] == "no difference shown"
    alarms = sum(
        one.verdict != "no difference shown"
        for seed in range(6)
        for one in readout({"a": 0.0, "b": 0.0}, seed).differences("a")
        if one.metric == "click per list"
    )
    assert alarms <= 2  # of 6 at 5 %: more come about once in 400 times


def test_users_of_two_variants_are_in_none() -> None:
    """They are told, and neither side counts them."""
    found = readout({"a": 0.0, "b": 0.0})
    users = sum(one.users for one in found.variants())
    found.add("user-0", "a", [1.0, 1.0])
    found.add("user-0", "b", [1.0, 1.0])
    assert found.crossed == {"user-0"}
    assert sum(one.users for one in found.variants()) == users - 1


def test_uneven_shares_are_seen() -> None:
    """A variant that lost one user in ten is named; chance alone is not."""
    shares = {"a": 0.5, "b": 0.5}
    assert sample_ratio_mismatch({"a": 1000, "b": 900}, shares) is None
    assert sample_ratio_mismatch({"a": 10_000, "b": 9_000}, shares) == "a"
    assert sample_ratio_mismatch({"a": 100, "b": 0}, shares) == "a"
    assert sample_ratio_mismatch({"all": 100}, {"all": 1.0}) is None


FIRST, OTHER = [f"x{n}" for n in range(8)], [f"y{n}" for n in range(8)]


def test_interleaving_is_fair_and_whole() -> None:
    """Each team brings in every second pair's items, each in its own order, and leads half of the time."""
    leads = 0
    for seed in range(2000):
        items, teams = interleave(FIRST, OTHER, 6, str(seed))
        assert len(set(items)) == 6
        assert [sum(teams[place : place + 2]) for place in (0, 2, 4)] == [1, 1, 1]
        for team, ranking in enumerate((FIRST, OTHER)):
            mine = [item for item, whose in zip(items, teams, strict=True) if whose == team]
            assert mine == ranking[: len(mine)]
        leads += teams[0]
    assert abs(leads - 1000) < 5 * 500**0.5


def preference(better: float, seed: int) -> str:
    """The verdict on 600 interleaved lists whose second team's items are clicked more by a factor."""
    rng = np.random.default_rng(seed)
    judge = Interleaver("first", "other", 6)
    for number in range(600):
        chances = np.array([0.1 / (place + 1) * (1.0, better)[team] for place in range(6) for team in (0, 1)])
        chosen = rng.choice(13, p=[*chances, 1 - chances.sum()])
        item = "nothing" if chosen == 12 else (FIRST, OTHER)[chosen % 2][chosen // 2]
        judge.judge(f"user-{number % 300}", FIRST, OTHER, item, f"{seed}-{number}")
    return judge.result().verdict


def test_interleaving_is_unbiased_and_sensitive() -> None:
    """Equals have a verdict about one time in twenty; a team that is half as good again is found nearly always."""
    equals = [preference(1.0, seed) for seed in range(60)]
    assert sum(one != "no difference shown" for one in equals) <= 8  # at 5 % more come about once in 200 times
    assert sum(preference(1.6, seed) == "better" for seed in range(20)) >= 18


@pytest.mark.parametrize(("pool", "size"), [(12, 4), (4, 4), (3, 5)])
def test_logged_propensities_are_how_often_it_happens(pool: int, size: int) -> None:
    """Every slot holds every item as often as `propensity` says, and each list logs that very number."""
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
