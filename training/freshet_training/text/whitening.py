"""Whitened texts: the directions in which all texts of a catalogue are alike count for less.

Sentence vectors lie in a narrow cone: a few directions hold most of their length and say little of which item is
meant. So the mean is taken away and each principal direction is divided by a power of its spread (Su et al. 2021,
arXiv:2103.15316, who divide by all of it).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH = 256
"""Directions that are kept, the widest ones."""
POWER = 0.4
"""Each direction is divided by its variance to this power; .5 would make all of them alike."""
FLOOR = 0.003
"""What is added to each variance, as a part of the largest one: the narrowest directions are noise."""
FLOOR_PER_DIRECTION = 0.1
"""And so much for each direction a text: of few texts the variances are not known, and whitening would make them up."""
FITTED_TEXTS = 20_000
"""Texts that the directions are computed from, at most."""


class Whitening(NamedTuple):
    """An affine map of text embeddings: the mean `[E]` that is taken away, then the directions `[W, E]`."""

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]

    def __call__(self, texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors `[n, W]` of length 1; a text of zeros, which stands for no text, has zeros."""
        vectors = (texts - self.mean) @ self.directions.T
        vectors *= texts.any(axis=1, keepdims=True)
        unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return unit


def fit_whitening(texts: NDArray[np.float32]) -> Whitening:
    """The whitening of a catalogue's texts `[n, E]`, of which those of zeros do not count.

    W is `WIDTH`, or E where E is less. Directions in which the texts do not differ are zeros.
    """
    given = texts[texts.any(axis=1)]
    width = min(WIDTH, texts.shape[1])
    if not len(given):
        return Whitening(np.zeros(texts.shape[1], np.float32), np.zeros((width, texts.shape[1]), np.float32))
    sample = given[:: -(-len(given) // FITTED_TEXTS)].astype(np.float64)
    mean = sample.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(sample.T, bias=True))  # ascending
    variances, vectors = np.maximum(variances[::-1][:width], 0), vectors[:, ::-1][:, :width]
    if not variances[0]:  # one text, or all alike: nearness to it is all there is
        return Whitening(np.zeros(texts.shape[1], np.float32), np.eye(width, texts.shape[1], dtype=np.float32))
    differs = variances > variances[0] * 1e-6
    floor = max(FLOOR, FLOOR_PER_DIRECTION * width / len(given))
    directions = np.where(differs, vectors * (variances / variances[0] + floor) ** -POWER, 0)
    return Whitening(mean.astype(np.float32), np.ascontiguousarray(directions.T, np.float32))
