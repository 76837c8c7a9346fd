"""Variety against accuracy: the core's MMR and its weight of rare items, at each setting of their knobs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from freshet.core.ranking import POOL, RankConfig, _diversify
from freshet_training.evaluate import CUTOFF, gains, hits
from freshet_training.lifts import novelty
from numpy.typing import NDArray

from tests.quality.ranking import Case, Floats, Scorer, seen

DIVERSITY = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
NOVELTY = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
BATCH = 512


def curve(
    score: Scorer, table: Floats, counts: NDArray[np.int64], cases: Sequence[Case]
) -> dict[str, dict[str, float]]:
    """Per setting: HR@10, NDCG@10, mean distance within a list, share of the catalogue shown, novelty in bits."""
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    share = (counts + 1) / (counts.sum() + len(counts))
    measure = partial(_figures, unit=unit, share=share, cases=cases)
    figures: dict[str, dict[str, float]] = {}
    rows, scores = _pools(score, cases)
    for knob in DIVERSITY:
        config = RankConfig(CUTOFF, knob, prior_weight=0.0)
        lists = [_diversify(unit, *pool, config)[0] for pool in zip(rows.tolist(), scores.tolist(), strict=True)]
        figures[f"diversity {knob:g}"] = measure(np.array([shown[:CUTOFF] for shown in lists]))
    lift = novelty(counts, len(counts)).astype(np.float32)
    for knob in NOVELTY:
        rows, _ = _pools(lambda histories, knob=knob: score(histories) + np.float32(knob) * lift, cases)
        figures[f"novelty {knob:g}"] = measure(rows[:, :CUTOFF])
    return figures


def _figures(
    lists: NDArray[np.int64], *, unit: Floats, share: NDArray[np.float64], cases: Sequence[Case]
) -> dict[str, float]:
    ranks = np.array([_rank(shown, target) for shown, (_, target) in zip(lists, cases, strict=True)])
    vectors = unit[lists]  # [cases, CUTOFF, D]
    similar = np.einsum("cid,cjd->cij", vectors, vectors)
    pairs = CUTOFF * (CUTOFF - 1)
    return {
        "hr@10": float(hits(ranks).mean()),
        "ndcg@10": float(gains(ranks).mean()),
        "distance": float(1 - (similar.sum(axis=(1, 2)) - np.trace(similar, axis1=1, axis2=2)).mean() / pairs),
        "coverage": len(np.unique(lists)) / len(share),
        "novelty": float(-np.log2(share[lists]).mean()),
    }


def _pools(score: Scorer, cases: Sequence[Case]) -> tuple[NDArray[np.int64], Floats]:
    pools = [_pool(score, cases[start : start + BATCH]) for start in range(0, len(cases), BATCH)]
    return np.concatenate([rows for rows, _ in pools]), np.concatenate([scores for _, scores in pools])


def _pool(score: Scorer, cases: Sequence[Case]) -> tuple[NDArray[np.int64], Floats]:
    histories = [history for history, _ in cases]
    scores = score(histories)
    scores[seen(histories, scores)] = -np.inf
    rows = np.argpartition(-scores, POOL * CUTOFF, axis=1)[:, : POOL * CUTOFF]
    best = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(best, order, axis=1)


def _rank(shown: NDArray[np.int64], target: int) -> int:
    found = np.flatnonzero(shown == target)
    return int(found[0]) if len(found) else CUTOFF
