"""Freshet's own encoder on sequences: the examples, model and fit of `training/`, scored as it serves.

The vocabulary is the items of the training part; the others stand at the item
tower's vector of their text, as an item does that is newer than its version.
These logs have an order and no times or types worth the name, so all events are
of one type and of one moment: the gap feature is constant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, UNKNOWN
from freshet_training.config import TrainingConfig
from freshet_training.examples import Examples, windows
from freshet_training.fit import FittedEncoder, Hyperparameters, fit, teacher_seeds
from freshet_training.model import UserEncoder
from freshet_training.model_shape import ModelShape
from freshet_training.text.vocabulary import word_numbers
from numpy.typing import NDArray

from tests.quality.ranking import Floats, LeaveOneOut, Scorer, judge

TYPE = "purchase"
GAP = 1
VALIDATION_USERS = 6000
"""So many of the validation part choose the epoch."""


@dataclass(frozen=True)
class Trained:
    """A fitted encoder with its scorer, its item table `[N, D]` in catalogue order, and what it took."""

    model: UserEncoder
    score: Scorer
    table: Floats
    epoch: int
    seconds: float


def train_encoder(split: LeaveOneOut, texts: Floats, config: TrainingConfig) -> Trained:
    """Fit on the training part as `freshet train` does, the epoch chosen on a sample of the validation users."""
    started = time.perf_counter()
    trained = np.flatnonzero(split.counts())
    index = np.full(split.items, UNKNOWN, np.int64)
    index[trained] = FIRST_ITEM + np.arange(len(trained))
    torch.set_num_threads(config.threads)
    shape = ModelShape(len(trained), 1, **config.model)
    rows = _rows(split.train, index, shape.length, config.overlap)
    words = torch.from_numpy(word_numbers([split.texts[item] for item in trained])) if config.words else None
    chosen = np.random.default_rng(0).permutation(len(split.validation))[:VALIDATION_USERS]
    cases = [split.validation[case] for case in chosen]

    def validate(candidate: UserEncoder) -> float:
        return float(judge(scorer(candidate, texts, index)[0], cases).gain.mean())

    def fitted(seed: int, teachers: Sequence[UserEncoder] = ()) -> FittedEncoder:
        torch.manual_seed(seed)
        model = UserEncoder(shape, torch.from_numpy(texts[trained]), words)
        options = Hyperparameters.of(msgspec.structs.replace(config, seed=seed))
        return fit(model, rows, validate, options, teachers=teachers)

    teachers = [fitted(seed).model for seed in teacher_seeds(config)]
    best = fitted(config.seed, teachers)
    score, table = scorer(best.model, texts, index)
    return Trained(best.model, score, table, best.epoch, time.perf_counter() - started)


def scorer(model: UserEncoder, texts: Floats, index: NDArray[np.int64]) -> tuple[Scorer, Floats]:
    """How the encoder ranks, and the table `[N, D]` it ranks with; `index` `[N]` are the encoder's item indices."""
    model.eval()
    known = index >= FIRST_ITEM
    with torch.no_grad():
        vectors = model.item_vectors()
        table = model.tower(torch.from_numpy(texts))
        table[torch.from_numpy(known)] = vectors[index[known] - FIRST_ITEM]
    length = model.config.length

    def score(histories: Sequence[list[int]]) -> Floats:
        rows = [[0, *index[history]][-length:] for history in histories]
        longest = max(map(len, rows))
        items = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        types = (items > 0).long()
        with torch.no_grad():
            user = model(items, types, types * GAP, vectors, last_only=True)[:, 0]  # [B, D]
            scores: Floats = (user @ table.T).numpy()
        return scores

    return score, table.numpy()


def _rows(
    users: Sequence[list[int]], index: NDArray[np.int64], length: int, overlap: float
) -> Callable[[np.random.Generator], Examples]:
    runs = [
        [Event(f"{user}-{position}", str(user), TYPE, 0, str(item)) for position, item in enumerate(items)]
        for user, items in enumerate(users)
    ]
    known = {str(item): int(row) for item, row in enumerate(index) if row >= FIRST_ITEM}
    return lambda random: windows(runs, known, {TYPE: 1}, length, overlap=overlap, random=random)
