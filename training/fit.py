"""The fit: steps over rows of like length until validation no longer gains.

A step takes about `positions` targets, from rows of like length cut to the
longest of them: where histories are short, most of a row of full length is
padding. Above `FULL_SOFTMAX` items the softmax is sampled (`losses.Sampler`)
and a step computes only the item vectors that it meets.
"""
# ruff: noqa: T201 - printed lines are its interface

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.examples import IGNORE, Examples
from training.losses import Sampler, multi_task_loss, next_item_loss, next_type_loss
from training.model import UserEncoder
from workers.core.features import FIRST_ITEM, PADDING

FULL_SOFTMAX = 4000
"""Catalogues up to this many items are scored whole at every step."""


@dataclass(frozen=True)
class Options:
    """Hyperparameters of one run."""

    epochs: int = 60
    patience: int = 4
    positions: int = 2048
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    average: float = 0.99
    negatives: int = 1500
    validate_every: int = 2
    seed: int = 0
    threads: int = 1


def fit(
    model: UserEncoder,
    rows: Callable[[np.random.Generator], Examples],
    validate: Callable[[UserEncoder], float],
    options: Options,
) -> tuple[UserEncoder, int]:
    """Train; returns the best moving average of the weights and its epoch, counted from 1.

    `rows` makes an epoch's examples. What is validated and kept is the
    exponential moving average of the weights over steps, steadier than the last ones.
    """
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    optimiser = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    average = copy.deepcopy(model).eval()
    best, best_epoch, best_model, step = -1.0, 0, average, 0
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        model.train()
        losses: list[float] = []
        examples = rows(random)
        sampler = _sampler(examples, model, options)
        for batch in batches(examples, options.positions, random):
            loss = step_loss(model, batch, sampler)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
            step += 1
            _follow(average, model, min(options.average, (1 + step) / (10 + step)))
        line = f"epoch {epoch:3d}  loss {np.mean(losses):.4f}  {time.perf_counter() - started:.1f} s"
        if epoch % options.validate_every == 0 or epoch == options.epochs:
            score = validate(average)
            line += f"  validation NDCG@10 {score:.4f}"
            if score > best:
                best, best_epoch, best_model = score, epoch, copy.deepcopy(average)
                line += "  best"
        print(line, flush=True)
        if epoch - best_epoch >= options.patience * options.validate_every:
            break
    return best_model, best_epoch


def batches(examples: Examples, positions: int, random: np.random.Generator) -> Iterator[Examples]:
    """All rows once, in steps of about `positions` targets, each step's rows cut to the longest of them."""
    targets = (examples.next_item != IGNORE).sum(axis=1)
    used = (examples.item_index != PADDING) | (examples.next_item != IGNORE)
    lengths = np.where(used.any(axis=1), used.shape[1] - used.argmax(axis=1), 1)
    order = np.argsort(lengths + 2 * random.random(len(lengths)))
    step = np.cumsum(targets[order]) // positions
    groups = np.split(order, np.flatnonzero(np.diff(step)) + 1)
    for number in random.permutation(len(groups)):
        chosen = groups[number]
        longest = int(lengths[chosen].max())
        yield Examples(*(getattr(examples, name)[chosen, -longest:] for name in Examples.__dataclass_fields__))


def step_loss(model: UserEncoder, batch: Examples, sampler: Sampler | None) -> Tensor:
    """The objective on one step's rows."""
    item_index, event_type, time_gap, next_item, next_type = (
        torch.from_numpy(np.ascontiguousarray(getattr(batch, name))) for name in Examples.__dataclass_fields__
    )
    sample = None
    if sampler is None:
        vectors = model.item_vectors()
    else:
        drawn, expected = sampler.draw()
        met = torch.cat([item_index.flatten(), next_item.flatten()]) - FIRST_ITEM
        rows = torch.unique(torch.cat([met[met >= 0].long(), drawn]))  # ascending
        vectors = model.item_vectors(rows)
        item_index, next_item = _among(item_index, rows), _among(next_item, rows)
        sample = torch.searchsorted(rows, drawn), expected
    hidden = model(item_index, event_type, time_gap, vectors)
    return multi_task_loss(
        next_item_loss(hidden, next_item, vectors, sample), next_type_loss(model.type_head(hidden), next_type)
    )


def _among(index: Tensor, rows: Tensor) -> Tensor:
    """Item indices for a table that holds only `rows`; what is no item stays."""
    place = torch.searchsorted(rows, index.long() - FIRST_ITEM) + FIRST_ITEM
    return torch.where(index >= FIRST_ITEM, place, index.long())


def _sampler(examples: Examples, model: UserEncoder, options: Options) -> Sampler | None:
    if model.config.items <= FULL_SOFTMAX:
        return None
    targets: NDArray[np.int32] = examples.next_item[examples.next_item != IGNORE] - FIRST_ITEM
    return Sampler(torch.from_numpy(np.bincount(targets, minlength=model.config.items)), options.negatives)


@torch.no_grad()
def _follow(average: UserEncoder, model: UserEncoder, decay: float) -> None:
    """Move the averaged weights towards the newest ones."""
    for kept, newest in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(newest, 1 - decay)
