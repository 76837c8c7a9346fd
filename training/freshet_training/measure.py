"""Step 5 of a run: the epoch by the validation part, the prior's weight too, and the test part's metrics once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from freshet.core.features import USER_ENCODER_INPUTS
from numpy.typing import NDArray

from freshet_training.baselines import Baselines, CoOccurrence, Mix, fit_baselines
from freshet_training.console import say
from freshet_training.dataset import DatasetError
from freshet_training.evaluate import (
    CachedRanker,
    EvaluationBatch,
    EvaluationReplay,
    EvaluationRow,
    Floats,
    Ranker,
    RankingResult,
    difference,
    evaluate,
    slices,
    user_bootstrap,
    with_prior,
)
from freshet_training.fit import FittedEncoder
from freshet_training.model import UserEncoder
from freshet_training.prior_weights import by_prior_weight
from freshet_training.training_set import TrainingSet

PRIOR_WEIGHTS = (
    0.0,
    *(step * 10.0**power for power in range(-1, 2) for step in (1, 2, 3, 5, 7)),
    *(10.0**power for power in range(2, 7)),
)
"""Up to where the encoder decides among items alone that hardly anybody has touched lately."""
VALIDATED = 2000
"""Most events of the validation part that choices are made by."""
FEWEST = 500
"""As many events are judged in the widest catalogue."""
VALIDATION_CELLS, TEST_CELLS = 20_000_000, 500_000_000
"""Scores of all items for all events that are judged, at most."""
ENCODER = "encoder"
SERVED = "encoder + prior"
MIX = "best mix without a network"
UNTIED = "untied_"


class ValidationPart:
    """The events that choices are made by: a sample of the validation part, prepared once."""

    def __init__(self, training_set: TrainingSet, replay: EvaluationReplay) -> None:
        self._training_set = training_set
        self._replay = replay

    @cached_property
    def _rows(self) -> list[EvaluationRow]:
        split, items = self._training_set.split, len(self._replay.row)
        start = len(split.train)
        most = min(VALIDATED, max(FEWEST, VALIDATION_CELLS // items))
        return list(self._replay.rows(start, start + len(split.validation), most))

    def batches(self) -> Iterator[EvaluationBatch]:
        """The part in batches."""
        return self._replay.stacked(self._rows)

    def score(self, candidate: UserEncoder) -> float:
        """NDCG@10 as served, with the prior at its best weight, of untied events."""
        return max(map(_untied_ndcg, self._by_weight(candidate, PRIOR_WEIGHTS[::2]).values()))

    def prior_weight(self, candidate: UserEncoder) -> float:
        """The best weight of the prior beside the encoder."""
        results = self._by_weight(candidate, PRIOR_WEIGHTS)
        return max(results, key=lambda weight: _untied_ndcg(results[weight]))

    def _by_weight(self, candidate: UserEncoder, weights: Sequence[float]) -> dict[float, RankingResult]:
        ranker = EncoderRanker(candidate, self._training_set.unseen)
        with _judging():
            return by_prior_weight(self.batches(), ranker, weights)

    @cached_property
    def baselines(self) -> Baselines:
        """The rankers without a network, counted on the training part."""
        training_set = self._training_set
        together = CoOccurrence(training_set.split.train, self._replay.row)
        with _judging():
            return fit_baselines(self.batches, together, training_set.texts, _untied_ndcg)


@contextmanager
def _judging() -> Iterator[None]:
    """Raises `DatasetError` where there is no event to judge by."""
    try:
        yield
    except ValueError as error:
        raise DatasetError(str(error)) from None


def _untied_ndcg(result: RankingResult) -> float:
    """By untied events, or by all where every event is tied."""
    untied = result.only_untied()
    return (untied if len(untied.users) else result).ndcg


class EncoderRanker:
    """Rank by an encoder; items outside the vocabulary stand at the item tower's vector of their text, if any."""

    def __init__(self, model: UserEncoder, other_texts: NDArray[np.float32]) -> None:
        """`other_texts` `[M - N, TEXT_DIM]` are those of the catalogue's items behind the vocabulary."""
        model.eval()
        self._model = model
        with torch.no_grad():
            self._vectors = model.item_vectors()  # [N, D]
            others = model.tower(torch.from_numpy(other_texts).to(model.text.device))
            self._table = torch.cat([self._vectors, others])  # [M, D]
        self._unrankable = np.flatnonzero(~other_texts.any(axis=1)) + len(self._vectors)

    def __call__(self, batch: EvaluationBatch) -> Floats:
        """Scores `[B, M]`, without the prior."""
        return self.scores(batch.tensors)

    def scores(self, tensors: Mapping[str, NDArray[np.int32]]) -> Floats:
        """Scores `[B, M]` for encoder inputs."""
        with torch.no_grad():
            inputs = (torch.from_numpy(tensors[spec.name]).to(self._model.text.device) for spec in USER_ENCODER_INPUTS)
            user = self._model(*inputs, self._vectors, last_only=True)[:, 0]  # [B, D]
            scores: Floats = (user @ self._table.T).cpu().numpy()
        scores[:, self._unrankable] = -np.inf
        return scores


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
    """A fitted encoder, the prior's weight beside it, its test metrics by ranker, and the best mix without it."""

    fitted: FittedEncoder
    prior_weight: float
    metrics: dict[str, dict[str, float]]
    mix: Mix


def measure(
    fitted: FittedEncoder, training_set: TrainingSet, replay: EvaluationReplay, validation: ValidationPart
) -> MeasuredEncoder:
    """The prior's weight by the validation part, and the metrics of the test part by ranker."""
    encoder = CachedRanker(EncoderRanker(fitted.model, training_set.unseen))
    prior_weight, baselines = validation.prior_weight(fitted.model), validation.baselines
    served = _SliceRanker(with_prior(encoder, prior_weight))
    rankers = {**baselines.alone, MIX: baselines.mix, ENCODER: encoder, SERVED: served}
    say(f"best epoch {fitted.epoch}, prior weight {prior_weight:g}; testing")
    say(f"{MIX}: {baselines.mix}")
    with _judging():
        results = evaluate(_test_batches(training_set, replay), rankers)
    results[f"{SERVED} over {MIX}"] = difference(results[SERVED], results[MIX])
    rows = [replay.row[event.item_id or ""] for run in training_set.runs for event in run]
    by_slice = served.slices(results[SERVED], np.bincount(rows, minlength=len(replay.row)))
    results |= {f"{SERVED}, {name}": result for name, result in by_slice.items()}
    metrics = {ranker: _metrics(result) for ranker, result in results.items()}
    say(_told(metrics))
    if metrics[SERVED]["events"] != metrics[SERVED][f"{UNTIED}events"]:
        say(f"events later than the user's previous one alone:\n{_told(metrics, UNTIED)}")
    return MeasuredEncoder(fitted, prior_weight, metrics, baselines.mix)


def _test_batches(training_set: TrainingSet, replay: EvaluationReplay) -> Iterator[EvaluationBatch]:
    """The test part, or of a large test part in a wide catalogue a sample."""
    stop = len(training_set.log.events)
    start = stop - len(training_set.split.test)
    most = max(FEWEST, TEST_CELLS // len(replay.row))
    return replay.batches(start, stop, most if stop - start > most else None)


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
