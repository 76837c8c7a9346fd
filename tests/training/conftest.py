"""What the tests of the training job share: a text encoder that needs no model, and one trained version."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freshet.bundle.bundle import TextEncoderFacts
from freshet_training import train, training_set

from tests.training.ring_log import walk, write_config, write_items, write_log

torch.set_num_threads(1)


class Texts:
    """A text encoder: a random direction for each text."""

    digest = "random directions"
    facts = TextEncoderFacts(digest, "no tokens", 384)

    def __init__(self, _folder: Path) -> None:
        self.read: list[str] = []

    def unknown_tokens(self, _texts: Sequence[str]) -> float:
        """A fixed share."""
        return 0.25

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """A unit vector per text."""
        self.read += texts
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(384) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


@pytest.fixture(autouse=True, scope="session")
def _texts() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(training_set, "TextEncoder", Texts)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, its items and settings, and in `first` the version trained on them."""
    folder = tmp_path_factory.mktemp("ring")
    write_log(folder / "events.jsonl", walk())
    write_items(folder / "items.jsonl", without=[3])
    write_config(folder / "ring.toml")
    assert train.main([*arguments(folder), "--out", str(folder / "first"), "--work", str(folder / "work")]) == 0
    return folder


def arguments(folder: Path, events: str = "events.jsonl") -> list[str]:
    """What every run in the ring is told."""
    files = {"events": events, "items": "items.jsonl", "config": "ring.toml", "text-encoder": "."}
    return [part for name, file in files.items() for part in (f"--{name}", str(folder / file))] + ["--tracking", "none"]
