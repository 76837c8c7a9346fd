"""The shoppers: what each shopper likes at any moment, and the chances that follow.

Everything is a function of the seed and of (shopper, item, slot, time):

- a taste per word: a part for life, and a part that drifts from week to week;
- a mood: the department a shopper is after on a given day, drawn by taste;
- a chance to look at a slot, which falls with its rank (the examination
  hypothesis; Richardson et al. 2007), and, having looked, to view the item, then
  to click, then to purchase.

A click on slot k therefore has the chance `looks[k] · view · click`, independent of the other slots. This is a
position-based click model whose truth is known in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from freshet.simulate.catalogue import Assortment
from freshet.simulate.draws import Draw, generator

BEHAVIOURS = ("view", "click", "purchase")
SLOTS = 50
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
HOUR_MS = 3_600_000
"""Chances stand still within an hour of the clock."""
BLOCK = 256
"""Shoppers are drawn in blocks of consecutive numbers."""
TASTE_SPREAD = 1.2
DRIFT = 0.5
"""Share of a taste's variance that changes from week to week."""
MOOD = 1.5
"""What being of the department that a shopper is after is worth to an item."""
QUALITY = 0.4
THRIFT = 0.4
"""What one standard deviation of price above the department's mean costs, on average."""
LEVELS = (-1.4, -2.4, -3.4)
"""Log odds of view, click and purchase for an item that leaves a shopper cold."""
DECAY = 0.8


class Shoppers:
    """Everybody who ever comes, by number; `looks` `[SLOTS]` are the chances that a slot is looked at."""

    def __init__(self, seed: int, catalogue: Assortment, origin: int, users: int) -> None:
        """`origin` is the time (ms) at which day 0 begins; what is drawn for about so many `users` is remembered."""
        self.catalogue = catalogue
        self.origin = origin
        self.looks = np.round(1.0 / np.arange(1, SLOTS + 1) ** DECAY, 6)
        self._seed = seed
        blocks = users // BLOCK + 2
        self._block = lru_cache(maxsize=5 * blocks)(self._drawn)
        self._mood_block = lru_cache(maxsize=2 * blocks)(self._drawn_moods)
        home = np.zeros((len(catalogue.departments), max(2, len(catalogue.vocabulary))), np.float32)
        column = {word: number for number, word in enumerate(catalogue.vocabulary)}
        for row, name in enumerate(catalogue.departments):
            if name in column:
                home[row, column[name]] = 1
        self._home = home
        self._width = max(2, len(catalogue.vocabulary))

    def tastes(self, shoppers: NDArray[np.int64], ts: int) -> NDArray[np.float32]:
        """Tastes `[len(shoppers), words]` at a time (ms)."""
        ts -= ts % HOUR_MS
        week, into = divmod(ts - self.origin, WEEK_MS)
        turn = into / WEEK_MS
        life = self._rows(shoppers, Draw.TASTE, 0)
        before, after = (self._rows(shoppers, Draw.FASHION, week + step) for step in (0, 1))
        # turning from one week's draw to the next keeps the variance
        drifting = math.cos(turn * math.pi / 2) * before + math.sin(turn * math.pi / 2) * after
        tastes = TASTE_SPREAD * (math.sqrt(1 - DRIFT) * life + math.sqrt(DRIFT) * drifting)
        return tastes.astype(np.float32, copy=False)

    def thrift(self, shoppers: NDArray[np.int64]) -> NDArray[np.float64]:
        """How much a high price puts each shopper off, `[len(shoppers)]`."""
        return THRIFT * np.exp(0.5 * self._rows(shoppers, Draw.HABIT, 0)[:, 0].astype(np.float64))

    def zeal(self, shoppers: NDArray[np.int64]) -> NDArray[np.float64]:
        """How often each shopper comes, relative to the mean, `[len(shoppers)]`."""
        return np.exp(0.7 * self._rows(shoppers, Draw.HABIT, 0)[:, 1].astype(np.float64) - 0.245)

    def moods(self, shoppers: NDArray[np.int64], ts: int) -> NDArray[np.int64]:
        """The department that each shopper is after on the day of a time (ms), `[len(shoppers)]`."""
        day = (ts - self.origin) // DAY_MS
        blocks, rows = np.divmod(shoppers, BLOCK)
        moods = np.empty(len(shoppers), np.int64)
        for block in np.unique(blocks):
            mine = blocks == block
            moods[mine] = self._mood_block(int(block), int(day))[rows[mine]]
        return moods

    def chances(self, shoppers: NDArray[np.int64], items: NDArray[np.int64], ts: int) -> NDArray[np.float64]:
        """Chances `[shoppers, items, 3]` of a view having looked, a click having viewed, a purchase having clicked.

        `items` `[shoppers, n]` are numbers of the catalogue.
        """
        shop = self.catalogue
        liking = np.einsum("sw,snw->sn", self.tastes(shoppers, ts), shop.words[items]).astype(np.float64)
        liking += QUALITY * shop.quality[items]
        liking += MOOD * (shop.department[items] == self.moods(shoppers, ts)[:, None])
        dearness = self.thrift(shoppers)[:, None] * shop.dear[items]
        odds = np.stack([liking, liking - dearness, liking - 2 * dearness], axis=2) + LEVELS
        return np.round(1 / (1 + np.exp(-odds)), 6)

    def expected(self, shopper: int, items: Sequence[int], ts: int) -> NDArray[np.float64]:
        """The truth: chances `[items, 3]` of view, click and purchase of each slot of a list that is shown once."""
        chances = self.chances(np.array([shopper]), np.array([items], np.int64), ts)[0]
        return self.looks[: len(items), None] * np.cumprod(chances, axis=1)

    def _rows(self, shoppers: NDArray[np.int64], draw: Draw, epoch: int) -> NDArray[np.float32]:
        """What was drawn for shoppers, `[len(shoppers), words]`."""
        blocks, rows = np.divmod(shoppers, BLOCK)
        found = np.empty((len(shoppers), self._width), np.float32)
        for block in np.unique(blocks):
            mine = blocks == block
            found[mine] = self._block(draw, int(epoch), int(block))[rows[mine]]
        return found

    def _drawn(self, draw: Draw, epoch: int, block: int) -> NDArray[np.float32]:
        numbers = generator(self._seed, draw, epoch, block).standard_normal((BLOCK, self._width))
        return np.round(numbers, 4).astype(np.float32)

    def _drawn_moods(self, block: int, day: int) -> NDArray[np.int64]:
        shoppers = np.arange(block * BLOCK, (block + 1) * BLOCK)
        noon = self.origin + day * DAY_MS + DAY_MS // 2
        liking = np.einsum("sw,dw->sd", self.tastes(shoppers, noon), self._home)
        noise = generator(self._seed, Draw.MOOD, day, block).gumbel(size=liking.shape)
        moods: NDArray[np.int64] = (liking + noise).argmax(axis=1)
        return moods
