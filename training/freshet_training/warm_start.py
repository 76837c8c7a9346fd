"""An incremental run starts from the weights of a version: known items stay where they are, new ones enter by text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from freshet.bundle.bundle import Bundle
from freshet.core.features import FIRST_ITEM
from freshet.errors import FreshetError
from safetensors.torch import load_file

from freshet_training.model import UserEncoder

RESIDUAL = "residual.weight"
TYPE_ROWS = {"type_embedding.weight": 1, "type_head.weight": 0, "type_head.bias": 0}
"""Tensors with a row per behaviour type, and the rows that stand before the first type's."""


class WarmStartError(FreshetError):
    """The version's weights do not fit the settings; the message says which and what to do."""


@torch.no_grad()
def warm_start(model: UserEncoder, parent: Bundle, item_ids: Sequence[str], types: Sequence[str]) -> None:
    """Give `model` the weights of `parent`; `item_ids` and `types` are the model's, in index order.

    An item that `parent` knows keeps its place, the direction of its vector, even
    where its text has changed; a new one stands at its text alone. Raises `WarmStartError`.
    """
    stored = load_file(parent.path / "weights.safetensors")
    own = model.state_dict()
    for name, value in own.items():
        if name == RESIDUAL:
            continue
        if name not in stored:
            raise WarmStartError(f"{parent.path} has no weights {name}: train anew, without --incremental")
        if name in TYPE_ROWS:
            _take_types(value, stored[name], TYPE_ROWS[name], types, parent.manifest.types)
        elif value.shape == stored[name].shape:
            value.copy_(stored[name])
        else:
            shapes = f"{tuple(stored[name].shape)} and not {tuple(value.shape)}"
            raise WarmStartError(f"{parent.path} has {name} of shape {shapes}: train anew, without --incremental")
    known = parent.item_index
    places = [(row, known[item] - FIRST_ITEM) for row, item in enumerate(item_ids) if item in known]
    residual = torch.zeros_like(own[RESIDUAL])
    if places:
        rows, places_there = (torch.tensor(column) for column in zip(*places, strict=True))
        projected = model.tower.project(model.text[rows])
        size = (projected + stored[RESIDUAL][places_there]).norm(dim=-1, keepdim=True)
        residual[rows] = torch.from_numpy(parent.item_vectors)[places_there] * size - projected
    own[RESIDUAL].copy_(residual)


def _take_types(
    value: torch.Tensor, stored: torch.Tensor, first: int, types: Sequence[str], there: Sequence[str]
) -> None:
    value[:first] = stored[:first]
    for row, kind in enumerate(types):
        if kind in there:
            value[first + row] = stored[first + there.index(kind)]
