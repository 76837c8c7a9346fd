"""The items nearest to an item, by the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from freshet.core.cold_items import order_keys
from freshet.core.features import FIRST_ITEM
from freshet.core.item_space import ItemSpace


def nearest(space: ItemSpace, row: int, size: int, without: Collection[str] = ()) -> list[tuple[int, float]]:
    """The rows of the `size` available items nearest to `row`, the nearest first, with their cosines.

    Items of `without` are left out, and so is the item itself. Equal ones go by row.
    """
    vectors = space.vectors[: space.size]
    norms = np.maximum(np.linalg.norm(vectors, axis=1), np.float32(1e-9))
    # einsum, for a product through BLAS depends on its threads in its last bits
    cosines = np.einsum("nd,d->n", vectors, vectors[row]) / (norms * norms[row])
    wanted = space.available[: space.size].copy()
    wanted[:FIRST_ITEM] = wanted[row] = False
    wanted[[known for item in without if (known := space.index.get(item)) is not None]] = False
    rows = np.flatnonzero(wanted).astype(np.int32)
    ranked = rows[np.argsort(order_keys(cosines[rows], rows), kind="stable")][:size].tolist()
    return [(near, float(cosines[near])) for near in ranked]
