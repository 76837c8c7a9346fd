"""A user whom a run of records touches, and whose list comes first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from freshet.core.events import Event
from freshet.core.state import UserState
from freshet.ports import Fetched


@dataclass(slots=True)
class Touched:
    """A user touched by the run: the new state, and the newest of the user's records.

    A user who is `restored` has no record: only the features are written again.
    """

    user_id: str
    state: UserState
    event_ts: int = 0
    broker_ts: int = 0
    weight: float = 0.0
    changed: bool = False
    visits: list[str] = field(default_factory=list)
    """Event ids of the visits that the list answers."""
    restored: bool = False

    def __post_init__(self) -> None:
        """Features of a user who is restored are as of the newest event."""
        if self.restored:
            self.event_ts = self.state.newest_ts

    def note_visit(self, event: Event) -> None:
        """Somebody waits for this list, so it goes before those that only events call for."""
        self.visits.append(event.event_id)
        self.weight = math.inf

    def note_redelivery(self, event: Event, record: Fetched) -> None:
        """The list is as of the state's offset, which this record may be older than."""
        if record.offset == self.state.offset:
            self.event_ts = event.ts
        elif not self.event_ts:
            self.event_ts = self.state.newest_ts or event.ts


def urgency_of(users: Sequence[Touched]) -> Callable[[Touched], tuple[bool, bool, float]]:
    """The order of the lists: for visits, then for users of partitions without a backlog, then by the users' events."""
    sizes = Counter(user.state.partition for user in users)
    backlog = max(sizes.values(), default=0) / 4

    def key(user: Touched) -> tuple[bool, bool, float]:
        return not user.visits, sizes[user.state.partition] > backlog, -user.weight

    return key
