"""What has moved in the world that lists are made with: items, popularity, versions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from freshet.core.popularity_moves import Rises, rises_of
from freshet.serving.list_maker import ListMaker
from freshet.serving.live_versions import LiveVersions
from freshet.serving.servable_version import ServableVersion

SLOW_SECONDS = 1.0
"""Between two looks at popularity and versions. At items every look looks."""


class Moved(NamedTuple):
    """What moved since the last look.

    Attributes:
        items: Items that went, or have another place by another text.
        rises: How popularity rose; None where nothing rose.
        versions: The versions that make lists now; None where nobody looked.
    """

    items: list[str]
    rises: Rises | None
    versions: frozenset[int] | None


class WorldWatch:
    """Compares the live version's items with what they were at the last look. The first look finds nothing."""

    def __init__(self, model: LiveVersions, maker: ListMaker) -> None:
        self._model = model
        self._maker = maker
        self._seen: ServableVersion | None = None
        self._slow_at = 0.0
        self.changed_s = 0.0
        """When a look found the side inputs changed last, seconds since the epoch."""

    def look(self, now_s: float) -> Moved:
        """What moved since the last look; `now_s` is seconds since the epoch."""
        live = self._model.current
        if live is not self._seen:
            self._begin(live, now_s)
        if live.side_inputs != self._side_inputs:
            self.changed_s = now_s
        items = self._changed_items(live)
        if 0.0 <= now_s - self._slow_at < SLOW_SECONDS:
            return Moved(items, None, None)
        self._slow_at = now_s
        candidate = self._model.candidate
        canary = candidate is not None and candidate.step.stage == "canary"
        served = {live.version, candidate.step.version} if candidate is not None and canary else {live.version}
        return Moved(items, self._rises(live), frozenset(served))

    def _begin(self, live: ServableVersion, now_s: float) -> None:
        self._seen, self.changed_s = live, now_s
        self._side_inputs = live.side_inputs
        self._available = live.space.available[: live.space.size].copy()
        _, self._moves = live.space.moved_since(0)
        self._returned: set[int] = set()
        self._added = self._added_by_popularity(live)
        self._counted = live.side_inputs.popularity

    def _changed_items(self, live: ServableVersion) -> list[str]:
        before, self._side_inputs = self._side_inputs, live.side_inputs
        if (before.items, before.items_embedded) == (live.side_inputs.items, live.side_inputs.items_embedded):
            return []
        space, known = live.space, self._available
        self._available = available = space.available[: space.size].copy()
        gone = np.flatnonzero(known & ~available[: len(known)]).tolist()
        moved, self._moves = space.moved_since(self._moves)
        came = available.copy()
        came[: len(known)] &= ~known
        self._returned |= {*np.flatnonzero(came).tolist(), *moved}
        return [space.ids[row] for row in dict.fromkeys([*gone, *moved])]

    def _rises(self, live: ServableVersion) -> Rises | None:
        if live.side_inputs.popularity == self._counted and not self._returned:
            return None
        before, self._added = self._added, self._added_by_popularity(live)
        self._counted = live.side_inputs.popularity
        returned, self._returned = self._returned, set()
        rises = rises_of(before, self._added, live.space.available[: live.space.size], returned)
        return rises if len(rises.priors) or rises.fall > 0 else None

    def _added_by_popularity(self, live: ServableVersion) -> np.ndarray:
        weight = np.float32(self._maker.prior_weight(live))
        return weight * live.space.prior.values[: live.space.size]
