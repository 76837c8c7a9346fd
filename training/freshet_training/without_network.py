"""The smallest version: no network. Its encoder is the nearness of texts, beside which popularity is weighed.

It has the files of any other version. An item stands at its text, projected on the directions in which the texts of
the catalogue differ most. A user stands at the faded mean of the user's items. Where there are no texts, all
vectors are zeros and popularity alone ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from freshet.core.features import FIRST_ITEM
from freshet.core.reasons import decay_weights
from torch import Tensor
from torch.nn import functional

from freshet_training.baselines import FADING
from freshet_training.model import UserEncoder
from freshet_training.model_shape import ModelShape

FITTED_TEXTS = 20_000
"""Texts that the directions are computed from, at most."""


class NearestText(UserEncoder):
    """A user encoder that learns nothing: the faded mean of the user's items, of length 1."""

    fade: Tensor

    def __init__(self, config: ModelShape, text_embeddings: Tensor) -> None:
        """`text_embeddings` [N, TEXT_DIM] in index order."""
        super().__init__(config, text_embeddings)
        fade = torch.from_numpy(decay_weights(config.length, FADING))
        self.register_buffer("fade", fade, persistent=False)  # [L]
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            directions = _directions(text_embeddings[text_embeddings.any(dim=1)], config.dim)
            self.tower.project.weight[: len(directions)] = directions
        self.eval()

    def forward(
        self,
        item_index: Tensor,
        event_type: Tensor,
        time_gap: Tensor,
        vectors: Tensor,
        last_only: bool = False,  # noqa: ARG002 - there is no other position
    ) -> Tensor:
        """Indices `[B, L]` and the item table `[N, D]` → user vectors `[B, 1, D]`."""
        nothing = torch.zeros(FIRST_ITEM, vectors.shape[1])
        table = torch.cat([nothing, vectors])
        read = functional.embedding(item_index, table) * self.fade[:, None]  # [B, L, D]
        # Types and gaps are inputs of every version, and a graph keeps no input that it does not read.
        unread = (event_type + time_gap).sum(dim=1)[:, None, None].to(read.dtype) * 0.0
        return functional.normalize(read.sum(dim=1, keepdim=True), dim=-1) + unread


def _directions(texts: Tensor, number: int) -> Tensor:
    """The `number` directions `[number, TEXT_DIM]` in which texts `[n, TEXT_DIM]` are longest."""
    every = max(1, len(texts) // FITTED_TEXTS)
    sample = texts[::every].double().numpy()
    _, vectors = np.linalg.eigh(sample.T @ sample)  # ascending
    return torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1][:, :number].T)).float()
