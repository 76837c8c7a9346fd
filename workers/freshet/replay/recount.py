"""Popularity counted anew: what a worker that had read the whole log would have counted."""

from __future__ import annotations

from freshet.core.events import Event
from freshet.core.popularity import Partial, PartialPopularity
from freshet.core.state import FIRST_TOUCH, UserState, empty_state, fold
from freshet.logs.source import decoded
from freshet.ports import Log
from freshet.settings import Settings


def recounted(log: Log, settings: Settings) -> list[Partial]:
    """The records of each partition; the first of each replaces all that it had before.

    Memory grows with a partition's users. Raises `LogError`.
    """
    partials: list[Partial] = []
    for partition in log.partitions:
        popularity = PartialPopularity(partition, settings.popularity_half_life, anew=True)
        states: dict[str, UserState] = {}
        for run in decoded(log, partition, settings):
            for record, event in run:
                if not isinstance(event, Event):
                    continue
                state = states.setdefault(event.user_id, empty_state(partition))
                outcome = fold(state, event, partition, record.offset, settings.history)
                if outcome is FIRST_TOUCH and settings.behaviours.get(event.type, 0.0) > 0:
                    popularity.add(event.item_id or "", event.ts, record.offset)
        partials += popularity.changes()
    return partials
