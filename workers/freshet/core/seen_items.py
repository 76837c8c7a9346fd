"""What a user may not be recommended: items that the user has touched, unless by behaviours that repeat.

`repeats` are the behaviours after which an item may be recommended again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freshet.core.events import ID_SEPARATOR
from freshet.core.features import PADDING
from freshet.core.state import UserState


def barring_events(
    states: Sequence[UserState], history: NDArray[np.int32], repeats: frozenset[str]
) -> NDArray[np.int32]:
    """`history` `[B, L]` without the events after which an item may be recommended again."""
    barring = history.copy()
    for user, state in enumerate(states):
        types = state.types[-history.shape[1] :]
        again = np.array([kind in repeats for kind in types], np.bool_)
        barring[user, history.shape[1] - len(types) :][again] = PADDING
    return barring


def barred_items(state: UserState, repeats: frozenset[str], *, all_repeat: bool) -> str:
    """The ids of the items that the user may not be recommended, each between separators."""
    if not repeats:
        return state.item_log + state.seen_log
    events = zip(state.items, state.types, strict=True)
    taken = [item for item, kind in events if kind not in repeats]
    known = ID_SEPARATOR.join(["", *taken, ""])
    return known if all_repeat else known + state.seen_log
