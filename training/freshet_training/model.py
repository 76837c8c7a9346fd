"""The user encoder: a causal transformer over a user's recent events.

Item representation = projected text embedding + a learned residual per item.
While training, residuals of random items are dropped, so that the projection
alone is a good place for an item that was never seen. A residual may be learned
in two parts, the item's own and the mean of learned vectors of its text's words
(as fastText's of a word's parts; Bojanowski et al. 2017, arXiv:1607.04606): rare
items then learn from those that share a brand or a kind. Both are one residual
when training ends (`merged`).

Positions are relative (a learned bias per head and distance, as in T5;
Raffel et al. 2020, arXiv:1910.10683, without its buckets), so a row's meaning
does not depend on where it starts: the output at position j of a training row
is the output for the state that ends there. The next-item objective with
item-vector scores is SASRec's (Kang & McAuley 2018, arXiv:1808.09781).

Scores are cosines times a learned scale: item vectors are of length 1 and the
user's of length `scale`. A frequent item then has no longer vector than a rare
one, and the text alone places a new item on equal terms.

Shapes: B rows, L = `length` positions, D = `dim`, H heads, N items.
"""

from __future__ import annotations

from math import log

import torch
from freshet.core.features import FIRST_ITEM, GAP_BUCKETS, PADDING, TEXT_DIM, UNKNOWN
from torch import Tensor, nn
from torch.nn import functional

from freshet_training.model_shape import ModelShape

PADDED = -1e4
FUTURE = -4e4
"""Added to attention scores that must not count; finite, also in half precision and where both apply. A padding
position has only padding to look at, so the future must weigh less than padding does."""


class ItemTower(nn.Module):
    """Text embedding `[n, TEXT_DIM]` → item vector `[n, D]` of length 1: where an item with no events stands."""

    def __init__(self, config: ModelShape) -> None:
        super().__init__()
        self.project = nn.Linear(TEXT_DIM, config.dim)
        nn.init.normal_(self.project.weight, std=0.5 * config.dim**-0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, text_embedding: Tensor) -> Tensor:
        """[n, TEXT_DIM] → [n, D]."""
        return functional.normalize(self.project(text_embedding), dim=-1)


class Block(nn.Module):
    """One pre-norm transformer block.

    Products are of one matrix, and a sum is laid out anew before it is normed: ONNX Runtime then adds the bias within
    the product, and leaves the norm alone (its fused kernel of sum and norm takes five times as long as the two).
    """

    def __init__(self, config: ModelShape) -> None:
        super().__init__()
        self.heads = config.heads
        self.width = config.dim // config.heads
        self.attention_norm = nn.LayerNorm(config.dim)
        self.query = nn.Linear(config.dim, config.dim)
        self.key_value = nn.Linear(config.dim, 2 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, config.length))
        self.feed_norm = nn.LayerNorm(config.dim)
        self.feed_in = nn.Linear(config.dim, config.feed_forward)
        self.feed_out = nn.Linear(config.feed_forward, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        attention = config.attention_dropout
        self.attention_dropout = nn.Dropout(config.dropout if attention is None else attention)

    def forward(self, x: Tensor, padding: Tensor, causal: Tensor, distance: Tensor) -> Tensor:
        """`x` [B, L, D], `padding` [B, 1, 1, L], `causal` and `distance` [L, L] → [B, L, D]."""
        shape = x.shape[:2]
        normed = self.attention_norm(x).flatten(0, 1)  # [B · L, D]
        query = self._split(self.query(normed), shape) * self.width**-0.5  # [B, H, L, D/H]
        key, value = (self._split(part, shape) for part in self.key_value(normed).chunk(2, dim=-1))  # [B, H, L, D/H]
        bias = self.distance_bias[:, distance] + causal  # [H, L, L]
        weights = functional.softmax(query @ key.transpose(-1, -2) + bias + padding, dim=-1)  # [B, H, L, L]
        mixed = (self.attention_dropout(weights) @ value).transpose(1, 2).reshape(-1, x.shape[2])  # [B · L, D]
        return self._feed(x.flatten(0, 1) + self.dropout(self.out(mixed)), shape)

    def last(self, x: Tensor, padding: Tensor) -> Tensor:
        """The last position of what `forward` gives, [B, 1, D], without the keys and values of the others.

        There is one query, so for each head q · (K n) is (Kᵀ q) · n, and Σ a V n is V Σ a n (as DeepSeek-V2 does with
        its compressed keys, arXiv:2405.04434). The keys' bias moves all of a softmax alike, the values' comes whole.
        """
        length, dim = x.shape[1:]
        normed = self.attention_norm(x)  # [B, L, D]
        query = self.query(normed[:, -1]).view(-1, self.heads, 1, self.width) * self.width**-0.5
        key, value = self.key_value.weight.view(2, self.heads, self.width, dim)  # [H, D/H, D]
        looked_for = (query @ key).squeeze(2)  # [B, H, D]
        bias = self.distance_bias[:, :length].flip(-1) + padding.squeeze(2)  # [B, H, L]
        weights = self.attention_dropout(functional.softmax(looked_for @ normed.transpose(1, 2) + bias, dim=-1))
        mixed = (weights @ normed).unsqueeze(2) @ value.transpose(-1, -2)  # [B, H, 1, D/H]
        mixed = mixed.flatten(1) + self.key_value.bias[dim:]  # [B, D]
        return self._feed(x[:, -1] + self.dropout(self.out(mixed)), x[:, -1:].shape[:2])

    def _feed(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The second half of the block: [B · L, D] → [B, L, D]."""
        hidden = functional.relu(self.feed_in(self.feed_norm(rows.unflatten(0, shape)).flatten(0, 1)))
        return (rows + self.dropout(self.feed_out(hidden))).unflatten(0, shape)

    def _split(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """[B · L, D] → [B, H, L, D/H]."""
        return rows.view(*shape, self.heads, self.width).transpose(1, 2)


class UserEncoder(nn.Module):
    """Recent events → the user's vector; an item's score is its dot product with it."""

    distance: Tensor
    causal: Tensor
    text: Tensor
    word_numbers: Tensor | None

    def __init__(self, config: ModelShape, text_embeddings: Tensor, word_numbers: Tensor | None = None) -> None:
        """`text_embeddings` [N, TEXT_DIM] in index order; kept as data, not as weights.

        `word_numbers` [N, W] number the words of each item's text, counted from 1; 0 fills a row up.
        """
        super().__init__()
        if text_embeddings.shape != (config.items, TEXT_DIM):
            raise ValueError(f"text embeddings are {tuple(text_embeddings.shape)}, not ({config.items}, {TEXT_DIM})")
        self.config = config
        self.tower = ItemTower(config)
        self.residual = nn.Embedding(config.items, config.dim)
        self.special = nn.Embedding(FIRST_ITEM, config.dim)  # padding (an empty history) and unknown item
        self.type_embedding = nn.Embedding(config.types + 1, config.dim)
        self.gap_embedding = nn.Embedding(GAP_BUCKETS, config.dim)
        self.input_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.output_norm = nn.LayerNorm(config.dim)
        self.log_scale = nn.Parameter(torch.tensor(-log(config.temperature)))
        self.type_head = nn.Linear(config.dim, config.types)
        for embedding in (self.residual, self.special, self.type_embedding, self.gap_embedding):
            nn.init.normal_(embedding.weight, std=0.5 * config.dim**-0.5)
        self.register_buffer("word_numbers", word_numbers, persistent=False)
        if word_numbers is not None:
            self.word_vectors = nn.Embedding(int(word_numbers.max()) + 1, config.dim)
            nn.init.normal_(self.word_vectors.weight, std=0.5 * config.dim**-0.5)
        position = torch.arange(config.length)
        self.register_buffer("text", text_embeddings, persistent=False)
        self.register_buffer("distance", (position[:, None] - position).clamp(min=0), persistent=False)  # [L, L]
        causal = torch.where(position[:, None] >= position, 0.0, FUTURE)
        self.register_buffer("causal", causal, persistent=False)  # [L, L]

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """The item table `[N, D]`, or `rows` of it; in training, `item_dropout` of the items stand by text alone."""
        residual = self._residual(rows)
        text = self.text if rows is None else self.text[rows]
        if self.training and self.config.item_dropout:
            kept = torch.rand(len(residual), 1, device=residual.device) >= self.config.item_dropout
            residual = residual * kept
        return functional.normalize(self.tower.project(text) + residual, dim=-1)

    def _residual(self, rows: Tensor | None = None) -> Tensor:
        own = self.residual.weight if rows is None else self.residual(rows)
        if self.word_numbers is None:
            return own
        numbers = self.word_numbers if rows is None else self.word_numbers[rows]
        return own + functional.embedding_bag(numbers, self.word_vectors.weight, mode="mean", padding_idx=0)

    @torch.no_grad()
    def merged(self) -> UserEncoder:
        """The same encoder without words: what they have learned is part of the residuals."""
        plain = UserEncoder(self.config, self.text).to(self.text.device)
        own = self.state_dict() | {"residual.weight": self._residual()}
        plain.load_state_dict({name: own[name] for name in plain.state_dict()})
        return plain.train(self.training)

    def forward(
        self,
        item_index: Tensor,
        event_type: Tensor,
        time_gap: Tensor,
        vectors: Tensor,
        last_only: bool = False,
    ) -> Tensor:
        """Indices `[B, L]` and the item table `[N, D]` → user vectors `[B, L, D]`, or `[B, 1, D]` for `last_only`.

        L is at most the configured length: rows that are padding all on the left may be cut.
        """
        if self.training and self.config.unknown_dropout:
            lost = torch.rand(item_index.shape, device=item_index.device) < self.config.unknown_dropout
            item_index = torch.where(lost & (item_index != PADDING), UNKNOWN, item_index)
        table = torch.cat([self.special.weight, vectors])  # [2 + N, D]
        shape, index = item_index.shape, item_index.flatten()  # as products are in a block: one matrix
        x = functional.embedding(index, table) + self.type_embedding(event_type.flatten())
        x = (x + self.gap_embedding(time_gap.flatten())).unflatten(0, shape)
        x = self.dropout(self.input_norm(x))  # [B, L, D]
        # A padding position sees padding alone, all of it alike, so an empty history has a defined vector.
        padding = (item_index == PADDING).to(x.dtype)[:, None, None, :] * PADDED  # [B, 1, 1, L]
        causal, distance = self.causal[: shape[1], : shape[1]], self.distance[: shape[1], : shape[1]]  # [L, L]
        for block in self.blocks[:-1]:
            x = block(x, padding, causal, distance)
        top = self.blocks[-1]
        x = top.last(x, padding) if last_only else top(x, padding, causal, distance)
        return functional.normalize(self.output_norm(x), dim=-1) * self.log_scale.exp()
