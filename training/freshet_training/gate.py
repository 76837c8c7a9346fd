"""Step 7, the gate: may this candidate follow the live version?

Both are run over the same events (`freshet_training.evaluate`), the live version from
its exported files, and compared event by event, so the interval is that of a paired
difference. A candidate must be better than the best mix without a network
(`freshet_training.baselines`), beyond the interval, on enough events of enough users.
ONNX Runtime must give what torch gave on the golden inputs; Triton's answers to the same
are checked by `freshet publish` before anybody is served.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from freshet.bundle.bundle import Bundle, Check, Decision
from freshet.bundle.golden import read_golden
from freshet.bundle.onnx_session import open_session
from freshet.core.features import (
    FIRST_ITEM,
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    featurise,
)
from numpy.typing import NDArray
from safetensors.numpy import load_file

from freshet_training.baselines import Mix
from freshet_training.config import GateLimits, TrainingConfig
from freshet_training.evaluate import (
    CUTOFF,
    EvaluationBatch,
    EvaluationReplay,
    EvaluationSet,
    Floats,
    Ranker,
    RankingResult,
    difference,
    rank_of_target,
    result_of,
    user_bootstrap,
    with_prior,
)
from freshet_training.export import ExportError, check_parity
from freshet_training.measure import FEWEST
from freshet_training.regression_set import RegressionCase, regression_cases

TIMED_BATCH = 64
TIMED_RUNS = 50
LISTS_MEASURED = 1000
"""Lists whose items' distances are measured."""
EMBEDDING = USER_ENCODER_OUTPUTS[2].name
MEGABYTE = 1 << 20
NETWORK = "network"
"""The check of a network against the best mix without one."""
ENOUGH_EVENTS, ENOUGH_USERS = 30, 20
"""Fewer events, or events of fewer users, say nothing about a network."""
JUDGED_CELLS = 100_000_000
"""Scores of all items for all events that are judged, at most."""
FOREIGN = 0.1
"""A live version that knows a smaller part of the candidate's items is another catalogue's."""


class Scorer(Protocol):
    """Scores a catalogue of M items."""

    def scores(self, tensors: Mapping[str, NDArray[np.int32]]) -> Floats:
        """Scores `[B, M]` for encoder inputs, without the prior."""
        ...


@dataclass(frozen=True)
class Judged:
    """A version to judge: a scorer of the ground's catalogue, and what the scorer's inputs are made by."""

    scorer: Scorer
    item_ids: Sequence[str]
    types: Sequence[str]
    length: int
    prior_weight: float
    half_life_s: float

    @property
    def item_index(self) -> dict[str, int]:
        """Item id to the encoder's index."""
        return {item: row + FIRST_ITEM for row, item in enumerate(self.item_ids)}

    @property
    def type_index(self) -> dict[str, int]:
        """Behaviour type to the encoder's index."""
        return {kind: row + 1 for row, kind in enumerate(self.types)}

    def __call__(self, batch: EvaluationBatch) -> Floats:
        """Scores `[B, M]`, without the prior."""
        return self.scorer.scores({spec.name: batch.tensors[spec.name] for spec in USER_ENCODER_INPUTS})

    @classmethod
    def of(cls, version: Bundle, ground: EvaluationSet) -> Judged:
        """A version on disk."""
        manifest = version.manifest
        return cls(
            ServedScorer(version, ground),
            version.item_ids,
            manifest.types,
            manifest.length,
            manifest.prior_weight,
            manifest.popularity_half_life_s,
        )


class ServedScorer:
    """A version's exported graphs, as a scorer of a catalogue."""

    def __init__(self, version: Bundle, ground: EvaluationSet) -> None:
        self._encoder = open_session(version.path / "model.onnx")
        tower = open_session(version.path / "item_tower.onnx")
        [table] = tower.run([ITEM_TOWER_OUTPUTS[0].name], {ITEM_TOWER_INPUTS[0].name: ground.texts})
        self._table: Floats = np.array(table)  # [M, D]
        row = {item: number for number, item in enumerate(ground.catalogue)}
        known = [(row[item], number) for number, item in enumerate(version.item_ids) if item in row]
        rows, own_rows = (list(column) for column in zip(*known, strict=True)) if known else ([], [])
        self._table[rows] = version.item_vectors[own_rows]
        rankable = ground.texts.any(axis=1)
        rankable[rows] = True
        self._unrankable = np.flatnonzero(~rankable)

    def scores(self, tensors: Mapping[str, NDArray[np.int32]]) -> Floats:
        """Scores `[B, M]` for encoder inputs."""
        [embedding] = self._encoder.run([EMBEDDING], dict(tensors))
        scores: Floats = embedding @ self._table.T
        scores[:, self._unrankable] = -np.inf
        return scores


@dataclass(frozen=True)
class _ListQuality:
    result: RankingResult
    coverage: float
    """Part of the catalogue that stands in some list."""
    diversity: float
    """Mean distance, 1 - cosine of the text embeddings, between the items of a list."""


def judge(
    candidate: Judged,
    live: Bundle | None,
    ground: EvaluationSet,
    config: TrainingConfig,
    regression_file: Path,
    *,
    mix: Mix | None = None,
    from_live: bool = False,
) -> list[Check]:
    """What a candidate's lists are worth, against the best `mix` without a network and against `live`.

    A candidate without a network is compared with no mix. One that goes on `from_live`, which was better than a mix,
    must not be shown to be worse than the mix. `regression_file` holds the regression set; a missing one is made here.
    """
    gate = config.gate
    ours = _judge(candidate, with_prior(candidate, candidate.prior_weight), ground, config)
    checks: list[Check] = []
    if mix is not None:
        theirs = _judge(candidate, mix, ground, config)
        native = from_live and live is not None and not _is_foreign(live, candidate)
        checks.append(_network(str(mix), ours.result, theirs.result, must_gain=not native))
    if live is not None:
        running = Judged.of(live, ground)
        theirs = _judge(running, with_prior(running, running.prior_weight), ground, config)
        checks += [
            _quality(f"version {live.path.name}", ours.result, theirs.result, gate),
            _floor("coverage", ours.coverage, theirs.coverage, gate.coverage),
            _floor("diversity", ours.diversity, theirs.diversity, gate.diversity),
        ]
        cases, anew = regression_cases(regression_file, ground, config)
        scores = (_regression_score(version, cases, ground) for version in (candidate, running))
        held = _floor("regression set", *scores, gate.regression_set)
        checks.append(msgspec.structs.replace(held, detail=f"{held.detail}{anew}"))
    return checks


def check_files(candidate: Bundle, gate: GateLimits) -> list[Check]:
    """Whether a candidate's files are sound, small and fast enough."""
    return [_finite(candidate), _parity(candidate), _size(candidate, gate), _latency(candidate, gate)]


def _is_foreign(live: Bundle, candidate: Judged) -> bool:
    return len({*live.item_ids} & {*candidate.item_ids}) < FOREIGN * len(candidate.item_ids)


def _judge(version: Judged, ranker: Ranker, ground: EvaluationSet, config: TrainingConfig) -> _ListQuality:
    users: list[str] = []
    untied: list[NDArray[np.bool_]] = []
    ranks: list[NDArray[np.int64]] = []
    tops: list[NDArray[np.int64]] = []
    stop = len(ground.events)
    most = min(config.gate.events, max(FEWEST, JUDGED_CELLS // len(ground.catalogue)))
    for batch in _replay(version, ground, config).batches(ground.start, stop, most):
        scores = ranker(batch)
        users.extend(batch.users)
        untied.append(batch.untied)
        ranks.append(rank_of_target(scores, batch.target, batch.seen))
        tops.append(_top(np.where(batch.seen, -np.inf, scores)))
    if not users:
        raise ValueError("no event to judge a candidate on: the newest part of the log is empty or all seen before")
    lists = np.concatenate(tops)
    size = min(CUTOFF, lists.shape[1])
    unit = ground.texts / np.maximum(np.linalg.norm(ground.texts, axis=1, keepdims=True), 1e-9)
    inside = unit[lists[:LISTS_MEASURED]]  # [lists, size, TEXT_DIM]
    alike = np.matmul(inside, inside.transpose(0, 2, 1)).sum(axis=(1, 2)) - (inside**2).sum(axis=(1, 2))
    diversity = 1 - float(alike.mean()) / max(size * (size - 1), 1)
    return _ListQuality(
        result_of(users, np.concatenate(ranks), np.concatenate(untied)),
        len(np.unique(lists)) / len(ground.catalogue),
        diversity,
    )


def _replay(version: Judged, ground: EvaluationSet, config: TrainingConfig) -> EvaluationReplay:
    return EvaluationReplay(
        ground.events,
        ground.catalogue,
        version.item_index,
        version.type_index,
        version.half_life_s,
        version.length,
        history=config.history,
        targets=config.targeted,
        counted=config.counted,
    )


def _top(scores: Floats) -> NDArray[np.int64]:
    """The first rows `[B, CUTOFF]` of `scores` `[B, M]`, in no order."""
    size = min(CUTOFF, scores.shape[1])
    return np.argpartition(-scores, size - 1, axis=1)[:, :size]


def _finite(candidate: Bundle) -> Check:
    weights = load_file(candidate.path / "weights.safetensors")
    bad = sorted(name for name, values in weights.items() if not np.isfinite(values).all())
    return Check("finite", not bad, f"NaN or infinity in {', '.join(bad)}" if bad else f"{len(weights)} tensors")


def _parity(candidate: Bundle) -> Check:
    try:
        off = check_parity(candidate.path)
    except ExportError as error:
        return Check("parity", passed=False, detail=str(error))
    return Check("parity", passed=True, detail=f"ONNX Runtime is off what torch gave by {off:.1e} at most")


def _size(candidate: Bundle, gate: GateLimits) -> Check:
    size = sum(file.stat().st_size for file in candidate.path.iterdir()) / MEGABYTE
    return Check("size", size <= gate.size_mb, f"{size:.1f} MB of {gate.size_mb:g} allowed")


def _latency(candidate: Bundle, gate: GateLimits) -> Check:
    taken = _milliseconds(candidate)
    return Check("latency", taken <= gate.latency_ms, f"{taken:.3f} ms a user of {gate.latency_ms:g} allowed")


def _milliseconds(version: Bundle) -> float:
    """Time of the CPU a user, in the whole graph at batch 64 on one thread: the best of a few runs.

    What others take of the CPU meanwhile does not count: a periodic run has the lowest priority.
    """
    encoder, golden = open_session(version.path / "model.onnx"), read_golden(version.path)
    feeds = {
        spec.name: np.resize(golden[spec.name], (TIMED_BATCH, version.manifest.length)) for spec in USER_ENCODER_INPUTS
    }
    best = np.inf
    for _ in range(TIMED_RUNS):
        started = time.thread_time()
        encoder.run(None, feeds)
        best = min(best, time.thread_time() - started)
    return best * 1000 / TIMED_BATCH


def _network(mix: str, ours: RankingResult, theirs: RankingResult, *, must_gain: bool) -> Check:
    """Refuses a network that is not shown to be worth more than the mix, by enough events of enough users."""
    users = len(np.unique(ours.users))
    paired = difference(ours, theirs)
    low, high = user_bootstrap(paired.users, paired.gain)
    detail = (
        f"NDCG@10 {ours.ndcg:.4f} against {theirs.ndcg:.4f} of {mix}, {paired.ndcg:+.4f} [{low:+.4f}, {high:+.4f}] "
        f"over {len(ours.users):,} events of {users:,} users"
    )
    if len(ours.users) < ENOUGH_EVENTS or users < ENOUGH_USERS:
        return Check(NETWORK, False, f"{detail}: too few to tell, {ENOUGH_EVENTS} of {ENOUGH_USERS} are needed")
    passed = low > 0 if must_gain else high >= 0
    verdict = "" if passed else ": it is not better than the best mix without a network"
    return Check(NETWORK, passed, f"{detail}{verdict}")


def _quality(name: str, ours: RankingResult, theirs: RankingResult, gate: GateLimits) -> Check:
    """Refuses what is shown to be worse, and what lacks more than is tolerated."""
    paired = difference(ours, theirs)
    low, high = user_bootstrap(paired.users, paired.gain)
    passed = high >= 0 and paired.ndcg >= -gate.tolerance * theirs.ndcg
    detail = (
        f"NDCG@10 {ours.ndcg:.4f} against {theirs.ndcg:.4f} of {name}, {paired.ndcg:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
    return Check("quality", passed, f"{detail} over {len(ours.users):,} events")


def _floor(name: str, ours: float, theirs: float, part: float) -> Check:
    return Check(name, ours >= part * theirs, f"{ours:.4f} against {theirs:.4f}, at least {part:g} of it")


def _regression_score(version: Judged, cases: Sequence[RegressionCase], ground: EvaluationSet) -> float:
    """NDCG@10 by the encoder alone: a frozen user has no popularity of the day."""
    row = {item: number for number, item in enumerate(ground.catalogue)}
    known = [case for case in cases if case.item in row]
    if not known:
        return 0.0
    states = [case.before for case in known]
    scores = version.scorer.scores(featurise(states, version.item_index, version.type_index, version.length))
    seen = np.zeros(scores.shape, np.bool_)
    for number, state in enumerate(states):
        seen[number, [row[item] for item in (*state.items, *state.seen) if item in row]] = True
    target = np.array([row[case.item] for case in known])
    ranks = rank_of_target(scores, target, seen)
    return result_of([case.user_id for case in known], ranks, np.ones(len(known), np.bool_)).ndcg


def report(decision: Decision) -> str:
    """The decision and its reasons, a line each."""
    lines = [f"  {'ok  ' if check.passed else 'FAIL'} {check.name:<10} {check.detail}" for check in decision.checks]
    verdict = "accepted" if decision.accepted else "refused: it will not be published"
    return "\n".join([*lines, f"gate: {verdict}"])
