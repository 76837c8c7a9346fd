"""Calibration of scores: does a slot that is given one chance in a hundred come true once in a hundred?

A score is a logit of nothing in particular. An online logistic map (Platt 1999,
fitted by stochastic gradient) from score and slot to the chance that the slot is
what the user does next is learned as the stream unfolds, from labels that are
old enough; each prediction is made before its label is learned from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.evaluation.buckets import GROUPS, recentred, resampled
from freshet.core.evaluation.results import CalibrationBin, Estimate

RATE = 0.02
EDGES = np.array([0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
"""Bins of predicted chances, log-spaced: most slots have a chance around one in a hundred."""


class SavedCalibration(msgspec.Struct, frozen=True):
    """A `Calibration` in a checkpoint; `scale` is mean, square and lists seen, `waiting` time, features and label."""

    weights: list[float]
    scale: tuple[float, float, int]
    waiting: list[tuple[int, bytes, int]]
    sums: bytes


class Calibration:
    """Predicts, then learns, slot by slot."""

    def __init__(self, delay_ms: int) -> None:
        self._delay = delay_ms
        self._weights = np.array([-4.0, 0.0, 0.0])  # bias, score, log of the slot
        self._mean, self._square, self._seen = 0.0, 1.0, 0
        self._waiting: deque[tuple[int, NDArray[np.float64], int]] = deque()
        self._sums = np.zeros((GROUPS, len(EDGES) - 1, 3))  # predictions, hits, slots

    def observe(self, number: int, ts: int, scores: Sequence[float], hit: int) -> None:
        """One list of a user in bucket `place` with its label: the slot that came true, or -1; `ts` in ms."""
        if not scores:
            return
        while self._waiting and self._waiting[0][0] + self._delay < ts:
            _, features, label = self._waiting.popleft()
            self._learn(features, label)
        values = np.asarray(scores, np.float64)
        self._seen += 1
        step = 1 / min(self._seen, 1000)
        self._mean += step * (float(values.mean()) - self._mean)
        self._square += step * (float(((values - self._mean) ** 2).mean()) - self._square)
        scaled = (values - self._mean) / max(self._square, 1e-9) ** 0.5
        features = np.stack([np.ones(len(values)), scaled, np.log1p(np.arange(len(values)))], axis=1)
        chances = _logistic(features @ self._weights)
        sums = self._sums[number % GROUPS]
        bins = np.minimum(np.searchsorted(EDGES, chances, side="right") - 1, len(sums) - 1)
        np.add.at(sums[:, 0], bins, chances)
        np.add.at(sums[:, 2], bins, 1)
        if hit >= 0:
            sums[bins[hit], 1] += 1
        self._waiting.append((ts, features, hit))

    def _learn(self, features: NDArray[np.float64], hit: int) -> None:
        error = -_logistic(features @ self._weights)
        if hit >= 0:
            error[hit] += 1
        self._weights += RATE * (error @ features)

    def bins(self, seed: int) -> tuple[list[CalibrationBin], Estimate | None]:
        """The bins that are not empty, and the expected calibration error (Naeini et al. 2015)."""
        used = self._sums[:, :, 2].any(axis=0)
        sums = self._sums[self._sums[:, :, 2].any(axis=1)][:, used]  # [groups, bins, 3]
        if not sums.size:
            return [], None
        whole = sums.sum(axis=0)
        drawn = np.einsum("rg,gbk->rbk", resampled(len(sums), seed), sums)
        found = []
        for number, (predicted, hits, slots) in enumerate(whole):
            there = drawn[:, number, 2] > 0
            shares = drawn[there, number, 1] / drawn[there, number, 2]
            found.append(CalibrationBin(float(predicted / slots), recentred(float(hits / slots), shares, int(slots))))
        errors = np.abs(drawn[:, :, 0] - drawn[:, :, 1]).sum(axis=1) / drawn[:, :, 2].sum(axis=1)
        error = float(np.abs(whole[:, 0] - whole[:, 1]).sum() / whole[:, 2].sum())
        return found, recentred(error, errors, int(whole[:, 2].sum()))

    def saved(self) -> SavedCalibration:
        """Everything, for a checkpoint."""
        waiting = [(ts, features.tobytes(), hit) for ts, features, hit in self._waiting]
        scale = self._mean, self._square, self._seen
        return SavedCalibration(self._weights.tolist(), scale, waiting, self._sums.tobytes())

    def restore(self, saved: SavedCalibration) -> None:
        """Take over what `saved` gave."""
        self._weights = np.array(saved.weights)
        self._mean, self._square, self._seen = saved.scale
        self._waiting = deque((ts, np.frombuffer(features).reshape(-1, 3), hit) for ts, features, hit in saved.waiting)
        self._sums = np.frombuffer(saved.sums).reshape(self._sums.shape).copy()


def _logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    chances: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(x, -30, 30)))
    return chances
