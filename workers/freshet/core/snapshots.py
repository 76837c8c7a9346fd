"""Popularity by event time: numbered snapshots that a log alone decides.

A live worker sums what the partitions have published by then, and every list
names what it was made with (`SideInputs`). A replay has no such record for lists
that were never made, so its prior is cut by event time: snapshot n counts the
distinct users of everything before n minutes since the epoch. Counts are whole
numbers per minute, decayed and summed minute by minute, so the order of events
within a minute, and with it the number of partitions and the size of batches,
cannot move a bit.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.popularity import MAX_EXPONENT

TICK_MS = 60_000
"""Length of a minute, ms."""


class SavedSnapshots(msgspec.Struct, frozen=True):
    """`Snapshots` in a checkpoint; `open` counts by slot, `closed` is float64 by slot."""

    tick: int
    items: list[str]
    open: dict[int, int]
    reference: int
    closed: bytes


class Snapshots:
    """Decayed counts of distinct users, closed minute by minute.

    A late event counts in the minute that is open when it is read. Items have
    slots in order of their first count; `items[slot]` names them.
    """

    def __init__(self, half_life: float) -> None:
        """`half_life` in seconds of event time."""
        self._ticks_per_half_life = half_life * 1000.0 / TICK_MS
        self.tick = 0
        self.items: list[str] = []
        self._slots: dict[str, int] = {}
        self._open: Counter[int] = Counter()
        self._reference = 0
        self._closed = np.zeros(1024)

    def add(self, item: str) -> None:
        """Count one distinct user of `item` in the open minute."""
        slot = self._slots.get(item)
        if slot is None:
            slot = self._slots[item] = len(self.items)
            self.items.append(item)
        self._open[slot] += 1

    def advance(self, ts: int) -> bool:
        """Move to the minute of event time `ts` (ms), never back. Returns whether a minute was closed."""
        tick = ts // TICK_MS
        if tick <= self.tick:
            return False
        if self._open:
            self._close()
        self.tick = tick
        return True

    def _close(self) -> None:
        if (self.tick - self._reference) / self._ticks_per_half_life > MAX_EXPONENT:
            self._closed *= self._decay(self.tick)
            self._reference = self.tick
        if len(self.items) > len(self._closed):
            self._closed = np.concatenate([self._closed, np.zeros(len(self.items))])
        weight = 2.0 ** ((self.tick - self._reference) / self._ticks_per_half_life)
        slots = np.fromiter(self._open, np.int64, len(self._open))
        self._closed[slots] += weight * np.fromiter(self._open.values(), np.float64, len(self._open))
        self._open.clear()

    def counts(self, tick: int | None = None) -> NDArray[np.float64]:
        """The snapshot by slot, decayed to `tick` (the current minute where it is left out)."""
        values: NDArray[np.float64] = self._closed[: len(self.items)] * self._decay(self.tick if tick is None else tick)
        return values

    def _decay(self, tick: int) -> float:
        decay: float = 2.0 ** ((self._reference - tick) / self._ticks_per_half_life)
        return decay

    def saved(self) -> SavedSnapshots:
        """Everything, for a checkpoint."""
        return SavedSnapshots(self.tick, self.items, dict(self._open), self._reference, self._closed.tobytes())

    def restore(self, saved: SavedSnapshots) -> None:
        """Take over what `saved` gave."""
        self.tick = saved.tick
        self.items = list(saved.items)
        self._slots = {item: slot for slot, item in enumerate(self.items)}
        self._open = Counter(saved.open)
        self._reference = saved.reference
        self._closed = np.frombuffer(saved.closed, np.float64).copy()
