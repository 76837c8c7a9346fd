"""Prequential evaluation: each list is judged by what its user did next (Dawid 1984; Gama et al. 2013).

Nothing here grows with the log: sums per slice and bucket of users, exposure per
item, a sample of lists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.core.evaluation.buckets import Sums, bucket
from workers.core.evaluation.calibration import Calibration
from workers.core.evaluation.results import Evaluation, Slice

METRICS = ("hr", "ndcg", "mrr")
DAY_MS = 86_400_000
SAMPLE = 500
"""Users whose latest list stands for all in personalisation."""
DIVERSITY_EVERY = 10
"""Every so manieth list is measured for the distance between its items."""


class Judgement(NamedTuple):
    """What a user did, and the list they were looking at: items and scores best first, made at `made` (ms)."""

    user_id: str
    ts: int
    type: str
    item_id: str
    items: Sequence[str]
    scores: Sequence[float]
    made: int
    segments: Sequence[str]


class Prequential:
    """Judges one policy's lists.

    Per judgement, with r the place of the item in the list, 0 first: `hr` is 1
    where it is in the list; `ndcg` is 1/log2(r + 2), one item being relevant;
    `mrr` is 1/(r + 1); all 0 where it is not. With one relevant item recall is
    `hr`: the slices by `type` are the recall of each behaviour. `day` is the UTC
    date of the act. Only the calibration learns from labels, and only from those
    older than `label_delay_ms`.
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
        """`catalogue` is the number of rankable items; `vectors` gives items' vectors, `[n, DIM]`."""
        self.name = name
        self.cutoff = cutoff
        self._catalogue = catalogue
        self._vectors = vectors
        self._seed = seed
        self._slices: dict[tuple[str, str], Sums] = {}
        self._gains = [(1.0, 1 / float(np.log2(place + 2)), 1 / (place + 1)) for place in range(cutoff)]
        self._calibration = Calibration(label_delay_ms)
        self._exposure: Counter[str] = Counter()
        self._lists = 0
        self._interactions: Counter[str] = Counter()
        self._total = 0
        self._novelty = self._slots = 0.0
        self._diversity = self._measured = 0.0
        self._latest: dict[str, list[str]] = {}
        self._day: tuple[int, str] = (-1, "")

    def judge(self, judgement: Judgement) -> None:
        """Take in one act."""
        items = judgement.items[: self.cutoff]
        place = items.index(judgement.item_id) if judgement.item_id in items else -1
        gains = self._gains[place] if place >= 0 else (0.0, 0.0, 0.0)
        day = judgement.ts // DAY_MS
        if day != self._day[0]:
            self._day = day, datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")
        where = bucket(judgement.user_id)
        names = [("all", "all"), ("day", self._day[1]), ("type", judgement.type)]
        for name in (*names, *(("segment", segment) for segment in judgement.segments)):
            sums = self._slices.get(name)
            if sums is None:
                sums = self._slices[name] = Sums(len(METRICS))
            sums.add(where, gains)
        self._calibration.observe(judgement.ts, judgement.scores[: self.cutoff], place)

    def shown(self, user_id: str, items: Sequence[str]) -> None:
        """Take in one list."""
        items = list(items[: self.cutoff])
        self._lists += 1
        self._exposure.update(items)
        seen, known = self._interactions, self._total + self._catalogue
        self._novelty -= sum(math.log2((seen[item] + 1) / known) for item in items)
        self._slots += len(items)
        if self._lists % DIVERSITY_EVERY == 1 and len(items) > 1:
            self._diversity += _mean_distance(self._vectors(items))
            self._measured += 1
        if user_id in self._latest or len(self._latest) < SAMPLE:
            self._latest[user_id] = items

    def interacted(self, item_id: str) -> None:
        """An interaction with an item, for the novelty of what is shown afterwards."""
        self._interactions[item_id] += 1
        self._total += 1

    def sums(self) -> Sums:
        """The whole's sums, for paired comparison."""
        return self._slices.get(("all", "all")) or Sums(len(METRICS))

    def evaluation(self) -> Evaluation:
        """What was found so far."""
        slices: dict[str, dict[str, Slice]] = {"all": {}}
        for (dimension, value), sums in sorted(self._slices.items()):
            estimates = dict(zip(METRICS, sums.estimates(self._seed), strict=True))
            users = int(np.count_nonzero(sums.counts))
            slices.setdefault(dimension, {})[value] = Slice(sums.n, users, estimates)
        slices["all"].setdefault("all", Slice(0, 0, dict(zip(METRICS, self.sums().estimates(self._seed), strict=True))))
        bins, error = self._calibration.bins()
        return Evaluation(self.name, self.cutoff, slices, self._list_metrics(), bins, error)

    def _list_metrics(self) -> dict[str, float]:
        if not self._lists:
            return {}
        return {
            "coverage": len(self._exposure) / self._catalogue,
            "gini": _gini(list(self._exposure.values()), self._catalogue),
            "novelty": self._novelty / max(self._slots, 1.0),
            "intra_list_diversity": self._diversity / max(self._measured, 1.0),
            "personalisation": _personalisation(list(self._latest.values()), self.cutoff),
        }

    def dump(self) -> bytes:
        """Everything, for a replay that goes on later."""
        return msgspec.msgpack.encode(
            {
                "slices": [(*name, *sums.dump()) for name, sums in self._slices.items()],
                "calibration": self._calibration.dump(),
                "counters": [dict(self._exposure), dict(self._interactions)],
                "numbers": [self._lists, self._novelty, self._slots, self._diversity, self._measured, self._total],
                "latest": self._latest,
            }
        )

    def restore(self, dumped: bytes) -> None:
        """Take over what `dump` gave."""
        state: dict[str, Any] = msgspec.msgpack.decode(dumped)
        for dimension, value, counts, sums in state["slices"]:
            self._slices[dimension, value] = Sums(len(METRICS))
            self._slices[dimension, value].restore((counts, sums))
        self._calibration.restore(state["calibration"])
        self._exposure, self._interactions = (Counter(one) for one in state["counters"])
        self._lists, self._novelty, self._slots, self._diversity, self._measured, self._total = state["numbers"]
        self._latest = state["latest"]


def _mean_distance(vectors: NDArray[np.float32]) -> float:
    """Mean cosine distance over all pairs of a list's items (Smyth & McClave 2001)."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    n = len(unit)
    similar = unit @ unit.T
    return float(1 - (similar.sum() - np.trace(similar)) / (n * (n - 1)))


def _gini(exposures: Sequence[int], catalogue: int) -> float:
    """Gini coefficient of exposure over the catalogue, items never shown included: 0 even, 1 all on one item."""
    values = np.sort(np.array([0] * max(0, catalogue - len(exposures)) + list(exposures), np.float64))
    n, total = len(values), values.sum()
    return float((2 * (np.arange(1, n + 1) @ values) / (n * total)) - (n + 1) / n) if total else 0.0


def _personalisation(lists: Sequence[Sequence[str]], cutoff: int) -> float:
    """Mean of 1 - overlap/cutoff over all pairs of users' lists."""
    if len(lists) < 2:  # noqa: PLR2004 - a pair
        return 0.0
    holders = Counter(item for items in lists for item in items)
    shared = sum(count * (count - 1) / 2 for count in holders.values())
    return 1 - shared / (len(lists) * (len(lists) - 1) / 2) / cutoff
