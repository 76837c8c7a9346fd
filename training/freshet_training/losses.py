"""The objective: next item by softmax, next behaviour type beside it.

Over a large catalogue the softmax is sampled: each step draws items from a
mixture of the uniform distribution and the square root of their frequency, and
corrects each drawn score by the log of its expected count, so that the sum is
an unbiased estimate of the full one (Bengio & Senécal 2008,
doi:10.1109/TNN.2007.912312). It costs a tenth of the full softmax at 12,000 items.
"""

from __future__ import annotations

import torch
from freshet.core.features import FIRST_ITEM
from torch import Tensor
from torch.nn import functional

from freshet_training.examples import IGNORE

TYPE_WEIGHT = 0.1
TEACHING = 0.6
COLLISION = -1e4
"""Score of a drawn item that is the position's own target: it must not count twice."""


class ItemSampler:
    """Draws the items that a step's softmax runs over, for a catalogue too large to score whole."""

    def __init__(self, counts: Tensor, number: int) -> None:
        """`counts` [N] are the training targets by item; those of no target are never drawn."""
        root = counts.double().sqrt()
        seen = (counts > 0).double()
        self._chance = (0.5 * root / root.sum() + 0.5 * seen / seen.sum()).float()
        self._number = number

    def draw(self) -> tuple[Tensor, Tensor]:
        """Items `[S]`, with replacement, and the log of how often each is expected among them."""
        drawn = torch.multinomial(self._chance, self._number, replacement=True)
        return drawn, torch.log(self._chance[drawn] * self._number)


def next_item_scores(
    hidden: Tensor, next_item: Tensor, vectors: Tensor, sample: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Scores `[P, C]` of the P valid positions' candidates, and the column `[P]` of each one's own item.

    Candidates are all of `vectors`, or each position's own item and a sample. `hidden`
    [B, L, D], `next_item` [B, L] in the encoder's index space, `vectors` [R, D] by that
    index; `sample` are rows of `vectors` [S] and the log of their expected counts [S], as
    `ItemSampler` draws them. Padding is dropped before the product with the table, the costliest step.
    """
    valid = next_item != IGNORE
    hidden, target = hidden[valid], next_item[valid].long() - FIRST_ITEM  # [P, D], [P]
    if sample is None:
        return hidden @ vectors.T, target
    drawn, expected = sample
    own = (hidden * vectors[target]).sum(dim=1, keepdim=True)  # [P, 1]
    others = hidden @ vectors[drawn].T - expected  # [P, S]
    others = others.masked_fill(drawn == target[:, None], COLLISION)
    return torch.cat([own, others], dim=1), torch.zeros_like(target)


def next_item_loss(scores: Tensor, own: Tensor, taught: Tensor | None = None) -> Tensor:
    """Cross entropy of `scores` [P, C] with the item that came, in column `own` [P], and with what teachers say.

    `taught` [P, C] are the teachers' mean scores of the same candidates: the model learns their distribution with
    a weight of `TEACHING` (knowledge distillation; Hinton et al. 2015, arXiv:1503.02531, at temperature 1).
    """
    loss = functional.cross_entropy(scores, own)
    if taught is None:
        return loss
    return (1 - TEACHING) * loss + TEACHING * functional.cross_entropy(scores, taught.softmax(dim=1))


def next_type_loss(logits: Tensor, next_type: Tensor) -> Tensor:
    """Cross entropy over the T behaviour types; `logits` [B, L, T], `next_type` [B, L] with index 1 first."""
    valid = next_type != IGNORE
    return functional.cross_entropy(logits[valid], next_type[valid].long() - 1)


def multi_task_loss(item_loss: Tensor, type_loss: Tensor) -> Tensor:
    """The training objective."""
    return item_loss + TYPE_WEIGHT * type_loss
