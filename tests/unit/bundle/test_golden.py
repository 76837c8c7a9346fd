"""Golden tensors: the answers that a graph must repeat on any server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from freshet.adapters.triton_address import TritonAddress
from freshet.bundle.golden import GoldenError, check_answers, read_golden
from freshet.core.features import FIRST_ITEM, USER_ENCODER_OUTPUTS, Tensors
from freshet.release.errors import ReleaseError
from freshet.release.server import Server

from deploy.local.parts import TRITON_MODELS
from tests.parity.wrong_items import misnumber

SHIPPED = TRITON_MODELS / "user_encoder" / "1"
VECTORS = np.load(SHIPPED / "item_vectors.npy")
TOLERANCE = 1e-3


def off(answers: Tensors) -> float:
    return check_answers(answers, read_golden(SHIPPED), USER_ENCODER_OUTPUTS, VECTORS, TOLERANCE)


@pytest.fixture
def answers() -> Tensors:
    """What the graph gives where it is right."""
    return read_golden(SHIPPED)


def gaps(answers: Tensors) -> np.ndarray:
    """By how much a score is above the next one, `[B, K - 1]`."""
    return -np.diff(answers["topk_score"], axis=1)


def swap(answers: Tensors, row: int, slot: int) -> None:
    """Let an item and the next one of its list change places."""
    index = answers["topk_index"]
    index[row, [slot, slot + 1]] = index[row, [slot + 1, slot]]


def test_the_golden_answers_are_right(answers: Tensors) -> None:
    """The golden answers of the shipped bundle pass the check."""
    assert off(answers) < 1e-5


def test_items_of_equal_scores_may_swap(answers: Tensors) -> None:
    """Items whose scores differ by less than the tolerance may swap, and other items may not."""
    apart = gaps(answers)
    close, far = (np.argwhere(chosen)[0] for chosen in (apart < TOLERANCE / 2, apart > 2 * TOLERANCE))
    swap(answers, *close)
    assert 0 < off(answers) < TOLERANCE
    swap(answers, *far)
    with pytest.raises(GoldenError, match="topk_index is off its golden values by"):
        off(answers)


def twice(answers: Tensors) -> None:
    row, slot = np.argwhere(gaps(answers) < TOLERANCE / 2)[0]
    answers["topk_index"][row, slot] = answers["topk_index"][row, slot + 1]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda a: a.update(topk_index=a["topk_index"] * 0), "names an item that is not in the item table"),
        (lambda a: a.update(topk_index=a["topk_index"] + len(VECTORS)), "names an item that is not in the item table"),
        (lambda a: a.update(topk_index=np.roll(a["topk_index"], 1, axis=1)), "topk_index is off"),
        (twice, "names an item twice"),
        (lambda a: a.update(topk_score=a["topk_score"] + 1), "topk_score is off its golden values by 1, more than"),
        (lambda a: a.update(embedding=a["embedding"] * np.nan), "embedding is off its golden values by nan"),
        (lambda a: a.update(embedding=a["embedding"][:, :3]), r"embedding is \(64, 3\), not \(64, 64\)"),
        (lambda a: a.pop("topk_index"), r"topk_index is None, not \(64, 100\)"),
    ],
)
def test_other_answers_are_refused(answers: Tensors, spoil: Callable[[Tensors], None], why: str) -> None:
    """Every other deviation is refused in one line that names the tensor."""
    spoil(answers)
    with pytest.raises(GoldenError, match=why):
        off(answers)


def test_a_server_that_gives_other_items_is_refused(
    answers: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publication ends where the server answers right scores and user vectors for wrong items."""
    monkeypatch.setattr(Server, "_infer", lambda *_: answers)
    server = Server(TritonAddress("127.0.0.1:1"))
    server.try_golden(SHIPPED, 1)
    other = Path(shutil.copytree(SHIPPED, tmp_path / "other"))
    misnumber(other)
    with pytest.raises(ReleaseError, match="user_encoder version 2: topk_index is off its golden values"):
        server.try_golden(other, 2)
    server.close()


def test_a_table_of_noise_does_not_fit(answers: Tensors) -> None:
    """A table of item vectors that are not the graph's fails the check."""
    noise = np.random.default_rng(0).standard_normal(VECTORS.shape).astype(np.float32)
    assert answers["topk_index"].min() >= FIRST_ITEM
    with pytest.raises(GoldenError, match="topk_index is off"):
        check_answers(answers, answers, USER_ENCODER_OUTPUTS, noise, TOLERANCE)
