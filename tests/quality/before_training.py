"""What lists are worth before any training: the version of a catalogue alone, beside popularity and nearest texts."""

from __future__ import annotations

import numpy as np
import torch
from freshet.core.features import FIRST_ITEM
from freshet_training.day_zero import PRIOR_WEIGHT
from freshet_training.model_shape import ModelShape
from freshet_training.without_network import NearestText

from tests.quality import baselines, logs
from tests.quality.encoder import scorer
from tests.quality.fine_tuning import by_text
from tests.quality.ranking import Floats, Scorer, judge, leave_one_out

USERS = 6000
LAST = 2


def measure(log: logs.Sequences, vectors: Floats) -> dict[str, dict[str, float]]:
    """HR@10 and NDCG@10 of the last items of `USERS` users; `vectors` `[N, TEXT_DIM]` are the catalogue's texts."""
    users = [items for items in log.users if len(items) >= logs.MIN_EVENTS]
    chosen = np.random.default_rng(1).permutation(len(users))[:USERS]
    split = leave_one_out(users, log.texts)
    cases = [split.test[user] for user in chosen]
    model = NearestText(ModelShape(len(vectors), 1), torch.from_numpy(vectors))
    alone, _ = scorer(model, vectors, FIRST_ITEM + np.arange(len(vectors)))
    popular = np.log1p(split.counts()).astype(np.float32)
    rankers: dict[str, Scorer] = {
        "popularity": baselines.popularity(split),
        f"texts of the last {LAST}": by_text(vectors, LAST),
        "the catalogue alone": alone,
        "the catalogue alone, and what is popular": lambda histories: alone(histories) + PRIOR_WEIGHT * popular,
    }
    counts = split.counts()
    return {name: _headline(judge(ranker, cases).figures(counts)) for name, ranker in rankers.items()}


def _headline(figures: dict[str, float]) -> dict[str, float]:
    return {name: figures[name] for name in ("hr@10", "ndcg@10")}
