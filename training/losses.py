"""The objective: next item by full softmax, next behaviour type beside it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from training.examples import IGNORE
from workers.core.features import FIRST_ITEM

TYPE_WEIGHT = 0.1


def next_item_loss(hidden: Tensor, next_item: Tensor, vectors: Tensor) -> Tensor:
    """Cross entropy over all N items at the valid positions only.

    `hidden` [B, L, D], `next_item` [B, L] in the encoder's index space, `vectors`
    [N, D]. Padding is dropped before the product with the table, the costliest
    step: [valid, N] instead of [B · L, N].
    """
    valid = next_item != IGNORE
    logits = hidden[valid] @ vectors.T  # [valid, N]
    return functional.cross_entropy(logits, next_item[valid].long() - FIRST_ITEM)


def next_type_loss(logits: Tensor, next_type: Tensor) -> Tensor:
    """Cross entropy over the T behaviour types; `logits` [B, L, T], `next_type` [B, L] with index 1 first."""
    valid = next_type != IGNORE
    return functional.cross_entropy(logits[valid], next_type[valid].long() - 1)


def multi_task_loss(item_loss: Tensor, type_loss: Tensor) -> Tensor:
    """The training objective."""
    return item_loss + TYPE_WEIGHT * type_loss
