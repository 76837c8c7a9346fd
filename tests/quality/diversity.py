"""Diversity against accuracy: the core's MMR over the encoder's best items, at each setting of its knob."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.quality.ranking import Case, Floats, Scorer, seen
from training.evaluate import CUTOFF
from workers.core.ranking import POOL, RankConfig, _diversify

KNOB = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
BATCH = 512


def curve(
    score: Scorer, table: Floats, counts: NDArray[np.int64], cases: Sequence[Case]
) -> dict[str, dict[str, float]]:
    """Per setting: HR@10, NDCG@10, mean distance within a list, share of the catalogue shown, novelty in bits."""
    figures: dict[str, dict[str, float]] = {}
    pools = [_pool(score, cases[start : start + BATCH]) for start in range(0, len(cases), BATCH)]
    rows = np.concatenate([pool[0] for pool in pools])
    scores = np.concatenate([pool[1] for pool in pools])
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    share = (counts + 1) / (counts.sum() + len(counts))
    for knob in KNOB:
        config = RankConfig(CUTOFF, knob, prior_weight=0.0)
        lists = np.array(
            [
                _diversify(unit, own.tolist(), values.tolist(), config)[0][:CUTOFF]
                for own, values in zip(rows, scores, strict=True)
            ]
        )
        place = np.array([_place(shown, target) for shown, (_, target) in zip(lists, cases, strict=True)])
        hit = place < CUTOFF
        vectors = unit[lists]  # [cases, CUTOFF, D]
        similar = np.einsum("cid,cjd->cij", vectors, vectors)
        pairs = CUTOFF * (CUTOFF - 1)
        figures[f"diversity {knob:g}"] = {
            "hr@10": float(hit.mean()),
            "ndcg@10": float(np.where(hit, 1 / np.log2(place + 2.0), 0).mean()),
            "distance": float(1 - (similar.sum(axis=(1, 2)) - np.trace(similar, axis1=1, axis2=2)).mean() / pairs),
            "coverage": len(np.unique(lists)) / len(counts),
            "novelty": float(-np.log2(share[lists]).mean()),
        }
    return figures


def _pool(score: Scorer, cases: Sequence[Case]) -> tuple[NDArray[np.int64], Floats]:
    histories = [history for history, _ in cases]
    scores = score(histories)
    scores[seen(histories, scores)] = -np.inf
    rows = np.argpartition(-scores, POOL * CUTOFF, axis=1)[:, : POOL * CUTOFF]
    best = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(best, order, axis=1)


def _place(shown: NDArray[np.int64], target: int) -> int:
    found = np.flatnonzero(shown == target)
    return int(found[0]) if len(found) else CUTOFF
