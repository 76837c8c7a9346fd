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

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from freshet.core.events import Event
from freshet.core.features import Tensors, featurise
from freshet.core.state import HISTORY, UserState
from numpy.typing import NDArray

from freshet_training.examples import states_before

CUTOFF = 10
BATCH = 256
CELLS = 1 << 23
"""Rows times items of a batch, at most: a wide catalogue takes fewer rows at a time."""
USER_SHARE = 0.05
"""Largest part of a sample of events that one user has."""
DAY_MS = 86_400_000
BOOTSTRAP = 1000
UNRANKED = 1 << 30
"""The place of an item that a ranker cannot list."""
FEW, SOME, SHORT = 5, 20, 4
"""Bounds of the slices: an item's training events, and a user's events so far."""

NOTHING_TO_EVALUATE = "no event to evaluate: the part is empty or every item in it was already seen"

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

    def batches(self, start: int, stop: int, most: int | None = None) -> Iterator[EvaluationBatch]:
        """Evaluate events `start` to `stop`, or `most` of them, as `rows` draws them."""
        return self.stacked(self.rows(start, stop, most))

    def rows(self, start: int, stop: int, most: int | None = None) -> Iterator[EvaluationRow]:
        """The users' states before events `start` to `stop` that are first touches, in log order.

        Where they are more than `most`, so many are drawn at random, always the same. A user then has at most
        `USER_SHARE` of them, so that no account decides alone.
        """
        touches = self._touches
        chosen = np.flatnonzero((touches.position >= start) & (touches.position < stop) & touches.aimed)
        if most is not None:
            chosen = _drawn(chosen, touches.user[chosen], most)
        judged = {int(touches.position[touch]): int(touch) for touch in chosen}
        users = {self.events[position].user_id for position in judged}
        own = [position for position, event in enumerate(self.events[:stop]) if event.user_id in users]
        replayed = states_before((self.events[position] for position in own), {}, self._history)
        for position, (event, state, _) in zip(own, replayed, strict=True):
            if position in judged:
                yield self._row(event, state, judged[position])

    def stacked(self, rows: Iterable[EvaluationRow]) -> Iterator[EvaluationBatch]:
        """Batches of rows, which stand in log order. A batch of a wide catalogue holds fewer of them."""
        popular = np.zeros(len(self.row), np.float32)
        recent = np.zeros(len(self.row), np.float32)
        touches, counted = self._touches, 0
        clock = int(touches.ts[0]) if len(touches.ts) else 0
        together = max(1, min(BATCH, CELLS // len(self.row)))
        for group in _groups(rows, together):
            shape = len(group), len(self.row)
            seen, overall, lately = np.zeros(shape, np.bool_), np.empty(shape, np.float32), np.empty(shape, np.float32)
            for number, row in enumerate(group):
                new = slice(counted, row.touch)
                now, counted = int(touches.ts[row.touch]), row.touch
                recent *= np.float32(0.5 ** ((now - clock) / self._half_life_ms))
                clock = now
                items = touches.row[new][touches.counted[new]]
                ages = now - touches.ts[new][touches.counted[new]]
                np.add.at(popular, items, np.float32(1))
                np.add.at(recent, items, (0.5 ** (ages / self._half_life_ms)).astype(np.float32))
                seen[number, row.seen] = True
                overall[number], lately[number] = popular, recent
            yield EvaluationBatch(
                {name: np.concatenate([row.tensors[name] for row in group]) for name in group[0].tensors},
                [row.user for row in group],
                touches.row[[row.touch for row in group]],
                seen,
                overall,
                lately,
                [row.history for row in group],
                np.array([row.untied for row in group], np.bool_),
            )

    def _row(self, event: Event, state: UserState, touch: int) -> EvaluationRow:
        seen = np.array([self.row[item] for item in (*state.items, *state.seen)], np.int64)
        history = np.array([self.row[item] for item in state.items], np.int64)
        tensors = featurise([state], self._item_index, self._type_index, self._length)
        untied = not state.times or event.ts > state.last_ts
        return EvaluationRow(tensors, event.user_id, touch, seen, history, untied)

    @cached_property
    def _touches(self) -> _Touches:
        found = [
            (position, self.row[event.item_id or ""], event.ts, event.user_id, event.type)
            for position, (event, _, first) in enumerate(states_before(self.events, {}, self._history))
            if first
        ]
        positions, rows, times, users, types = zip(*found, strict=True) if found else ((), (), (), (), ())
        number = {user: code for code, user in enumerate(dict.fromkeys(users))}
        return _Touches(
            np.array(positions, np.int64),
            np.array(rows, np.int64),
            np.maximum.accumulate(np.array(times, np.int64)),
            np.array([number[user] for user in users], np.int64),
            np.array([self._targets is None or kind in self._targets for kind in types], np.bool_),
            np.array([self._counted is None or kind in self._counted for kind in types], np.bool_),
        )


@dataclass(frozen=True)
class EvaluationRow:
    """What an event is ranked from, in little room: the rows of its user's seen items and recent items.

    `touch` is the event's position among the log's first touches.
    """

    tensors: Tensors
    user: str
    touch: int
    seen: NDArray[np.int64]
    history: NDArray[np.int64]
    untied: bool


@dataclass(frozen=True)
class _Touches:
    """The first touches of a log, `[T]` each: position in the log, item's row, time (ms, rising), user's number.

    `aimed` are those of a type that is predicted, `counted` those that popularity counts.
    """

    position: NDArray[np.int64]
    row: NDArray[np.int64]
    ts: NDArray[np.int64]
    user: NDArray[np.int64]
    aimed: NDArray[np.bool_]
    counted: NDArray[np.bool_]


def _groups(rows: Iterable[EvaluationRow], size: int) -> Iterator[list[EvaluationRow]]:
    rest = iter(rows)
    while group := list(islice(rest, size)):
        yield group


def _drawn(chosen: NDArray[np.int64], users: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of `chosen` `[n]`, by `users` `[n]`, drawn at random and in order."""
    order = np.random.default_rng(0).permutation(len(chosen))
    by_user = order[np.argsort(users[order], kind="stable")]
    first = np.r_[True, np.diff(users[by_user]) != 0]
    start = np.maximum.accumulate(np.where(first, np.arange(len(by_user)), 0))
    turn = np.empty(len(chosen), np.int64)
    turn[by_user] = np.arange(len(by_user)) - start
    kept = order[turn[order] < max(1, int(USER_SHARE * min(most, len(chosen))))]
    return chosen[np.sort(kept[:most])]


class CachedRanker:
    """A ranker that scores a batch once for all who ask in turn."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker
        self._last: tuple[EvaluationBatch, Floats] | None = None

    def __call__(self, batch: EvaluationBatch) -> Floats:
        """Scores `[B, M]`."""
        if self._last is None or self._last[0] is not batch:
            self._last = batch, self._ranker(batch)
        return self._last[1]


def with_prior(encoder: Ranker, weight: float) -> Ranker:
    """The served score: `encoder + weight · log1p(decayed popularity)`."""

    def score(batch: EvaluationBatch) -> Floats:
        return encoder(batch) + np.float32(weight) * np.log1p(batch.recent)

    return score


def rank_of_target(scores: Floats, target: NDArray[np.int64], seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place `[B]` of the target among unseen items, 0 is first, or `UNRANKED`. Total: the lower row wins a tie.

    A score that is no number is as minus infinity.
    """
    own = scores[np.arange(len(target)), target][:, None]
    level = scores == own
    level &= np.arange(scores.shape[1]) < target[:, None]
    ahead = (scores > own) | level
    ahead &= ~seen
    ranks: NDArray[np.int64] = np.where(own[:, 0] > -np.inf, ahead.sum(axis=1), UNRANKED)
    return ranks


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
        raise ValueError(NOTHING_TO_EVALUATE)
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
