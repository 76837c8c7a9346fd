"""Prequential evaluation: each list is judged by what its user did next (Dawid 1984; Gama et al. 2013).

Nothing here grows with the log: sums per slice and bucket of users, exposure per
item and group of users, a sample of lists. A day that has passed is kept as its
estimates alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.evaluation.buckets import SavedSums, Sums, bucket
from freshet.core.evaluation.calibration import Calibration, SavedCalibration
from freshet.core.evaluation.exposure import Exposure, SavedExposure, mean_distance
from freshet.core.evaluation.results import Evaluation, Slice

METRICS = ("hr", "ndcg", "mrr")
DAY_MS = 86_400_000
DIVERSITY_EVERY = 10
"""Every so manieth list is measured for the distance between its items."""
ALL = ("all", "all")


class Judgement(NamedTuple):
    """What a user did, and the list they were looking at: items and scores, best first."""

    user_id: str
    ts: int
    type: str
    item_id: str
    items: Sequence[str]
    scores: Sequence[float]
    segments: Sequence[str]


class SavedSlice(msgspec.Struct, frozen=True):
    """What is gathered of one slice in a checkpoint."""

    dimension: str
    value: str
    sums: SavedSums
    exposure: SavedExposure


class SavedJudge(msgspec.Struct, frozen=True):
    """A `Prequential` in a checkpoint; `today` is in days since the epoch, `day` the name of its slice."""

    slices: list[SavedSlice]
    calibration: SavedCalibration
    interactions: dict[str, int]
    lists: int
    today: int
    day: tuple[str, str]
    past_days: dict[str, Slice]


class SliceSums:
    """What is gathered of one slice."""

    def __init__(self, cutoff: int, catalogue: int) -> None:
        self.sums = Sums(len(METRICS))
        self.exposure = Exposure(cutoff, catalogue)

    def slice(self, seed: int) -> Slice:
        """The estimates so far."""
        metrics = dict(zip(METRICS, self.sums.estimates(seed), strict=True)) | self.exposure.estimates(seed)
        return Slice(self.sums.n, int(np.count_nonzero(self.sums.counts)), metrics)

    def saved(self, dimension: str, value: str) -> SavedSlice:
        """Everything, for a checkpoint."""
        return SavedSlice(dimension, value, self.sums.saved(), self.exposure.saved())

    def restore(self, saved: SavedSlice) -> None:
        """Take over what `saved` gave."""
        self.sums.restore(saved.sums)
        self.exposure.restore(saved.exposure)


class Prequential:
    """Judges one policy's lists.

    Per judgement, with r the rank of the item in the list, 0 first: `hr` is 1
    where it is in the list; `ndcg` is 1/log2(r + 2), one item being relevant;
    `mrr` is 1/(r + 1); all 0 where it is not. With one relevant item recall is
    `hr`: the slices by `type` are the recall of each behaviour. `day` is the UTC
    date of the act, or of the newest before it where it came late. Only the
    calibration learns from labels, and only from those older than `label_delay_ms`.
    """

    def __init__(
        self,
        name: str,
        *,
        cutoff: int,
        catalogue: int,
        vectors: Callable[[Sequence[str]], NDArray[np.float32]],
        label_delay_ms: int = 0,
        seed: int = 0,
    ) -> None:
        """`catalogue` is the number of rankable items; `vectors` gives items' vectors, `[n, D]`."""
        self.name = name
        self.cutoff = cutoff
        self._catalogue = catalogue
        self._vectors = vectors
        self._seed = seed
        self._parts: dict[tuple[str, str], SliceSums] = {}
        self._gains = [(1.0, 1 / float(np.log2(rank + 2)), 1 / (rank + 1)) for rank in range(cutoff)]
        self._calibration = Calibration(label_delay_ms)
        self._interactions: Counter[str] = Counter()
        self._total = 0
        self._lists = 0
        self._today = -1
        self._day = ("day", "")
        self._past_days: dict[str, Slice] = {}

    def judge(self, judgement: Judgement) -> None:
        """Take in one act."""
        items = judgement.items[: self.cutoff]
        rank = items.index(judgement.item_id) if judgement.item_id in items else -1
        gains = self._gains[rank] if rank >= 0 else (0.0, 0.0, 0.0)
        self._come_to(judgement.ts)
        where = bucket(judgement.user_id)
        for name in (
            ALL,
            self._day,
            ("type", judgement.type),
            *(("segment", segment) for segment in judgement.segments),
        ):
            self._part(name).sums.add(where, gains)
        self._calibration.observe(where, judgement.ts, judgement.scores[: self.cutoff], rank)

    def shown(self, user_id: str, ts: int, items: Sequence[str], segment: str) -> None:
        """Take in one list, shown at `ts` (ms) to a user of a segment."""
        items = list(items[: self.cutoff])
        if not items:
            return
        self._come_to(ts)
        seen, known = self._interactions, self._total + self._catalogue
        novelty = -sum(math.log2((seen[item] + 1) / known) for item in items) / len(items)
        measured = self._lists % DIVERSITY_EVERY == 0 and len(items) > 1
        distance = mean_distance(self._vectors(items)) if measured else None
        self._lists += 1
        for name in (ALL, self._day, ("segment", segment)):
            self._part(name).exposure.add(user_id, items, novelty, distance)

    def interacted(self, item_id: str) -> None:
        """An interaction with an item, for the novelty of what is shown afterwards."""
        self._interactions[item_id] += 1
        self._total += 1

    def _part(self, name: tuple[str, str]) -> SliceSums:
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = SliceSums(self.cutoff, self._catalogue)
        return part

    def _come_to(self, ts: int) -> None:
        """Begin a new day where `ts` is in one, and keep of the last only what it came to."""
        day = ts // DAY_MS
        if day <= self._today:
            return
        if (past := self._parts.pop(self._day, None)) is not None:
            self._past_days[self._day[1]] = past.slice(self._seed)
        self._today = day
        self._day = "day", datetime.fromtimestamp(day * DAY_MS / 1000, UTC).strftime("%Y-%m-%d")

    def sums(self) -> Sums:
        """The whole's sums, for paired comparison."""
        return self._part(ALL).sums

    def evaluation(self) -> Evaluation:
        """What was found so far."""
        slices: dict[str, dict[str, Slice]] = {"all": {"all": self._part(ALL).slice(self._seed)}}
        if self._past_days:
            slices["day"] = dict(self._past_days)
        for name, part in sorted(self._parts.items()):
            if name != ALL:
                slices.setdefault(name[0], {})[name[1]] = part.slice(self._seed)
        bins, error = self._calibration.bins(self._seed)
        return Evaluation(self.name, self.cutoff, slices, bins, error)

    def saved(self) -> SavedJudge:
        """Everything, for a checkpoint."""
        return SavedJudge(
            slices=[part.saved(*name) for name, part in self._parts.items()],
            calibration=self._calibration.saved(),
            interactions=self._interactions,
            lists=self._lists,
            today=self._today,
            day=self._day,
            past_days=self._past_days,
        )

    def restore(self, saved: SavedJudge) -> None:
        """Take over what `saved` gave."""
        for part in saved.slices:
            self._part((part.dimension, part.value)).restore(part)
        self._calibration.restore(saved.calibration)
        self._interactions = Counter(saved.interactions)
        self._total = self._interactions.total()
        self._lists = saved.lists
        self._today, self._day = saved.today, saved.day
        self._past_days = saved.past_days
