"""A user whom a run of records touches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from freshet.core.events import Event
from freshet.core.state import UserState
from freshet.ports import Fetched


@dataclass(slots=True)
class Touched:
    """A user touched by the run: the new state, and the newest of the user's records."""

    user_id: str
    state: UserState
    event_ts: int = 0
    broker_ts: int = 0
    weight: float = 0.0
    changed: bool = False
    visits: list[str] = field(default_factory=list)
    """Event ids of the visits that the list answers."""

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
