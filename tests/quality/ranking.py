"""Full ranking over all items, seen items filtered: the one way in which the harness judges.

Nothing is sampled: sampled metrics rank models wrongly (Krichene & Rendle 2020,
doi:10.1145/3394486.3403226). Items of no training event stay in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from freshet_training.evaluate import gains, hits, rank_of_target, slices, user_bootstrap
from numpy.typing import NDArray

BATCH = 512

Floats = NDArray[np.float32]
Case = tuple[list[int], int]
"""A user's history, oldest first, and the item that came next."""
Scorer = Callable[[Sequence[list[int]]], Floats]
"""Histories of B users to the scores `[B, N]` of all items."""


@dataclass(frozen=True)
class LeaveOneOut:
    """The last item of a user tests, the one before validates, the rest trains."""

    train: list[list[int]]
    validation: list[Case]
    test: list[Case]
    texts: list[str]

    @property
    def items(self) -> int:
        """The size of the catalogue."""
        return len(self.texts)

    def counts(self) -> NDArray[np.int64]:
        """Training events by item."""
        return np.bincount(np.concatenate([np.array(items, np.int64) for items in self.train]), minlength=self.items)


def leave_one_out(users: Sequence[list[int]], texts: list[str]) -> LeaveOneOut:
    """Split by the usual protocol; the validation item belongs to the history of the test."""
    return LeaveOneOut(
        [items[:-2] for items in users],
        [(items[:-2], items[-2]) for items in users],
        [(items[:-1], items[-1]) for items in users],
        texts,
    )


@dataclass(frozen=True)
class Ranks:
    """Places `[cases]` of the items that came next, 0 first, with what the slices need."""

    rank: NDArray[np.int64]
    target: NDArray[np.int64]
    history: NDArray[np.int64]

    @property
    def hit(self) -> NDArray[np.float64]:
        """1 where the item came among the first `CUTOFF`."""
        return hits(self.rank)

    @property
    def gain(self) -> NDArray[np.float64]:
        """NDCG of each case; with one relevant item the ideal is 1."""
        return gains(self.rank)

    def figures(self, counts: NDArray[np.int64]) -> dict[str, float]:
        """HR@10 and NDCG@10, and HR@10 of each slice; `counts` are the items' training events."""
        hit, parts = self.hit, slices(counts[self.target], self.history)
        return {
            "hr@10": float(hit.mean()),
            "ndcg@10": float(self.gain.mean()),
            **{name: float(hit[chosen].mean()) for name, chosen in parts.items() if chosen.any()},
        }


def judge(score: Scorer, cases: Sequence[Case]) -> Ranks:
    """Rank the next item of each case among all items that its user has not touched."""
    order = sorted(range(len(cases)), key=lambda case: len(cases[case][0]))
    ranks = np.empty(len(cases), np.int64)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        histories = [cases[case][0] for case in chosen]
        scores = score(histories)
        ranks[chosen] = rank_of_target(scores, np.array([cases[case][1] for case in chosen]), seen(histories, scores))
    return Ranks(
        ranks,
        np.array([target for _, target in cases], np.int64),
        np.array([len(history) for history, _ in cases], np.int64),
    )


def pooled(parts: Sequence[Ranks]) -> dict[str, float]:
    """HR@10 and NDCG@10 over all cases of some parts, each case another user's, with their 95 % intervals."""
    hit, gain = np.concatenate([part.hit for part in parts]), np.concatenate([part.gain for part in parts])
    return with_intervals(np.arange(len(hit)).astype(np.str_), hit, gain)


def with_intervals(users: NDArray[np.str_], hit: NDArray[np.float64], gain: NDArray[np.float64]) -> dict[str, float]:
    """HR@10 and NDCG@10 of cases `[cases]`, with 95 % intervals over users."""
    figures = {}
    for name, values in (("hr@10", hit), ("ndcg@10", gain)):
        low, high = user_bootstrap(users, values)
        figures |= {name: float(values.mean()), f"{name} low": low, f"{name} high": high}
    return figures


def seen(histories: Sequence[list[int]], scores: Floats) -> NDArray[np.bool_]:
    """`[B, N]`: what the users have touched."""
    touched = np.zeros(scores.shape, np.bool_)
    for row, history in enumerate(histories):
        touched[row, history] = True
    return touched
