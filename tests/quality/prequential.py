"""Each event of a stream: rank, then learn; scored as the worker scores, beside streaming baselines.

The first fifth of the log is burn-in. Candidates are the items that anybody has
touched so far, those that the user has touched left out; a first touch of an item
nobody knew is a miss for all. The encoder is trained again at each fifth of the
log on what came before, and reads each user's state up to the event.

The live score is `encoder + a · log1p(decayed popularity) + b · log1p(co-visitation)`.
Weights and half-life are those of the grid with the best NDCG@10 so far, chosen
again at every `CHOOSE_EVERY`-th event: nothing is fitted on what is yet to come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, USER_ENCODER_INPUTS, Tensors, featurise
from freshet_training.config import TrainingConfig
from freshet_training.evaluate import DAY_MS, UNRANKED, gains, hits
from freshet_training.examples import histories, shuffle_ties, states_before, windows
from freshet_training.fit import Epoch, Hyperparameters, fit
from freshet_training.model import UserEncoder
from freshet_training.model_shape import ModelShape
from numpy.typing import NDArray

from tests.quality.logs import Stream
from tests.quality.ranking import Floats, with_intervals

PARTS = 5
CHOOSE_EVERY = 250
LAST = 10
FADE = 0.8
"""Co-visitation counts a user's last `LAST` items, each further back `FADE` times as much."""
BEHIND = 0.5
"""Weight of an item that came before, beside one that came after."""
SCALE = 10.0
HALF_LIVES_H = (1.0, 3.0, 12.0, 48.0, 168.0)
PRIOR_WEIGHTS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
CO_VISIT_WEIGHTS = (0.0, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Touch:
    """A first touch that is judged: its user, item, time, place in the log and whether it is the user's first."""

    user: int
    item: int
    ts: int
    position: int
    new_user: bool


class CoVisitation:
    """How often items follow one another within users' last `LAST`, learned online, shrunk by how popular both are."""

    def __init__(self, items: int) -> None:
        self._pairs = np.zeros((items, items), np.float32)
        self._counts = np.ones(items, np.float32)

    def scores(self, history: Sequence[int]) -> Floats:
        """`[N]` for a user's items, oldest first."""
        recent = history[: -LAST - 1 : -1]
        if not recent:
            return np.zeros(len(self._counts), np.float32)
        weights = FADE ** np.arange(len(recent), dtype=np.float32) / np.sqrt(self._counts[recent])
        scores: Floats = (weights @ self._pairs[recent]) / np.sqrt(self._counts)
        return scores

    def learn(self, history: Sequence[int], item: int) -> None:
        """The user of `history` touched `item`."""
        recent = history[: -LAST - 1 : -1]
        if recent:
            weights = FADE ** np.arange(len(recent), dtype=np.float32)
            self._pairs[recent, item] += weights
            self._pairs[item, recent] += np.float32(BEHIND) * weights
        self._counts[item] += 1


class Popularity:
    """Distinct users by item: for all time, within a window, and decayed by each half-life."""

    def __init__(self, items: int, window_days: float) -> None:
        self.ever = np.zeros(items, np.float32)
        self.window = np.zeros(items, np.float32)
        self.decayed = np.zeros((len(HALF_LIVES_H), items), np.float32)
        self._span = window_days * DAY_MS
        self._within: deque[tuple[int, int]] = deque()
        self._half_lives = np.array(HALF_LIVES_H)[:, None] * DAY_MS / 24
        self._clock = 0

    def advance(self, ts: int) -> None:
        """Let time pass."""
        if ts > self._clock:
            self.decayed *= (0.5 ** ((ts - self._clock) / self._half_lives)).astype(np.float32)
            self._clock = ts
        while self._within and self._within[0][0] < ts - self._span:
            self.window[self._within.popleft()[1]] -= 1

    def learn(self, item: int, ts: int) -> None:
        """One more user touched `item`."""
        self.ever[item] += 1
        self.window[item] += 1
        self.decayed[:, item] += 1
        self._within.append((ts, item))


def run(
    stream: Stream, texts: Floats, config: TrainingConfig, *, kinds: Collection[str], window_days: float
) -> dict[str, dict[str, float]]:
    """Figures by ranker; `kinds` are the behaviour types whose first touches are judged."""
    events = [
        Event(f"e{position}", str(user), kind, ts, str(item))
        for position, (user, item, kind, ts) in enumerate(
            zip(stream.users, stream.items, stream.types, stream.times, strict=True)
        )
    ]
    touches = list(_touches(stream, kinds))
    encoded = list(_encode(events, touches, texts, config))
    return _judge(stream, touches, encoded, window_days)


def _touches(stream: Stream, kinds: Collection[str]) -> Iterator[Touch]:
    known: dict[int, set[int]] = {}
    for position, (user, item, kind, ts) in enumerate(
        zip(stream.users, stream.items, stream.types, stream.times, strict=True)
    ):
        if kind not in kinds:
            continue
        touched = known.setdefault(user, set())
        if item not in touched:
            yield Touch(user, item, ts, position, new_user=not touched)
            touched.add(item)


def _encode(
    events: list[Event], touches: Sequence[Touch], texts: Floats, config: TrainingConfig
) -> Iterator[tuple[Floats, Floats] | None]:
    """Per touch the user's vector and the item table then in force; None in the burn-in."""
    bounds = [len(events) * part // PARTS for part in range(1, PARTS + 1)]
    yield from (None for touch in touches if touch.position < bounds[0])
    for start, stop in pairwise(bounds):
        model, index, table = _train(events[:start], texts, config)
        types = {kind: number + 1 for number, kind in enumerate(sorted({event.type for event in events[:start]}))}
        wanted = {touch.position for touch in touches if start <= touch.position < stop}
        length = model.config.length
        rows: list[Tensors] = [
            featurise([state], index, types, length)
            for position, (_, state, _) in enumerate(states_before(events[:stop], {}, length))
            if position in wanted
        ]
        with torch.no_grad():
            vectors = model.item_vectors()
            for first in range(0, len(rows), 512):
                batch = rows[first : first + 512]
                inputs = (
                    torch.from_numpy(np.concatenate([row[spec.name] for row in batch])) for spec in USER_ENCODER_INPUTS
                )
                yield from ((user, table) for user in model(*inputs, vectors, last_only=True)[:, 0].numpy())


def _train(events: list[Event], texts: Floats, config: TrainingConfig) -> tuple[UserEncoder, dict[str, int], Floats]:
    """A model of the log so far, its vocabulary, and the table `[N, D]` with all other items at their text."""
    runs = histories(events)
    items = list(dict.fromkeys(event.item_id or "" for run in runs for event in run))
    kinds = sorted({event.type for event in events})
    index = {item: number + FIRST_ITEM for number, item in enumerate(items)}
    rows = np.array([int(item) for item in items])
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    shape = ModelShape(len(items), len(kinds), **config.model)
    types = {kind: number + 1 for number, kind in enumerate(kinds)}
    fitted = fit(
        UserEncoder(shape, torch.from_numpy(texts[rows])),
        lambda random: windows(
            shuffle_ties(runs, random), index, types, shape.length, overlap=config.overlap, random=random
        ),
        lambda _: 0.0,
        Hyperparameters.of(config),
        report=_tell,
    )
    model = fitted.model
    with torch.no_grad():
        table = model.tower(torch.from_numpy(texts))
        table[rows] = model.item_vectors()
    return model, index, table.numpy()


def _tell(epoch: Epoch) -> None:
    """Print an epoch without its score: nothing is held back to choose by."""
    print(replace(epoch, score=None), flush=True)  # noqa: T201


def _judge(
    stream: Stream, touches: Sequence[Touch], encoded: Sequence[tuple[Floats, Floats] | None], window_days: float
) -> dict[str, dict[str, float]]:
    items = len(stream.texts)
    popularity, together = Popularity(items, window_days), CoVisitation(items)
    alive = np.zeros(items, np.bool_)
    history: dict[int, list[int]] = {}
    grid = [(life, a, b) for life in range(len(HALF_LIVES_H)) for a in PRIOR_WEIGHTS for b in CO_VISIT_WEIGHTS]
    plain = [number for number, (_, _, b) in enumerate(grid) if b == 0]
    gained = np.zeros(len(grid))
    leader, plain_leader = 0, plain[0]
    ranks_by_model: dict[str, list[int]] = {}
    for number, (touch, known) in enumerate(zip(touches, encoded, strict=True)):
        own = history.setdefault(touch.user, [])
        popularity.advance(touch.ts)
        if known is not None:
            user, table = known
            co_visits = together.scores(own)
            encoder = table @ user
            prior = np.log1p(popularity.decayed)
            mixed = np.log1p(SCALE * co_visits)
            found = {
                "popularity": popularity.ever,
                f"recent popularity, {window_days:g} days": popularity.window,
                "co-visitation + recent popularity": mixed + 0.1 * np.log1p(popularity.window),
                "encoder": encoder,
            }
            scores = np.stack([*found.values(), *(encoder + a * prior[life] + b * mixed for life, a, b in grid)])
            ranks = _ranks(scores, touch.item, own, alive)
            mixes = ranks[len(found) :]
            if number % CHOOSE_EVERY == 0:
                leader, plain_leader = int(gained.argmax()), plain[int(gained[plain].argmax())]
            for name, at in zip(
                (*found, "encoder + prior", "encoder + prior + co-visitation"),
                (*ranks[: len(found)], mixes[plain_leader], mixes[leader]),
                strict=True,
            ):
                ranks_by_model.setdefault(name, []).append(int(at))
            gained += gains(mixes)
        together.learn(own, touch.item)
        popularity.learn(touch.item, touch.ts)
        own.append(touch.item)
        alive[touch.item] = True
    judged = [touch for touch, known in zip(touches, encoded, strict=True) if known is not None]
    life, a, b = grid[int(gained.argmax())]
    print(f"best mix at the end: half-life {HALF_LIVES_H[life]:g} h, prior {a:g}, co-visitation {b:g}")  # noqa: T201
    return {name: _figures(np.array(at), judged) for name, at in ranks_by_model.items()}


def _ranks(scores: Floats, item: int, own: Sequence[int], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of `item` in each row of `scores`; equal scores go by row."""
    if not alive[item]:
        return np.full(len(scores), UNRANKED)
    rankable = alive.copy()
    rankable[own] = False
    target = scores[:, item][:, None]
    ahead = (scores > target) | ((scores == target) & (np.arange(scores.shape[1]) < item))
    count: NDArray[np.int64] = (ahead & rankable).sum(axis=1)
    return count


def _figures(ranks: NDArray[np.int64], touches: Sequence[Touch]) -> dict[str, float]:
    hit = hits(ranks)
    users = np.array([str(touch.user) for touch in touches])
    new = np.array([touch.new_user for touch in touches])
    return with_intervals(users, hit, gains(ranks)) | ({"new users": float(hit[new].mean())} if new.any() else {})
