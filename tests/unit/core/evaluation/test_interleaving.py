"""Interleaved lists: what each team brings in, and the verdicts over many repetitions."""

from __future__ import annotations

import numpy as np
from freshet.core.evaluation.interleaving import Interleaver, interleave

FIRST, OTHER = [f"x{n}" for n in range(8)], [f"y{n}" for n in range(8)]


def test_interleaving_is_fair_and_whole() -> None:
    """Each team contributes an item to every pair of slots, in its own order, and leads half of the lists."""
    leads = 0
    for seed in range(2000):
        items, teams = interleave(FIRST, OTHER, 6, str(seed))
        assert len(set(items)) == 6
        assert [sum(teams[slot : slot + 2]) for slot in (0, 2, 4)] == [1, 1, 1]
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
        chances = np.array([0.1 / (slot + 1) * (1.0, better)[team] for slot in range(6) for team in (0, 1)])
        chosen = rng.choice(13, p=[*chances, 1 - chances.sum()])
        item = "nothing" if chosen == 12 else (FIRST, OTHER)[chosen % 2][chosen // 2]
        judge.judge(f"user-{number % 300}", FIRST, OTHER, item, f"{seed}-{number}")
    return judge.result().verdict


def test_interleaving_is_unbiased_and_sensitive() -> None:
    """Equal teams rarely have a verdict, and a team with 1.6 times the clicks nearly always wins."""
    equals = [preference(1.0, seed) for seed in range(60)]
    assert sum(verdict != "no difference shown" for verdict in equals) <= 8  # at 5 % more come about once in 200 times
    assert sum(preference(1.6, seed) == "better" for seed in range(20)) >= 18
