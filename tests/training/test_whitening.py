"""Whitened texts: what is common to a catalogue's texts counts for less, and a version serves the same map."""

import numpy as np
import pytest
import torch
from freshet.core.features import TEXT_DIM
from freshet_training.model_shape import ModelShape
from freshet_training.text.whitening import FLOOR, POWER, WIDTH, fit_whitening
from freshet_training.without_network import NearestText
from numpy.typing import NDArray

RANDOM = np.random.default_rng(0)


def in_a_cone(number: int) -> NDArray[np.float32]:
    """Texts whose common part is ten times as long as what tells them apart; the first two tell little apart too."""
    common, spread = np.zeros(TEXT_DIM), np.linspace(1.0, 0.1, TEXT_DIM)
    common[7] = 10 * TEXT_DIM**0.5
    texts = RANDOM.normal(size=(number, TEXT_DIM)) * spread + common
    return np.asarray(texts / np.linalg.norm(texts, axis=1, keepdims=True), np.float32)


def test_the_common_part_is_gone_and_wide_directions_count_less() -> None:
    """The mean of the vectors is zero before they are made of length 1, and each spread is a power of what it was."""
    texts = in_a_cone(9000)
    whitening = fit_whitening(texts)
    vectors = (texts - whitening.mean) @ whitening.directions.T
    assert np.abs(vectors.mean(axis=0)).max() < 1e-4
    before = np.linalg.eigvalsh(np.cov(texts.T, bias=True))[::-1][:WIDTH]
    after = vectors.var(axis=0)
    expected = before * (before / before[0] + FLOOR) ** (-2 * POWER)
    assert after == pytest.approx(expected, rel=1e-3)


def test_no_text_has_no_place() -> None:
    """An item without text has zeros, and does not move the others."""
    texts = in_a_cone(500)
    with_gaps = np.concatenate([texts, np.zeros((100, TEXT_DIM), np.float32)])
    vectors = fit_whitening(with_gaps)(with_gaps)
    assert not vectors[500:].any()
    assert vectors[:500] == pytest.approx(fit_whitening(texts)(texts))
    assert np.linalg.norm(vectors[:500], axis=1) == pytest.approx(1)


@pytest.mark.parametrize("number", [0, 1, 2, 20])
def test_small_catalogues_have_places(number: int) -> None:
    """Few texts, or none, give finite vectors, and directions that no two texts differ in are zeros."""
    texts = in_a_cone(number)
    whitening = fit_whitening(texts)
    assert np.isfinite(whitening(texts)).all()
    if number > 1:
        assert np.count_nonzero(whitening.directions.any(axis=1)) == number - 1
    if number == 1:
        assert np.linalg.norm(whitening(texts)) == pytest.approx(1)


def test_a_version_serves_the_same_map() -> None:
    """Item table and item tower of a version without a network are the whitened texts."""
    texts = in_a_cone(300)
    texts[5] = 0
    model = NearestText(ModelShape(len(texts), 1), torch.from_numpy(texts))
    expected = fit_whitening(texts)(texts)
    with torch.no_grad():
        assert model.item_vectors().numpy() == pytest.approx(expected, abs=1e-5)
        assert model.tower(torch.from_numpy(texts[:5])).numpy() == pytest.approx(expected[:5], abs=1e-5)
