"""The clock of a replay: event time, and the popularity at each minute and at the ends of longer periods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.item_space import POPULAR_CANDIDATES, ItemSpace, Prior, SlotRows
from freshet.core.snapshots import TICK_MS, SavedSnapshots, Snapshots


@dataclass(eq=False)
class Counts:
    """A snapshot by slot, and the priors made of it, one per item space and size."""

    items: list[str]
    values: NDArray[np.float64]
    _priors: dict[tuple[int, int, int | None], Prior] = field(default_factory=dict)

    def prior(
        self,
        space: ItemSpace,
        rows: SlotRows,
        size: int | None = None,
        candidates: int | None = POPULAR_CANDIDATES,
    ) -> Prior:
        """The snapshot as a prior of `space`, as in `ItemSpace.prior_of`."""
        key = id(space), space.size if size is None else size, candidates
        known = self._priors.get(key)
        if known is None:
            where = rows.of(self.items)[: len(self.values)]
            there = (where > 0) & (where < key[1])
            known = self._priors[key] = space.prior_of(where[there], self.values[there], *key[1:])
        return known


T = TypeVar("T")


@dataclass(eq=False)
class AtBoundary(Generic[T]):
    """A value that changes, with its value at the last boundary of a period. Boundaries only go forward."""

    now: T
    then: T
    boundary: int = 0

    def change(self, value: T, boundary: int) -> None:
        """The value changes, the last boundary being `boundary`."""
        if boundary > self.boundary:
            self.boundary, self.then = boundary, self.now
        self.now = value

    def at(self, boundary: int) -> T:
        """The value at `boundary`, the last one there was."""
        return self.then if boundary == self.boundary else self.now


class SavedClock(msgspec.Struct, frozen=True):
    """A `Clock` in a checkpoint; counts are float64 by slot."""

    now: int
    snapshots: SavedSnapshots
    undecayed: SavedSnapshots | None
    counts: bytes
    all_time: bytes
    boundaries: list[int]
    at_boundary: list[bytes]


class Clock:
    """Event time, minute by minute, and at the boundaries of longer periods.

    `now` is the newest event time. `counts` is the snapshot of the minute of `now`. `all_time` is the same snapshot
    without decay, and is kept only if it is asked for. `boundaries[p]` is the last multiple of `periods[p]` seconds.
    `at_boundary[p]` is the snapshot there: a job that runs once a period would have seen it.
    """

    def __init__(self, half_life: float, periods: Sequence[int] = (), *, all_time: bool = False) -> None:
        self._snapshots = Snapshots(half_life)
        self._undecayed = Snapshots(math.inf) if all_time else None
        self.now = 0
        self.counts = self.all_time = self._snapshot()
        self._periods = [period * 1000 for period in periods]
        self.boundaries = [0] * len(periods)
        self.at_boundary = [self.counts] * len(periods)

    def add(self, item: str) -> None:
        """Count one distinct user of `item`."""
        self._snapshots.add(item)
        if self._undecayed is not None:
            self._undecayed.add(item)

    def advance(self, ts: int) -> None:
        """Move on to event time `ts` (ms). An earlier time changes nothing."""
        if ts <= self.now:
            return
        self.now = ts
        if not self._snapshots.advance(ts):
            return
        self.counts = self._snapshot()
        if self._undecayed is not None:
            self._undecayed.advance(ts)
            self.all_time = Counts(self._undecayed.items, self._undecayed.counts())
        for number, period in enumerate(self._periods):
            boundary = ts - ts % period
            if boundary != self.boundaries[number]:
                self.boundaries[number] = boundary
                self.at_boundary[number] = self._snapshot(boundary // TICK_MS)

    def _snapshot(self, tick: int | None = None) -> Counts:
        return Counts(self._snapshots.items, self._snapshots.counts(tick))

    def saved(self) -> SavedClock:
        """Everything, for a checkpoint."""
        return SavedClock(
            now=self.now,
            snapshots=self._snapshots.saved(),
            undecayed=None if self._undecayed is None else self._undecayed.saved(),
            counts=self.counts.values.tobytes(),
            all_time=self.all_time.values.tobytes(),
            boundaries=self.boundaries,
            at_boundary=[counts.values.tobytes() for counts in self.at_boundary],
        )

    def restore(self, saved: SavedClock) -> None:
        """Take over what `saved` gave."""
        self.now = saved.now
        self._snapshots.restore(saved.snapshots)
        if self._undecayed is not None and saved.undecayed is not None:
            self._undecayed.restore(saved.undecayed)
        self.counts = self._restored(saved.counts)
        self.all_time = self._restored(saved.all_time)
        self.boundaries = saved.boundaries
        self.at_boundary = [self._restored(values) for values in saved.at_boundary]

    def _restored(self, values: bytes) -> Counts:
        """A snapshot; items have the same slots with decay and without."""
        return Counts(self._snapshots.items, np.frombuffer(values, np.float64))
