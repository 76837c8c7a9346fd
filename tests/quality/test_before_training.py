"""The measure of a version of the catalogue alone."""

import numpy as np
from freshet.core.features import TEXT_DIM

from tests.quality import before_training, logs

KINDS, EACH = 20, 15


def test_users_who_stay_with_a_kind_of_text_are_known_without_training() -> None:
    """Their next item is of the texts nearest to their items; popularity knows nothing of it."""
    random = np.random.default_rng(0)
    directions = np.repeat(random.normal(size=(KINDS, TEXT_DIM)), EACH, axis=0)
    vectors = (directions + 0.3 * random.normal(size=(KINDS * EACH, TEXT_DIM))).astype(np.float32)
    users = [
        (kind * EACH + random.permutation(EACH)[:8]).tolist() for kind in random.integers(KINDS, size=200).tolist()
    ]
    figures = before_training.measure(logs.Sequences(users, [""] * len(vectors)), vectors)
    assert figures["the catalogue alone"]["hr@10"] > 0.9
    assert figures["popularity"]["hr@10"] < 0.2
    assert all(0 <= row["ndcg@10"] <= row["hr@10"] <= 1 for row in figures.values())
