"""The smallest version: no network. Its encoder is the nearness of texts, beside which popularity is weighed.

It has the files of any other version. An item stands at its whitened text, and a user at the faded mean of the user's
items. Where there are no texts, all vectors are zeros and popularity alone ranks.
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import torch
from freshet.core.features import FIRST_ITEM
from freshet.core.reasons import decay_weights
from torch import Tensor
from torch.nn import functional

from freshet_training.baselines import FADING
from freshet_training.model import UserEncoder
from freshet_training.model_shape import ModelShape
from freshet_training.text.whitening import WIDTH, fit_whitening


class NearestText(UserEncoder):
    """A user encoder that learns nothing: the faded mean of the user's items, as long as a network's user vector."""

    fade: Tensor

    def __init__(self, config: ModelShape, text_embeddings: Tensor) -> None:
        """`text_embeddings` [N, TEXT_DIM] in index order. The vectors are `WIDTH` wide, whatever `config` says."""
        shape = replace(config, dim=WIDTH, blocks=1, heads=1, feed_forward=1)  # no block is computed
        super().__init__(shape, text_embeddings)
        fade = torch.from_numpy(decay_weights(config.length, FADING))
        self.register_buffer("fade", fade, persistent=False)  # [L]
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            mean, directions = fit_whitening(text_embeddings.numpy())
            self.log_scale.fill_(-log(config.temperature))
            self.tower.project.weight.copy_(torch.from_numpy(directions))
            self.tower.project.bias.copy_(torch.from_numpy(-directions @ mean))
        self.eval()

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """The item table `[N, D]`, or `rows` of it; an item without text has zeros."""
        text = self.text if rows is None else self.text[rows]
        return super().item_vectors(rows) * text.any(dim=1, keepdim=True)

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
        read = functional.embedding(item_index, table) * self.fade[-item_index.shape[1] :, None]  # [B, L, D]
        # Types and gaps are inputs of every version, and a graph keeps no input that it does not read.
        unread = (event_type + time_gap).sum(dim=1)[:, None, None].to(read.dtype) * 0.0
        return functional.normalize(read.sum(dim=1, keepdim=True), dim=-1) * self.log_scale.exp() + unread
