"""The items that one model version can rank, and how popular they are at a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshet.core.cold_items import order_keys
from freshet.core.features import FIRST_ITEM
from freshet.core.popularity import Popularity

POPULAR_CANDIDATES = 50
"""The most popular items are candidates of every list."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Popularity at one moment: `values` float32 `[rows]` is log1p of the counts, `popular` the highest rows.

    `size` is how many rows there were: later items are no candidates.
    """

    values: NDArray[np.float32]
    popular: NDArray[np.int64]
    size: int


class ItemSpace:
    """All rankable items of one model version: its own, then the cold ones in order of arrival.

    Row = the encoder's item index. `vectors` is float32 `[rows, D]`, D the version's width,
    `available` bool `[rows]`, `prior` the popularity that lists are made with
    unless they are given another. It is made of the counts when somebody asks for it.
    """

    def __init__(
        self, item_ids: Sequence[str], vectors: NDArray[np.float32], lifts: NDArray[np.float32] | None = None
    ) -> None:
        """`lifts` are `[len(item_ids) + 1, 2]`, value and novelty, last those of cold items; without it all are 0."""
        self.trained = FIRST_ITEM + len(item_ids)
        self.size = self.trained
        self.ids: list[str] = ["", "", *item_ids]
        self.index: dict[str, int] = {item: row for row, item in enumerate(self.ids) if row >= FIRST_ITEM}
        self.vectors = np.zeros((self.size, vectors.shape[1]), np.float32)
        self.vectors[FIRST_ITEM:] = vectors
        self.available = np.ones(self.size, np.bool_)
        self.available[:FIRST_ITEM] = False
        self._lifts = np.zeros((len(item_ids) + 1, 2), np.float32) if lifts is None else lifts
        self._lifted: dict[tuple[float, float], NDArray[np.float32]] = {}
        self._prior: Prior | None = None
        self.longest_cold = 0.0
        """A bound of the lengths of cold items' vectors."""
        self._moves = 0
        self._moved: dict[int, int] = {}
        """The number of each cold row's last move."""
        self._popularity = Popularity.of({})
        self._slot_rows = SlotRows(self)

    def add_cold(self, items: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Place items `[n]` by their vectors `[n, D]`; one already cold moves to its new place."""
        for item, vector in zip(items, vectors, strict=True):
            row = self.index.get(item)
            if row is None:
                row = self._append(item)
            elif not np.array_equal(self.vectors[row], vector):
                self._moves += 1
                self._moved[row] = self._moves
            self.vectors[row] = vector
        self.longest_cold = max(self.longest_cold, float(np.linalg.norm(vectors, axis=1).max(initial=0.0)))
        self._prior = None

    def moved_since(self, moves: int) -> tuple[list[int], int]:
        """The cold rows that moved since there were so many moves, and how many moves there are now."""
        rows = [row for row, move in self._moved.items() if move > moves] if moves < self._moves else []
        return rows, self._moves

    def _append(self, item: str) -> int:
        row = self.size
        if row == len(self.vectors):
            spare = max(256, row // 2)
            self.vectors = np.concatenate([self.vectors, np.zeros((spare, self.vectors.shape[1]), np.float32)])
            self.available = np.concatenate([self.available, np.zeros(spare, np.bool_)])
        self.available[row] = True
        self.ids.append(item)
        self.index[item] = row
        self.size = row + 1
        return row

    def set_available(self, item: str, available: bool) -> None:
        """Let an item into lists, or keep it out of them at once."""
        row = self.index.get(item)
        if row is not None:
            self.available[row] = available

    def is_trained(self, item: str) -> bool:
        """Whether the item is of the version's own vocabulary."""
        return self.index.get(item, self.trained) < self.trained

    def lift(self, value_weight: float, novelty_weight: float) -> NDArray[np.float32]:
        """What the items' value and novelty, by these weights, add to each row's score: `[rows]` or longer."""
        key = value_weight, novelty_weight
        lifted = self._lifted.get(key)
        if lifted is None or len(lifted) < self.size:
            value, novelty = self._lifts.T
            by_item = np.float32(value_weight) * value + np.float32(novelty_weight) * novelty
            lifted = np.full(len(self.vectors), by_item[-1])
            lifted[FIRST_ITEM : self.trained] = by_item[:-1]
            self._lifted[key] = lifted
        return lifted

    def set_popularity(self, popularity: Popularity) -> None:
        """Take new popularity counts."""
        if popularity.items is not self._popularity.items:
            self._slot_rows = SlotRows(self)
        self._popularity = popularity
        self._prior = None

    @property
    def prior(self) -> Prior:
        """The popularity of now."""
        if self._prior is None:
            items, counts = self._popularity
            rows = self._slot_rows.of(items)[: len(counts)]
            there = rows > 0
            self._prior = self.prior_of(rows[there], counts[there])
        return self._prior

    def prior_of(
        self,
        rows: NDArray[np.int64],
        counts: NDArray[np.float64],
        size: int | None = None,
        candidates: int | None = POPULAR_CANDIDATES,
    ) -> Prior:
        """The prior in which the items at `rows` `[n]` have these counts `[n]`, and all others none.

        `size` is how many rows there were at that moment, where that is past; so
        many of the most popular are `candidates`, all of them with None.
        """
        size = self.size if size is None else size
        values = np.zeros(len(self.vectors), np.float32)
        values[rows] = np.log1p(counts)
        rankable = values[FIRST_ITEM:size]
        highest = np.arange(len(rankable), dtype=np.int32)
        if candidates is not None and candidates < len(rankable):
            lowest = np.partition(rankable, -candidates)[-candidates]
            highest = np.flatnonzero(rankable >= lowest).astype(np.int32)
        keys = np.sort(order_keys(rankable[highest], highest + np.int32(FIRST_ITEM)))[:candidates]
        return Prior(values, keys & 0xFFFFFFFF, size)


class SlotRows:
    """The row of an item space for each slot of popularity counts, 0 for none.

    The rows grow with the space and with the slots.
    """

    def __init__(self, space: ItemSpace) -> None:
        self._space = space
        self._size = 0
        self._rows = np.zeros(0, np.int64)

    def of(self, items: Sequence[str]) -> NDArray[np.int64]:
        """Rows `[len(items)]`."""
        if self._size != self._space.size:
            self._size = self._space.size
            self._rows = self._rows[:0]
        if len(self._rows) < len(items):
            index, known = self._space.index, len(self._rows)
            newer = [index.get(items[slot], 0) for slot in range(known, len(items))]
            self._rows = np.concatenate([self._rows, np.array(newer, np.int64)])
        return self._rows
