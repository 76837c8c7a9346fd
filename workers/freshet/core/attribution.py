"""Reasons by leaving events out: what an item's score loses without each of the user's events.

The encoder reads the history once whole and once without each event; the
difference of an item's scores is what that event did for it, in the company of
the others. It may be negative, and two events that say the same hide each other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freshet.core.state import UserState, joined


def leave_each_out(state: UserState, length: int) -> list[UserState]:
    """The state cut to the last `length` events, which an encoder reads, then without each of them, oldest first."""
    items, types, times = state.items[-length:], state.types[-length:], state.time_log[-8 * length :]
    whole = _with_history(state, items, types, times)
    return [
        whole,
        *(
            _with_history(state, _without(items, at), _without(types, at), times[: 8 * at] + times[8 * at + 8 :])
            for at in range(len(items))
        ),
    ]


def losses(embedding: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each event does for each item, `[items, N]`.

    `embedding` `[1 + N, DIM]` are the users' vectors of `leave_each_out`, `vectors` `[items, DIM]` the items'.
    """
    scores = vectors @ embedding.T
    lost: NDArray[np.float32] = scores[:, :1] - scores[:, 1:]
    return lost


def _without(values: Sequence[str], at: int) -> list[str]:
    return [*values[:at], *values[at + 1 :]]


def _with_history(state: UserState, items: Sequence[str], types: Sequence[str], times: bytes) -> UserState:
    twin = copy.copy(state)
    twin.item_log = joined(items)
    twin.type_log = joined(types)
    twin.time_log = times
    return twin
