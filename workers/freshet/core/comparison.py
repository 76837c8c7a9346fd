"""A candidate beside the live version: how their lists differ for the same users, and when that is too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

import msgspec
import numpy as np

from freshet.core.recommendation import Item

WINDOW = 2000
"""The newest users that count: ten times the default `canary_lists`, where 1 % forgives one failed sample, not two."""
TIMES = 64
"""The newest encoder times that medians are taken over."""


class Comparison(msgspec.Struct, frozen=True):
    """What a worker measured since the candidate's stage began.

    `lists` and `failed` are totals. The others are figures of the newest users, so that an old canary is judged as
    soon as a new one.

    Attributes:
        lists: Lists that were made with both versions.
        failed: Users whom the candidate alone had no answer for.
        error_rate: Share of the users whom the candidate failed, 0 to 1.
        overlap: Mean average overlap of the two versions' lists, 0 to 1.
        score_gap: Mean difference of the scores in the same slot.
        live_ms: Median time that the live version's encoder takes for a batch, in ms.
        candidate_ms: Median time that the candidate's encoder takes for the same batches, in ms.
    """

    lists: int = 0
    failed: int = 0
    error_rate: float = 0.0
    overlap: float = 0.0
    score_gap: float = 0.0
    live_ms: float = 0.0
    candidate_ms: float = 0.0


class Thresholds(msgspec.Struct, frozen=True):
    """Within what a canary must stay once `lists` users were compared."""

    lists: int
    error_rate: float
    latency_ratio: float
    overlap: float


class ComparisonWindow:
    """Takes comparisons in."""

    def __init__(self, at_least: int) -> None:
        """`at_least` users are to count, where that is more than `WINDOW`: as many as the bands ask for."""
        self._lists = 0
        self._failed = 0
        self._newest = np.zeros((max(WINDOW, at_least), 3))
        """A ring of users: whether the candidate failed, overlap, score gap."""
        self._times: tuple[deque[float], deque[float]] = (deque(maxlen=TIMES), deque(maxlen=TIMES))

    def add(self, live: Sequence[Item], candidate: Sequence[Item]) -> None:
        """Take in one user's two lists."""
        overlap = average_overlap([item.item_id for item in live], [item.item_id for item in candidate])
        gaps = [abs(ours.score - theirs.score) for ours, theirs in zip(live, candidate, strict=False)]
        self._note(0.0, overlap, sum(gaps) / len(gaps) if gaps else 0.0)
        self._lists += 1

    def add_times(self, live: float, candidate: float) -> None:
        """Take in how long the encoder took for one batch, in ms."""
        for times, took in zip(self._times, (live, candidate), strict=True):
            times.append(took)

    def add_failed(self, users: int) -> None:
        """Take in users whom the candidate failed."""
        for _ in range(users):
            self._note(1.0, 0.0, 0.0)
            self._failed += 1

    def _note(self, *outcome: float) -> None:
        self._newest[(self._lists + self._failed) % len(self._newest)] = outcome

    def so_far(self) -> Comparison:
        """What was measured."""
        tried = min(self._lists + self._failed, len(self._newest))
        failed, overlap, gap = self._newest.sum(axis=0).tolist()
        compared = max(tried - failed, 1)
        live, candidate = (median(times) if times else 0.0 for times in self._times)
        return Comparison(
            self._lists, self._failed, failed / max(tried, 1), overlap / compared, gap / compared, live, candidate
        )


def average_overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """The mean over depths of the share that two rankings have in common: 1 for equal ones, 0 for disjoint ones.

    The top-weighted similarity of Fagin, Kumar and Sivakumar, "Comparing top k lists", SODA 2003.
    """
    depths = max(len(first), len(second))
    seen: set[str] = set()
    shared, total = 0, 0.0
    for depth in range(depths):
        for item in {*first[depth : depth + 1], *second[depth : depth + 1]}:
            shared += item in seen or first[depth : depth + 1] == second[depth : depth + 1]
            seen.add(item)
        total += shared / (depth + 1)
    return total / depths if depths else 1.0


def out_of_band(comparison: Comparison, bands: Thresholds) -> str:
    """Why a canary must go, in a sentence; empty while it may stay."""
    if comparison.lists + comparison.failed < bands.lists:
        return ""
    if comparison.error_rate > bands.error_rate:
        return f"{comparison.error_rate:.1%} of its inferences failed, more than {bands.error_rate:.1%}"
    if comparison.error_rate < 1 and comparison.overlap < bands.overlap:
        return f"its lists overlap by {comparison.overlap:.3f} with the live version's, less than {bands.overlap:g}"
    if comparison.live_ms and comparison.candidate_ms > bands.latency_ratio * comparison.live_ms:
        ratio = comparison.candidate_ms / comparison.live_ms
        return f"it takes {ratio:.1f} times as long as the live version, more than {bands.latency_ratio:g}"
    return ""
