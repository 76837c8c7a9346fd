"""What happens in a replay, in the order of the log: moments to make lists for, and acts that judge lists."""

from __future__ import annotations

from typing import NamedTuple

from freshet.core.events import Event
from freshet.core.state import UserState
from freshet.replay.clock import Counts


class Moment(NamedTuple):
    """A user at one event time: all of their events with that time are folded.

    `state` is a copy; `counts` the popularity of that minute; `boundaries` the last
    ones of the clock's periods. `judged` says whether the burn-in is over.
    """

    user_id: str
    state: UserState
    event: Event
    counts: Counts
    boundaries: tuple[int, ...]
    judged: bool


class Act(NamedTuple):
    """A user's first touch of an item: what judges the list they were looking at.

    `counts` is the popularity of that minute, `all_time` the same without decay,
    `boundaries` and `at_boundary` those of the clock's periods; `history` is how
    many events of the user were folded before. One that is not `judged` falls
    into the burn-in: it only happens.
    """

    event: Event
    counts: Counts
    all_time: Counts
    boundaries: tuple[int, ...]
    at_boundary: tuple[Counts, ...]
    history: int
    judged: bool


Action = Moment | Act
