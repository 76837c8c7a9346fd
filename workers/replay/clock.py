"""The clock of a replay: event time, and the popularity that stood at each of its minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.core.ranking import ItemSpace, Prior
from workers.core.snapshots import TICK_MS, Snapshots


@dataclass(eq=False)
class Counts:
    """A snapshot by slot, and the priors made of it, one per item space and size."""

    items: list[str]
    values: NDArray[np.float64]
    _priors: dict[tuple[int, int], Prior] = field(default_factory=dict)

    def prior(self, space: ItemSpace, rows: SlotRows) -> Prior:
        """The snapshot as a prior of `space`."""
        key = id(space), space.size
        known = self._priors.get(key)
        if known is None:
            where = rows.of(self.items)[: len(self.values)]
            known = self._priors[key] = space.prior_of(where[where > 0], self.values[where > 0])
        return known


class SlotRows:
    """Which row of a space each slot of the snapshots is, 0 for none; grows with both."""

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


class Clock:
    """Event time, minute by minute, and at the boundaries of longer periods.

    `now` is the newest event time; `counts` the snapshot of its minute;
    `boundaries[p]` the last multiple of `periods[p]` seconds, and `at_boundary[p]`
    the snapshot there: what a job that runs every so often would have seen.
    """

    def __init__(self, half_life: float, periods: Sequence[int] = ()) -> None:
        self.snapshots = Snapshots(half_life)
        self.now = 0
        self.counts = self._snapshot()
        self._periods = [period * 1000 for period in periods]
        self.boundaries = [0] * len(periods)
        self.at_boundary = [self.counts] * len(periods)

    def advance(self, ts: int) -> None:
        """Move on to event time `ts` (ms); earlier times change nothing."""
        if ts <= self.now:
            return
        self.now = ts
        if not self.snapshots.advance(ts):
            return
        self.counts = self._snapshot()
        for place, period in enumerate(self._periods):
            boundary = ts - ts % period
            if boundary != self.boundaries[place]:
                self.boundaries[place] = boundary
                self.at_boundary[place] = self._snapshot(boundary // TICK_MS)

    def _snapshot(self, tick: int | None = None) -> Counts:
        return Counts(self.snapshots.items, self.snapshots.counts(tick))

    def dump(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "now": self.now,
            "snapshots": self.snapshots.dump(),
            "counts": self.counts.values.tobytes(),
            "boundaries": self.boundaries,
            "at_boundary": [counts.values.tobytes() for counts in self.at_boundary],
        }

    def restore(self, dumped: dict[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.now = dumped["now"]
        self.snapshots.restore(dumped["snapshots"])
        self.counts = self._restored(dumped["counts"])
        self.boundaries = dumped["boundaries"]
        self.at_boundary = [self._restored(raw) for raw in dumped["at_boundary"]]

    def _restored(self, raw: bytes) -> Counts:
        return Counts(self.snapshots.items, np.frombuffer(raw, np.float64))
