"""Acts joined to the lists that they were done on.

An act that names a list in its context (`recommendation_id`) belongs to that
one. Any other belongs to the newest list of its user that is as of an earlier
time. Either way it must come within the window after the event that the list is
as of, and be on an item of the list; an act that is not so is nobody's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from freshet.core.events import Event
from freshet.core.recommendation import Recommendation


class Joiner:
    """Lists, and which of their slots were acted upon. Memory grows with the lists.

    A list that was published twice counts once, and so does an act on a slot:
    a reward is 0 or 1.
    """

    def __init__(self, lists: Iterable[Recommendation], window_ms: int) -> None:
        self._window = window_ms
        self.lists = {made.recommendation_id: made for made in lists}
        self._acts: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self.counts: Counter[str] = Counter()
        """Acts `joined by id`, `joined by time` and `not joined`."""
        by_user: dict[str, list[Recommendation]] = defaultdict(list)
        for made in self.lists.values():
            by_user[made.user_id].append(made)
        self._by_user = {user: sorted(mine, key=_moment) for user, mine in by_user.items()}
        self._times = {user: [made.as_of.ts for made in mine] for user, mine in self._by_user.items()}

    def add(self, event: Event, kinds: Collection[str]) -> None:
        """Take in an event; only those of the given types are acts."""
        if event.type not in kinds:
            return
        named = (event.context or {}).get("recommendation_id")
        how = "joined by time" if named is None else "joined by id"
        found = self._newest(event) if named is None else self.lists.get(named) if isinstance(named, str) else None
        if found is None or found.user_id != event.user_id or not 0 <= event.ts - found.as_of.ts <= self._window:
            self.counts["not joined"] += 1
            return
        slot = next((slot for slot, item in enumerate(found.items) if item.item_id == event.item_id), None)
        if slot is None:
            self.counts["not joined"] += 1
            return
        self.counts[how] += 1
        self._acts[found.recommendation_id].add((event.type, slot))

    def rewards(self, made: Recommendation, kind: str) -> list[float]:
        """1 for each slot of a list that an act of a type was joined to, 0 for the others."""
        acts = self._acts.get(made.recommendation_id, ())
        return [float((kind, slot) in acts) for slot in range(len(made.items))]

    def _newest(self, event: Event) -> Recommendation | None:
        later = bisect_left(self._times.get(event.user_id, ()), event.ts)
        return self._by_user[event.user_id][later - 1] if later else None


def _moment(made: Recommendation) -> tuple[int, int]:
    return made.as_of.ts, made.as_of.offset
