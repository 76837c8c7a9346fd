"""What is shown, whatever users do with it: coverage, evenness, novelty, diversity, personalisation.

Kept per item and group of users, for a sample of users, and in sums: it grows
with the catalogue, not with the log.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.evaluation.buckets import GROUPS, SavedSums, Sums, bucket, recentred, resampled
from freshet.core.evaluation.results import Estimate

SAMPLE = 500
"""Users whose latest lists stand for all users' in personalisation."""


class SavedExposure(msgspec.Struct, frozen=True):
    """An `Exposure` in a checkpoint; `shown` is uint32 `[GROUPS, slots]`, `latest` has the sampled users' lists."""

    slots: list[str]
    shown: bytes
    lists: int
    novelty: SavedSums
    diversity: SavedSums
    latest: dict[str, list[str]]


class Exposure:
    """Takes in lists, each cut at `cutoff`; `catalogue` is the number of rankable items."""

    def __init__(self, cutoff: int, catalogue: int) -> None:
        self._cutoff = cutoff
        self._catalogue = catalogue
        self._slots: dict[str, int] = {}
        self._shown = np.zeros((GROUPS, 256), np.uint32)
        self._lists = 0
        self._novelty = Sums(1)
        self._diversity = Sums(1)
        self._latest: dict[str, list[str]] = {}
        self._sampled: list[tuple[int, str]] = []

    def add(self, user_id: str, items: list[str], novelty: float, distance: float | None) -> None:
        """One list with its items' mean surprisal and, where it was measured, the mean distance between them."""
        where = bucket(user_id)
        self._lists += 1
        slots = self._slots
        numbers = [slots.setdefault(item, len(slots)) for item in items]
        if len(slots) > self._shown.shape[1]:
            self._shown = np.concatenate([self._shown, np.zeros_like(self._shown)], axis=1)
        self._shown[where % GROUPS, numbers] += 1
        self._novelty.add(where, (novelty,))
        if distance is not None:
            self._diversity.add(where, (distance,))
        self._sample(user_id, items)

    def _sample(self, user_id: str, items: list[str]) -> None:
        """Keep the latest list of the users whose hashes are the lowest: a sample that no arrival order bends."""
        if user_id not in self._latest:
            entry = -_hash(user_id), user_id
            if len(self._sampled) < SAMPLE:
                heapq.heappush(self._sampled, entry)
            elif (left := heapq.heappushpop(self._sampled, entry)) == entry:
                return
            else:
                del self._latest[left[1]]
        self._latest[user_id] = items

    def estimates(self, seed: int) -> dict[str, Estimate]:
        """The five metrics by name, none before the first list."""
        if not self._lists:
            return {}
        shown = self._shown[:, : len(self._slots)].astype(np.float64)
        shown = shown[shown.any(axis=1)]
        whole = [shown.sum(axis=0), *(picks @ shown for picks in resampled(len(shown), seed))]
        covered = np.array([np.count_nonzero(counts) / self._catalogue for counts in whole])
        uneven = np.array([gini(counts, self._catalogue) for counts in whole])
        [novelty], [diversity] = self._novelty.estimates(seed), self._diversity.estimates(seed)
        found = {
            "coverage": recentred(float(covered[0]), covered[1:], self._lists),
            "gini": recentred(float(uneven[0]), uneven[1:], self._lists),
            "novelty": novelty,
        }
        if diversity.n:
            found["intra_list_diversity"] = diversity
        if len(self._latest) > 1:
            found["personalisation"] = personalisation(list(self._latest.values()), self._cutoff, seed)
        return found

    def saved(self) -> SavedExposure:
        """Everything, for a checkpoint."""
        return SavedExposure(
            slots=list(self._slots),
            shown=self._shown[:, : len(self._slots)].tobytes(),
            lists=self._lists,
            novelty=self._novelty.saved(),
            diversity=self._diversity.saved(),
            latest=self._latest,
        )

    def restore(self, saved: SavedExposure) -> None:
        """Take over what `saved` gave."""
        self._slots = {item: slot for slot, item in enumerate(saved.slots)}
        shown = np.frombuffer(saved.shown, np.uint32).reshape(GROUPS, len(saved.slots))
        self._shown = np.concatenate([shown, np.zeros((GROUPS, max(256, shown.shape[1])), np.uint32)], axis=1)
        self._lists = saved.lists
        self._novelty.restore(saved.novelty)
        self._diversity.restore(saved.diversity)
        self._latest = saved.latest
        self._sampled = [(-_hash(user), user) for user in self._latest]
        heapq.heapify(self._sampled)


@lru_cache(maxsize=100_000)
def _hash(user_id: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(user_id.encode(errors="surrogatepass"), digest_size=8, key=b"sample").digest()
    )


def mean_distance(vectors: NDArray[np.float32]) -> float:
    """Mean cosine distance over all pairs of a list's items (Smyth & McClave 2001)."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    n = len(unit)
    similar = unit @ unit.T
    return float(1 - (similar.sum() - np.trace(similar)) / (n * (n - 1)))


def gini(exposures: NDArray[np.float64], catalogue: int) -> float:
    """Gini coefficient of exposure over the catalogue, items never shown included: 0 even, 1 all on one item."""
    values = np.sort(exposures)
    n, total = max(catalogue, len(values)), values.sum()
    ranks = np.arange(n - len(values) + 1, n + 1)  # items never shown come first, and add nothing
    return float(2 * (ranks @ values) / (n * total) - (n + 1) / n) if total else 0.0


def personalisation(lists: Sequence[Sequence[str]], cutoff: int, seed: int) -> Estimate:
    """Mean of 1 - overlap/cutoff over all pairs of users' lists; a user drawn twice is no pair."""
    slots = {item: slot for slot, item in enumerate(Counter(item for items in lists for item in items))}
    holds = np.zeros((len(lists), len(slots)))
    for row, items in enumerate(lists):
        holds[row, [slots[item] for item in items]] = 1.0
    shared = holds @ holds.T
    own = np.diag(shared)
    draws = np.concatenate([np.ones((1, len(lists))), resampled(len(lists), seed)])
    squares = draws**2
    overlaps = ((draws @ shared) * draws).sum(axis=1) - squares @ own
    pairs = draws.sum(axis=1) ** 2 - squares.sum(axis=1)
    values = 1 - overlaps / np.maximum(pairs, 1.0) / cutoff
    return recentred(float(values[0]), values[1:], len(lists))
