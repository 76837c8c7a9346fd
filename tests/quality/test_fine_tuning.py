"""The pairs and the effect of fine-tuning the text encoder. Runs in the training environment."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("peft")

from tests.quality.fine_tuning import Texts, by_text, pairs
from tests.quality.ranking import LeaveOneOut

TITLES = ["red lipstick", "rouge for the mouth", "garden hose", "water pipe", ""]


def test_pairs_are_of_neighbours() -> None:
    """Pairs are items at most three places apart, in order."""
    assert sorted(map(tuple, pairs([[1, 2, 3, 4, 5], [7]]).tolist())) == [
        (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 5),
    ]  # fmt: skip


def test_tuning_draws_together_what_is_used_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning brings the texts of items that people take together nearer."""
    for name, value in (("STEPS", 12), ("PAIRS", 8)):
        monkeypatch.setattr(f"tests.quality.fine_tuning.{name}", value)
    split = LeaveOneOut([[0, 2], [1, 3]] * 20, [], [], TITLES)
    texts = Texts(threads=1)
    before = texts.encode(TITLES)
    losses = texts.fine_tune(split, 0)
    after = texts.encode(TITLES)
    assert losses[-1] < losses[0]
    assert after[0] @ after[2] > before[0] @ before[2]
    assert not after[4].any()
    assert np.argmax(by_text(after)([[0]])[0]) == 0
