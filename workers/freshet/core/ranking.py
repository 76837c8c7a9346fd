"""Ranking: from the encoder's candidates and the prior to a list with reasons.

The score of an item is the encoder's score plus `prior_weight` times the log
of one plus its popularity. Candidates are the served graph's top-K, the items
newer than the version, and the most popular ones. The order is total:
non-finite scores sink, equal scores go by item index. An item's lifts may be
added to its score too (`training/freshet_training/lifts.py` makes them): its value and its novelty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshet.core.cold_items import best_rows, order_keys
from freshet.core.events import ID_SEPARATOR
from freshet.core.exploration import explore
from freshet.core.features import UNKNOWN
from freshet.core.item_space import ItemSpace, Prior
from freshet.core.list_bounds import best_outside, bounds
from freshet.core.reasons import DECAY, reasons_of, strongest_events
from freshet.core.recommendation import Item, Reason
from freshet.core.seen_items import barred_items, barring_events
from freshet.core.state import UserState

FEW_COLD = 200
"""As many items beyond the version's own are scored for everybody; of more, each user's best are found first."""
POOL = 5
"""Diversity and exploration pick among this many times the list's size."""
MARKS = 1 << 18
"""Rows times users that are marked together."""
LOOK_AHEAD = 32
"""Candidates that are looked at together for ones that a user has not seen."""


@dataclass(frozen=True)
class RankConfig:
    """How lists are made.

    `diversity` is 0 for pure score to 1 for pure dissimilarity (MMR, SIGIR
    1998); `exploration` is the chance that a list is changed at random. Items have
    `reasons` unless nobody reads them: they are a seventh of the work. Lifts are added
    to the score by `value_weight` and `novelty_weight`. `decay` is how much less an event
    counts as a reason for each one that came after it, on a log scale. An item that the user has
    touched by behaviours of `repeats` alone may be recommended again. Of what lies beyond the history
    the behaviours are not known: it may come again where `all_repeat`.
    """

    list_size: int
    diversity: float
    prior_weight: float
    exploration: float = 0.0
    reasons: bool = True
    value_weight: float = 0.0
    novelty_weight: float = 0.0
    decay: float = DECAY
    repeats: frozenset[str] = frozenset()
    all_repeat: bool = False


class RankedList(NamedTuple):
    """A list, and how far what was left out is from it. The two bounds are of the order by score alone.

    Attributes:
        items: The list.
        margin: By how much the score of the last slot beats the best score that was left out; minus infinity where
            the list has a free slot.
        needed_prior: What popularity has to add to the score of an item that was left out, before the item can beat
            the last slot: the score of the last slot less the most that anything else adds to such an item's score.
            Minus infinity where the list has a free slot.
    """

    items: list[Item]
    margin: float
    needed_prior: float


def rank(
    space: ItemSpace,
    config: RankConfig,
    states: Sequence[UserState],
    history: NDArray[np.int32],
    topk_index: NDArray[np.int32],
    topk_score: NDArray[np.float32],
    embedding: NDArray[np.float32],
    priors: Sequence[Prior] | None = None,
    seeds: Sequence[str] = (),
) -> list[RankedList]:
    """Rank for a batch of B users.

    `history` `[B, L]` is the encoder's `item_index` input; the next three are
    its outputs: `[B, K]`, `[B, K]`, `[B, D]`. `priors` holds one per
    user; without it all lists are made with the space's own. `seeds` holds one per
    user where there is exploration. A list does not depend on what else is in
    the batch, to the last bit.
    """
    if not states:
        return []
    priors = priors if priors is not None else [space.prior] * len(states)
    few_cold = max(prior.size for prior in priors) - space.trained <= FEW_COLD
    common, shared = _common_candidates(space, priors, cold=few_cold)
    # einsum, for a product through BLAS depends on the shape of the batch in its last bits
    extra = np.einsum("bd,cd->bc", embedding, space.vectors[common])
    rows, products = [topk_index, np.broadcast_to(common.astype(np.int32), extra.shape)], [topk_score, extra]
    if not few_cold:
        cold, product = _best_cold(space, config, states, embedding, priors)
        rows.append(cold)
        products.append(product)
    candidates = np.concatenate(rows, axis=1)
    barring = barring_events(states, history, config.repeats) if config.repeats else history
    popularity, struck = _by_user(space, priors, barring, topk_index, candidates)
    added = config.prior_weight * popularity
    scores = np.concatenate(products, axis=1) + added
    if config.value_weight or config.novelty_weight:
        scores += space.lift(config.value_weight, config.novelty_weight).take(candidates)
    rankable = np.isfinite(scores) & space.available[candidates] & ~struck
    top = topk_index.shape[1]
    rankable[:, top : top + len(common)] &= shared
    scores[~rankable] = -np.inf
    ranking = order_keys(scores, candidates)
    ranking.sort(axis=1)
    pool = config.list_size * (POOL if config.diversity or config.exploration else 1)
    wanted = max(pool, config.list_size + 1)
    length = history.shape[1]
    picks, values = _without_seen(space.ids, config, states, history, ranking, wanted)
    outside = best_outside(space, topk_score, config.prior_weight, priors)
    if config.value_weight or config.novelty_weight:
        outside += space.lift(config.value_weight, config.novelty_weight).max()
    margins, needed = bounds(scores, added, values, config.list_size, outside)
    for user in range(len(states)):
        del picks[user][pool:], values[user][pool:]
        if config.diversity:
            picks[user], values[user] = _diversify(space.vectors, picks[user], values[user], config)
    propensities, explored = [[1.0] * config.list_size] * len(states), [[False] * config.list_size] * len(states)
    if config.exploration:
        for user, seed in enumerate(seeds):
            picks[user], values[user], propensities[user], explored[user] = _explore(
                picks[user], values[user], config, seed
            )
    reasons: list[list[tuple[Reason, ...]]] = [[()] * config.list_size] * len(states)
    if config.reasons:
        positions, shares = strongest_events(space.vectors, history, picks, config.list_size, config.decay)
        reasons = [
            reasons_of(length, *parts) for parts in zip(states, positions.tolist(), shares.tolist(), strict=True)
        ]
    lists = [_items(space, *parts) for parts in zip(picks, values, propensities, explored, reasons, strict=True)]
    return [RankedList(*parts) for parts in zip(lists, margins.tolist(), needed.tolist(), strict=True)]


def _common_candidates(
    space: ItemSpace, priors: Sequence[Prior], *, cold: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The rows C that are candidates for some user, ascending, and whose, `[B, C]`: the popular rows, all cold ones.

    Without `cold` no cold row is among them.
    """
    different = {id(prior): prior for prior in priors}
    slot = {identity: number for number, identity in enumerate(different)}
    end = space.size if cold else space.trained
    rows = {
        identity: np.union1d(prior.popular[prior.popular < end], np.arange(space.trained, prior.size if cold else 0))
        for identity, prior in different.items()
    }
    wanted = np.zeros(space.size, np.bool_)
    for mine in rows.values():
        wanted[mine] = True
    common = np.flatnonzero(wanted)
    column = np.zeros(space.size, np.int64)
    column[common] = np.arange(len(common))
    shared = np.zeros((len(different), len(common)), np.bool_)
    for whose, mine in zip(shared, rows.values(), strict=True):
        whose[column[mine]] = True
    return common, shared[[slot[id(prior)] for prior in priors]]


def _best_cold(
    space: ItemSpace,
    config: RankConfig,
    states: Sequence[UserState],
    embedding: NDArray[np.float32],
    priors: Sequence[Prior],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Cold rows `[B, M]` among which each user's best are, and their dot products; row 0, never rankable, for none.

    There are as many as a list may need, and as a user may have seen.
    """
    first, end = space.trained, max(prior.size for prior in priors)
    seen = max(state.length + state.seen_log.count(ID_SEPARATOR) for state in states)
    wanted = min(end - first, config.list_size * (POOL if config.diversity or config.exploration else 1) + seen)
    cold = np.arange(first, end)
    available = space.available[first:end]
    popularity = {id(prior): config.prior_weight * prior.values.take(cold, mode="clip") for prior in priors}
    rankable = {id(prior): available & (cold < prior.size) for prior in priors}
    lift: NDArray[np.float32] | np.float32 = np.float32(0)
    if config.value_weight or config.novelty_weight:
        lift = space.lift(config.value_weight, config.novelty_weight)[first:end]
    rows, products = best_rows(
        embedding,
        space.vectors[first:end],
        space.longest_cold,
        [popularity[id(prior)] for prior in priors],
        lift,
        [rankable[id(prior)] for prior in priors],
        wanted,
    )
    return np.where(rows < 0, 0, rows + first).astype(np.int32), products


def _by_user(
    space: ItemSpace,
    priors: Sequence[Prior],
    history: NDArray[np.int32],
    topk_index: NDArray[np.int32],
    candidates: NDArray[np.int32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Each candidate's popularity, and whether it is out: in the user's history, or in the top-K and here once more.

    Some users at a time with marks on rows, whose cost depends neither on the size of the space nor on the
    history's length times the candidates' number.
    """
    users, top = topk_index.shape
    if all(prior is priors[0] for prior in priors):
        popularity = priors[0].values.take(candidates, mode="clip")  # later rows are not the prior's
    else:
        popularity = np.stack(
            [prior.values.take(rows, mode="clip") for prior, rows in zip(priors, candidates, strict=True)]
        )
    struck = np.empty(candidates.shape, np.bool_)
    together = min(users, max(1, MARKS // space.size))
    marks = np.zeros(together * space.size, np.bool_)
    row_of = np.arange(together, dtype=np.int64)[:, None] * space.size
    for start in range(0, users, together):
        chunk = slice(start, start + together)
        first = row_of[: users - start]
        own, mine = first + history[chunk], first + topk_index[chunk]
        marks[own] = True
        struck[chunk, :top] = marks[mine]
        marks[mine] = True
        struck[chunk, top:] = marks[first + candidates[chunk, top:]]
        marks[own] = False
        marks[mine] = False
    return popularity, struck


def rank_popular(space: ItemSpace, state: UserState | None, list_size: int, prior: Prior | None = None) -> list[Item]:
    """The most popular available items, without those the user (if any profile) has seen: for who has no profile."""
    prior = prior or space.prior
    seen = {*state.items, *state.seen} if state is not None else ()
    items: list[Item] = []
    for row in prior.popular.tolist():
        if space.available[row] and space.ids[row] not in seen:
            items.append(Item(space.ids[row], round(float(prior.values[row]), 5), "popular"))
            if len(items) == list_size:
                break
    return items


def _ranked(keys: NDArray[np.int64]) -> tuple[list[Any], list[Any]]:
    """The rows and the rounded scores of order keys."""
    ascending = -(keys >> 32)
    bits = np.where(ascending < 0, ascending ^ 0x7FFFFFFF, ascending).astype(np.int32)
    return (keys & 0xFFFFFFFF).tolist(), bits.view(np.float32).astype(np.float64).round(5).tolist()


def _without_seen(
    ids: list[str],
    config: RankConfig,
    states: Sequence[UserState],
    history: NDArray[np.int32],
    ranking: NDArray[np.int64],
    wanted: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """Each user's first `wanted` rows and scores by sorted order keys, without items seen before the `history`."""
    picks, values = _ranked(ranking[:, : max(wanted, LOOK_AHEAD)])
    more_seen, length = (history == UNKNOWN).any(axis=1).tolist(), history.shape[1]
    for user, state in enumerate(states):
        if more_seen[user] or len(state.seen_log) > 1 or state.length > length or values[user][-1] == -np.inf:
            barred = barred_items(state, config.repeats, all_repeat=config.all_repeat)
            picks[user], values[user] = _unseen(ids, barred, picks[user], values[user], ranking[user], wanted)
    return picks, values


def _unseen(
    ids: list[str], seen: str, rows: list[int], scores: list[float], keys: NDArray[np.int64], size: int
) -> tuple[list[int], list[float]]:
    """The first `size` finite candidates that are not among `seen`: of `rows`, then of the rest by order keys."""
    picked: list[int] = []
    values: list[float] = []
    start = 0
    while rows:
        for row, score in zip(rows, scores, strict=True):
            if score == -np.inf:
                return picked, values
            if f"{ID_SEPARATOR}{ids[row]}{ID_SEPARATOR}" not in seen:
                picked.append(row)
                values.append(score)
                if len(picked) == size:
                    return picked, values
        start += len(rows)
        rows, scores = _ranked(keys[start : start + LOOK_AHEAD])
    return picked, values


def _diversify(
    vectors: NDArray[np.float32], rows: list[int], scores: list[float], config: RankConfig
) -> tuple[list[int], list[float]]:
    """Maximal marginal relevance over the pool, scores scaled to [0, 1], cosine similarity.

    Exploration draws on the rest of the pool, which follows in order of score.
    """
    if not rows:
        return rows, scores
    unit = vectors[rows]
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    relevance = np.array(scores)
    spread = relevance[0] - relevance[-1]
    relevance = (relevance - relevance[-1]) / spread if spread > 0 else np.ones_like(relevance)
    nearest = np.zeros(len(rows))
    chosen: list[int] = []
    left = np.ones(len(rows), np.bool_)
    while len(chosen) < min(config.list_size, len(rows)):
        gain = (1 - config.diversity) * relevance - config.diversity * nearest
        best = int(np.argmax(np.where(left, gain, -np.inf)))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, unit @ unit[best])
    if config.exploration:
        chosen += np.flatnonzero(left).tolist()
    return [rows[i] for i in chosen], [scores[i] for i in chosen]


def _explore(
    rows: list[int], scores: list[float], config: RankConfig, seed: str
) -> tuple[list[int], list[float], list[float], list[bool]]:
    """Change the first `list_size` of the pool at random: rows, scores, slot propensities, which slots were changed."""
    explored = explore(rows, config.list_size, config.exploration, seed)
    score = dict(zip(rows, scores, strict=True))
    return explored.items, [score[row] for row in explored.items], explored.propensities, explored.moved


def _items(
    space: ItemSpace,
    picked: list[int],
    scores: list[float],
    propensities: list[float],
    explored: list[bool],
    reasons: list[tuple[Reason, ...]],
) -> list[Item]:
    ids, trained = space.ids, space.trained
    return [
        Item(ids[row], score, "explore" if moved else "cold" if row >= trained else "model", propensity, why)
        for row, score, propensity, moved, why in zip(picked, scores, propensities, explored, reasons, strict=False)
    ]
