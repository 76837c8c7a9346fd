"""What happens in a replay, in the order of the log: moments to make lists for, and acts that judge lists."""

from __future__ import annotations

from typing import NamedTuple

from freshet.core.events import Event
from freshet.core.state import UserState
from freshet.replay.clock import Counts


class Moment(NamedTuple):
    """A user at one event time, when all events of the user with that time are folded.

    `state` is a copy of the user's state. `counts` is the popularity of that minute. `boundaries` are the last
    boundaries of the clock's periods. `judged` says whether the burn-in is over.
    """

    user_id: str
    state: UserState
    event: Event
    counts: Counts
    boundaries: tuple[int, ...]
    judged: bool


class Act(NamedTuple):
    """A user's first touch of an item. It judges the list that the user was looking at.

    `counts` is the popularity of that minute, and `all_time` is the same popularity without decay. `boundaries` and
    `at_boundary` are the boundaries of the clock's periods and the popularity there. `history` is how many events of
    the user were folded before. If `judged` is false, the act falls into the burn-in and judges nothing.
    """

    event: Event
    counts: Counts
    all_time: Counts
    boundaries: tuple[int, ...]
    at_boundary: tuple[Counts, ...]
    history: int
    judged: bool


Action = Moment | Act
