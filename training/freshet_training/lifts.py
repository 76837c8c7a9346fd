"""What a version says of its items beside their place in the space: what their events are worth, and how rare they are.

Both are logs of ratios, so that they can stand beside the encoder's scores,
which are logs of the chance that an item is next, up to a constant:

- value: the mean behaviour weight of an item's events over the whole log's.
  Score plus value ranks by chance times worth. `SHRINKAGE` events of the mean
  weight are added to each item, so that few events say little.
- novelty: minus the log of how much more frequent an item is than a log's items
  on average. Score plus novelty ranks by the pointwise mutual information of
  user and item: by how much likelier the item is for this user than for anybody.

A behaviour with a larger weight must be worth more for value to mean that: with
the weights 0, 0 and 1 of view, click and purchase it is the chance of a purchase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from freshet.core.events import Event
from numpy.typing import NDArray

SHRINKAGE = 20.0


def item_lifts(
    events: Iterable[Event], item_ids: Sequence[str], behaviours: Mapping[str, float]
) -> NDArray[np.float32]:
    """`[len(item_ids) + 1, 2]`: value and novelty of each item, last those of an item without events."""
    row = {item: number for number, item in enumerate(item_ids)}
    count, worth = np.zeros(len(item_ids) + 1), np.zeros(len(item_ids) + 1)
    for event in events:
        number = row.get(event.item_id or "")
        if number is not None:
            count[number] += 1
            worth[number] += max(0.0, behaviours.get(event.type, 0.0))
    lifts = np.zeros((len(count), 2), np.float32)
    mean = worth.sum() / max(count.sum(), 1.0)
    if mean > 0:
        lifts[:, 0] = np.log((worth + SHRINKAGE * mean) / ((count + SHRINKAGE) * mean))
    lifts[:, 1] = novelty(count, len(item_ids))
    return lifts


def novelty(count: NDArray[np.generic], items: int) -> NDArray[np.float64]:
    """By an item's events, `[...]`, in a log of so many items; one event is added to each of them."""
    return -np.log((count + 1) * items / (count.sum() + items))
