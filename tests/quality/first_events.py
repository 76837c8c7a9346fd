"""Before a visitor's first event: what is popular now, with everybody or in the visitor's context.

Each user's first event, the log's first fifth apart, is ranked by what others have touched so far, an item
once a user and decayed. In a context (who the visitor is, or the time of day) the counts are those of visitors
alike, drawn to everybody's as if there were so many touches more of these: Dirichlet smoothing (Zhai and
Lafferty, SIGIR 2001).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from freshet_training.evaluate import DAY_MS, gains, hits, rank_of_target

from tests.quality.logs import Stream
from tests.quality.ranking import with_intervals

BURN_IN = 5
"""One in so many events of the log is learned from alone."""
DRAWN = (100.0, 1000.0)
"""So many touches by visitors of all kinds are added to those of a context."""


def times_of_day(stream: Stream) -> dict[str, list[str]]:
    """A label of each user by when their first event is: the quarter of the day."""
    first: dict[int, str] = {}
    for user, ts in zip(stream.users, stream.times, strict=True):
        first.setdefault(user, str(ts % DAY_MS * 4 // DAY_MS))
    return {"quarter of the day": [first[user] for user in sorted(first)]}


def measure(stream: Stream, contexts: Mapping[str, Sequence[str]], half_life: float) -> dict[str, dict[str, float]]:
    """HR@10 and NDCG@10 of users' first events, by ranker; `contexts` are labels by user, `half_life` seconds."""
    row = {pair: number for number, pair in enumerate(sorted({(n, label) for n in contexts for label in contexts[n]}))}
    counts = np.zeros((1 + len(row), len(stream.texts)))  # last everybody's
    mine = [
        [*(row[name, labels[user]] for name, labels in contexts.items()), -1] for user in range(max(stream.users) + 1)
    ]
    touched: set[tuple[int, int]] = set()
    visitors: set[int] = set()
    judged: list[str] = []
    ranks_by_model: dict[str, list[int]] = {}
    nothing_seen = np.zeros(len(stream.texts), np.bool_)
    clock = stream.times[0]
    for position, (user, item, ts) in enumerate(zip(stream.users, stream.items, stream.times, strict=True)):
        counts *= 0.5 ** ((ts - clock) / (half_life * 1000.0))
        clock = ts
        if user not in visitors and position * BURN_IN >= len(stream.users):
            judged.append(str(user))
            *alike, everybody = counts[mine[user]]
            found = {"popularity": everybody}
            for name, of_context in zip(contexts, alike, strict=True):
                for drawn in DRAWN:
                    found[f"by {name}, {drawn:g} of all"] = of_context + drawn * everybody / everybody.sum()
            at = rank_of_target(np.stack(list(found.values())), np.full(len(found), item), nothing_seen)
            for name, rank in zip(found, at, strict=True):
                ranks_by_model.setdefault(name, []).append(rank)
        visitors.add(user)
        if (user, item) not in touched:
            touched.add((user, item))
            counts[mine[user], item] += 1
    users = np.array(judged)
    ranked = {name: np.array(at) for name, at in ranks_by_model.items()}
    return {name: with_intervals(users, hits(at), gains(at)) for name, at in ranked.items()}
