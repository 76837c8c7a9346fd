"""Step 5, the metrics: next-item ranking over ALL items on a time split, with baselines.

The log is replayed with the core's fold. At each event of the evaluated part,
every ranker scores every item of the catalogue for the user's state before the
event; the user's seen items are filtered, and the event's item is looked for.
Nothing is sampled: sampled metrics rank models wrongly (Krichene & Rendle 2020,
doi:10.1145/3394486.3403226). Events on items the user has already seen are left
out, for a filtered list cannot hold them. Items of no training event stay in:
a ranker that cannot reach them, for want of events and of text, misses.

Where a log has many events of a user at one time, their order in it is the
log's habit and no behaviour, and a sequence model learns the habit. `untied`
results leave out every event that is not later than the user's previous one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from freshet.core.events import CONTROL_TYPES, Event
from freshet.core.features import Tensors, featurise
from freshet.core.state import HISTORY, UserState
from numpy.typing import NDArray

from freshet_training.examples import states_before

CUTOFF = 10
BATCH = 256
DAY_MS = 86_400_000
BOOTSTRAP = 1000
UNRANKED = 1 << 30
"""The place of an item that a ranker cannot list."""
FEW, SOME, SHORT = 5, 20, 4
"""Bounds of the slices: an item's training events, and a user's events so far."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EvaluationSet:
    """What candidate and live version are judged on.

    `catalogue` are the ids of all M items and `texts` `[M, TEXT_DIM]` their text
    embeddings, nought where there is none; events from `start` on are judged.
    `forgotten` users have opted out or were erased.
    """

    events: Sequence[Event]
    start: int
    catalogue: Sequence[str]
    texts: Floats
    forgotten: Collection[str]


@dataclass(frozen=True)
class EvaluationBatch:
    """B evaluated events; M items of the catalogue, the version's vocabulary first.

    `tensors` are the encoder's inputs; `target` [B] the rows of the events'
    items; `seen` [B, M]; `popular` and `recent` [B, M] count distinct users per
    item up to the event, for all time and decayed; `history` are the rows of the
    user's recent items, oldest first; `untied` [B] are events later than the
    user's previous one.
    """

    tensors: Tensors
    users: list[str]
    target: NDArray[np.int64]
    seen: NDArray[np.bool_]
    popular: Floats
    recent: Floats
    history: list[NDArray[np.int64]]
    untied: NDArray[np.bool_]


Ranker = Callable[[EvaluationBatch], Floats]
"""Scores `[B, M]` of every item of the catalogue, minus infinity of one that it cannot list."""


class EvaluationReplay:
    """A log ready to be evaluated, any number of times, from one position on."""

    def __init__(
        self,
        events: Sequence[Event],
        catalogue: Sequence[str],
        item_index: Mapping[str, int],
        type_index: Mapping[str, int],
        half_life_s: float,
        length: int,
        *,
        history: int = HISTORY,
        targets: Collection[str] | None = None,
        counted: Collection[str] | None = None,
    ) -> None:
        """`catalogue` are all M item ids, those of the events among them, the vocabulary first.

        `length` events are read by the encoder, `history` are kept. Events of other
        types than `targets` (None: all) are folded and not evaluated. Events of other
        types than `counted` (None: all) are no part of popularity.
        """
        self.events = events
        self.row = {item: row for row, item in enumerate(catalogue)}
        self._item_index = item_index
        self._type_index = type_index
        self._half_life_ms = half_life_s * 1000
        self._length = length
        self._history = history
        self._targets = targets
        self._counted = counted

    def batches(self, start: int, stop: int, every: int = 1) -> Iterator[EvaluationBatch]:
        """Evaluate events `start` to `stop`, or each `every`-th of them."""
        popular = np.zeros(len(self.row), np.float32)
        recent = np.zeros(len(self.row), np.float32)
        clock = self.events[0].ts
        pending: list[_EvaluationRow] = []
        for place, (event, state, first) in enumerate(states_before(self.events[:stop], {}, self._history)):
            if not first:
                continue
            row = self.row[event.item_id or ""]
            if event.ts > clock:
                recent *= 0.5 ** ((event.ts - clock) / self._half_life_ms)
                clock = event.ts
            aimed = self._targets is None or event.type in self._targets
            if aimed and place >= start and place % every == 0:
                pending.append(self._row(event, state, row, popular, recent))
                if len(pending) == BATCH:
                    yield _stacked(pending)
                    pending = []
            if self._counted is None or event.type in self._counted:
                popular[row] += 1
                recent[row] += 1
        if pending:
            yield _stacked(pending)

    def _row(self, event: Event, state: UserState, target: int, popular: Floats, recent: Floats) -> _EvaluationRow:
        seen = np.zeros(len(self.row), np.bool_)
        seen[[self.row[item] for item in (*state.items, *state.seen)]] = True
        history = np.array([self.row[item] for item in state.items], np.int64)
        tensors = featurise([state], self._item_index, self._type_index, self._length)
        untied = not state.times or event.ts > state.last_ts
        return _EvaluationRow(tensors, event.user_id, target, seen, popular.copy(), recent.copy(), history, untied)


@dataclass(frozen=True)
class _EvaluationRow:
    tensors: Tensors
    user: str
    target: int
    seen: NDArray[np.bool_]
    popular: Floats
    recent: Floats
    history: NDArray[np.int64]
    untied: bool


def _stacked(rows: Sequence[_EvaluationRow]) -> EvaluationBatch:
    return EvaluationBatch(
        {name: np.concatenate([row.tensors[name] for row in rows]) for name in rows[0].tensors},
        [row.user for row in rows],
        np.array([row.target for row in rows], np.int64),
        np.stack([row.seen for row in rows]),
        np.stack([row.popular for row in rows]),
        np.stack([row.recent for row in rows]),
        [row.history for row in rows],
        np.array([row.untied for row in rows], np.bool_),
    )


def popularity(batch: EvaluationBatch) -> Floats:
    """All-time popularity, counted up to the event."""
    return batch.popular


def recent_popularity(batch: EvaluationBatch) -> Floats:
    """Popularity decayed by the half-life, counted up to the event: the worker's streaming prior."""
    return batch.recent


class CoOccurrence:
    """Item-item co-occurrence: how many users touched both, cosine-normalised, summed over the last items."""

    def __init__(self, events: Sequence[Event], row: Mapping[str, int], last: int) -> None:
        users: dict[str, set[int]] = {}
        for event in events:
            if event.type not in CONTROL_TYPES and event.item_id in row:
                users.setdefault(event.user_id, set()).add(row[event.item_id])
        touched = np.zeros((len(users), len(row)), np.float32)  # [users, M]
        for number, rows in enumerate(users.values()):
            touched[number, list(rows)] = 1
        both = touched.T @ touched  # [M, M]
        norm = np.sqrt(np.maximum(np.diag(both), 1))
        self._similarity: Floats = both / np.outer(norm, norm)
        self._last = last

    def __call__(self, batch: EvaluationBatch) -> Floats:
        """Scores `[B, M]`."""
        scores = [self._similarity[history[-self._last :]].sum(axis=0) for history in batch.history]
        return np.stack(scores).astype(np.float32)


def with_prior(encoder: Ranker, weight: float) -> Ranker:
    """The served score: `encoder + weight · log1p(decayed popularity)`."""

    def score(batch: EvaluationBatch) -> Floats:
        return encoder(batch) + np.float32(weight) * np.log1p(batch.recent)

    return score


def rank_of_target(scores: Floats, target: NDArray[np.int64], seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place `[B]` of the target among unseen items, 0 is first, or `UNRANKED`. Total: the lower row wins a tie.

    A score that is no number is as minus infinity.
    """
    scores = np.where(np.isnan(scores) | seen, -np.inf, scores)
    own = scores[np.arange(len(target)), target][:, None]
    earlier = np.arange(scores.shape[1]) < target[:, None]
    ahead = ((scores > own) | ((scores == own) & earlier)) & ~seen
    place: NDArray[np.int64] = np.where(own[:, 0] > -np.inf, ahead.sum(axis=1), UNRANKED)
    return place


def slices(item_events: NDArray[np.int64], user_events: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Which of n cases are of a slice: `item_events` `[n]` are their items' in training, `user_events` `[n]` so far."""
    return {
        "unseen items": item_events == 0,
        f"items with 1-{FEW}": (item_events > 0) & (item_events <= FEW),
        f"items with {FEW + 1}-{SOME}": (item_events > FEW) & (item_events <= SOME),
        "head items": item_events > SOME,
        "new users": user_events == 0,
        "short histories": (user_events > 0) & (user_events <= SHORT),
    }


@dataclass(frozen=True)
class RankingResult:
    """Per evaluated event: the user, whether and where its item came in the first `CUTOFF`, and if it is untied."""

    users: NDArray[np.str_]
    hit: NDArray[np.float64]
    gain: NDArray[np.float64]
    untied: NDArray[np.bool_]

    @property
    def hr(self) -> float:
        """HR@10."""
        return float(self.hit.mean())

    @property
    def ndcg(self) -> float:
        """NDCG@10; with one relevant item the ideal gain is 1."""
        return float(self.gain.mean())

    def only(self, kept: NDArray[np.bool_]) -> RankingResult:
        """Some of the events."""
        return RankingResult(self.users[kept], self.hit[kept], self.gain[kept], self.untied[kept])

    def only_untied(self) -> RankingResult:
        """The untied events alone."""
        return self.only(self.untied)


def hits(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 for each rank, the first being 0, among the first `CUTOFF`."""
    return (ranks < CUTOFF).astype(np.float64)


def gains(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """NDCG of each rank; with one relevant item the ideal is 1."""
    return np.where(ranks < CUTOFF, 1 / np.log2(ranks + 2.0), 0.0)


def result_of(users: Sequence[str], ranks: NDArray[np.int64], untied: NDArray[np.bool_]) -> RankingResult:
    """Turn ranks into hits and gains."""
    return RankingResult(np.array(users), hits(ranks), gains(ranks), untied)


def difference(better: RankingResult, worse: RankingResult) -> RankingResult:
    """Event by event, so that its bootstrap interval is that of a paired comparison."""
    return RankingResult(better.users, better.hit - worse.hit, better.gain - worse.gain, better.untied)


def evaluate(batches: Iterator[EvaluationBatch], rankers: Mapping[str, Ranker]) -> dict[str, RankingResult]:
    """Run every ranker over the same events."""
    users: list[str] = []
    untied: list[NDArray[np.bool_]] = []
    ranks: dict[str, list[NDArray[np.int64]]] = {name: [] for name in rankers}
    for batch in batches:
        users.extend(batch.users)
        untied.append(batch.untied)
        for name, ranker in rankers.items():
            ranks[name].append(rank_of_target(ranker(batch), batch.target, batch.seen))
    if not users:
        raise ValueError("no event to evaluate: the part is empty or every item in it was already seen")
    return {name: result_of(users, np.concatenate(parts), np.concatenate(untied)) for name, parts in ranks.items()}


def user_bootstrap(users: NDArray[np.str_], values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `values` when whole users are resampled; a user's events are not independent."""
    _, codes = np.unique(users, return_inverse=True)
    sums = np.bincount(codes, values)
    counts = np.bincount(codes).astype(np.float64)
    picks = np.random.default_rng(seed).integers(0, len(sums), (BOOTSTRAP, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
