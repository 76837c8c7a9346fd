"""Step 5 of a run: the epoch by the validation part, the prior's weight too, and the test part's metrics once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from freshet.core.features import USER_ENCODER_INPUTS
from numpy.typing import NDArray

from freshet_training.console import say
from freshet_training.dataset import DatasetError
from freshet_training.evaluate import (
    CoOccurrence,
    EvaluationBatch,
    EvaluationReplay,
    Floats,
    Ranker,
    RankingResult,
    difference,
    evaluate,
    popularity,
    recent_popularity,
    slices,
    user_bootstrap,
    with_prior,
)
from freshet_training.fit import FittedEncoder
from freshet_training.model import UserEncoder
from freshet_training.training_set import TrainingSet

PRIOR_WEIGHTS = (
    0.0,
    *(step * 10.0**power for power in range(-1, 2) for step in (1, 2, 3, 5, 7)),
    *(10.0**power for power in range(2, 7)),
)
"""Up to where the encoder decides among items alone that hardly anybody has touched lately."""
CO_OCCURRENCE_LAST = (1, 5, 10, 50)
CO_OCCURRENCE_ITEMS = 5000
"""Catalogues up to this size get the co-occurrence baseline, which is quadratic in it."""
ENCODER = "encoder"
SERVED = "encoder + prior"
UNTIED = "untied_"


def validator(training_set: TrainingSet, replay: EvaluationReplay) -> Callable[[UserEncoder], float]:
    """NDCG@10 as served, with the prior at its best weight, on every other untied event of the validation part."""
    start = len(training_set.split.train)
    stop = start + len(training_set.split.validation)

    def validate(candidate: UserEncoder) -> float:
        mixes = _mixes(encoder_ranker(candidate, training_set.unseen), PRIOR_WEIGHTS[::2])
        results = _evaluate(replay, start, stop, mixes, every=2)
        return _untied_ndcg(results[_best(results)])

    return validate


def _mixes(encoder: Ranker, weights: Sequence[float]) -> dict[str, Ranker]:
    """The encoder with the prior at each of the weights."""
    once = _CachedRanker(encoder)
    return {f"{weight:g}": with_prior(once, weight) for weight in weights}


def _evaluate(
    replay: EvaluationReplay, start: int, stop: int, rankers: Mapping[str, Ranker], every: int = 1
) -> dict[str, RankingResult]:
    try:
        return evaluate(replay.batches(start, stop, every), rankers)
    except ValueError as error:
        raise DatasetError(str(error)) from None


def _untied_ndcg(result: RankingResult) -> float:
    """By untied events, or by all where every event is tied."""
    untied = result.only_untied()
    return (untied if len(untied.users) else result).ndcg


def encoder_ranker(model: UserEncoder, other_texts: NDArray[np.float32]) -> Ranker:
    """Rank by the encoder; items outside the vocabulary stand at the item tower's vector of their text, if any."""
    model.eval()
    device = model.text.device
    with torch.no_grad():
        vectors = model.item_vectors()  # [N, D]
        table = torch.cat([vectors, model.tower(torch.from_numpy(other_texts).to(device))])  # [M, D]
    unrankable = np.flatnonzero(~other_texts.any(axis=1)) + len(vectors)

    def score(batch: EvaluationBatch) -> Floats:
        with torch.no_grad():
            inputs = (torch.from_numpy(batch.tensors[spec.name]).to(device) for spec in USER_ENCODER_INPUTS)
            user = model(*inputs, vectors, last_only=True)[:, 0]  # [B, D]
            scores: Floats = (user @ table.T).cpu().numpy()
        scores[:, unrankable] = -np.inf
        return scores

    return score


class _CachedRanker:
    """A ranker that scores a batch once for all who ask in turn."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker
        self._last: tuple[EvaluationBatch, Floats] | None = None

    def __call__(self, batch: EvaluationBatch) -> Floats:
        if self._last is None or self._last[0] is not batch:
            self._last = batch, self._ranker(batch)
        return self._last[1]


class _SliceRanker:
    """A ranker that notes of each event that it scores what the slices need."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker
        self._targets: list[NDArray[np.int64]] = []
        self._user_events: list[int] = []

    def __call__(self, batch: EvaluationBatch) -> Floats:
        self._targets.append(batch.target)
        self._user_events.extend(map(len, batch.history))
        return self._ranker(batch)

    def slices(self, result: RankingResult, item_events: NDArray[np.int64]) -> dict[str, RankingResult]:
        """Its result by slice; `item_events` `[M]` are the items' training events."""
        parts = slices(item_events[np.concatenate(self._targets)], np.array(self._user_events))
        return {name: result.only(chosen) for name, chosen in parts.items() if chosen.any()}


@dataclass(frozen=True)
class MeasuredEncoder:
    """A fitted encoder, the prior's weight beside it, and its test metrics by ranker."""

    fitted: FittedEncoder
    prior_weight: float
    metrics: dict[str, dict[str, float]]


def measure(fitted: FittedEncoder, training_set: TrainingSet, replay: EvaluationReplay) -> MeasuredEncoder:
    """The prior's weight by the validation part, and the metrics of the test part by ranker."""
    validation = len(training_set.split.train)
    test = validation + len(training_set.split.validation)
    encoder = _CachedRanker(encoder_ranker(fitted.model, training_set.unseen))
    prior_weight = float(_best(_evaluate(replay, validation, test, _mixes(encoder, PRIOR_WEIGHTS))))
    baselines: dict[str, Ranker] = {"popularity": popularity, "recent popularity": recent_popularity}
    if len(replay.row) <= CO_OCCURRENCE_ITEMS:
        counts: dict[str, Ranker] = {
            str(last): CoOccurrence(training_set.split.train, replay.row, last) for last in CO_OCCURRENCE_LAST
        }
        baselines["co-occurrence"] = counts[_best(_evaluate(replay, validation, test, counts))]
    served = _SliceRanker(with_prior(encoder, prior_weight))
    rankers = {**baselines, ENCODER: encoder, SERVED: served}
    say(f"best epoch {fitted.epoch}, prior weight {prior_weight:g}; testing")
    results = _evaluate(replay, test, len(training_set.log.events), rankers)
    best_baseline = max(baselines, key=lambda name: results[name].ndcg)
    results[f"{SERVED} over {best_baseline}"] = difference(results[SERVED], results[best_baseline])
    rows = [replay.row[event.item_id or ""] for run in training_set.runs for event in run]
    by_slice = served.slices(results[SERVED], np.bincount(rows, minlength=len(replay.row)))
    results |= {f"{SERVED}, {name}": result for name, result in by_slice.items()}
    metrics = {ranker: _metrics(result) for ranker, result in results.items()}
    say(_told(metrics))
    if metrics[SERVED]["events"] != metrics[SERVED][f"{UNTIED}events"]:
        say(f"events later than the user's previous one alone:\n{_told(metrics, UNTIED)}")
    return MeasuredEncoder(fitted, prior_weight, metrics)


def _best(results: Mapping[str, RankingResult]) -> str:
    return max(results, key=lambda name: _untied_ndcg(results[name]))


def _metrics(result: RankingResult) -> dict[str, float]:
    metrics = {"users": float(len(np.unique(result.users)))}
    for prefix, part in (("", result), (UNTIED, result.only_untied())):
        metrics[f"{prefix}events"] = float(len(part.users))
        for name, values in (("hr@10", part.hit), ("ndcg@10", part.gain)):
            low, high = user_bootstrap(part.users, values) if len(values) else (0.0, 0.0)
            mean = float(values.mean()) if len(values) else 0.0
            metrics |= {prefix + name: mean, f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return metrics


def _told(metrics: dict[str, dict[str, float]], prefix: str = "") -> str:
    """The test metrics with their 95 % intervals, as a person reads them in a terminal."""
    width = max(map(len, metrics))
    lines = [f"  {'':<{width}}  {'events':>7}  {'HR@10':>7}{'':<21}NDCG@10"]
    for name, values in metrics.items():
        cells = (
            f"{values[key]:7.4f}  [{values[key + '_low']:.4f}, {values[key + '_high']:.4f}]"
            for key in (f"{prefix}hr@10", f"{prefix}ndcg@10")
        )
        columns = "  ".join(f"{cell:<26}" for cell in cells).rstrip()
        lines.append(f"  {name:<{width}}  {values[f'{prefix}events']:>7,.0f}  {columns}")
    return "\n".join(lines)


def table(metrics: dict[str, dict[str, float]], prefix: str = "") -> str:
    """A Markdown table of the test metrics with their 95 % user-bootstrap intervals."""
    lines = ["| ranker | events | HR@10 | NDCG@10 |", "| --- | --- | --- | --- |"]
    for name, values in metrics.items():
        cells = (
            f"{values[key]:.4f} [{values[key + '_low']:.4f}, {values[key + '_high']:.4f}]"
            for key in (f"{prefix}hr@10", f"{prefix}ndcg@10")
        )
        lines.append(f"| {name} | {values[f'{prefix}events']:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)
