"""The vectorised featurisation against a slow one written from its description."""

import numpy as np
from freshet.core.events import DEFAULT_BEHAVIOURS
from freshet.core.features import LIST_FEATURES, behaviour_features, behaviour_row, featurise, list_row, state_of
from freshet.core.state import HISTORY, Outcome, UserState, empty_state, fold
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.strategies import PARTITION, Entry, logs, make_log, states

ITEM_INDEX = {f"item-{number}": number + 2 for number in range(40)}
TYPE_INDEX = {"view": 1, "purchase": 2}
any_states = states(items=st.integers(0, 80).map("item-{}".format))


def one_user(state: UserState, length: int) -> tuple[list[int], list[int], list[int]]:
    """The three rows of one user, event by event."""
    padding = [0] * (length - len(state.items))
    items = [ITEM_INDEX.get(item, 1) for item in state.items[-length:]]
    types = [TYPE_INDEX.get(kind, 0) for kind in state.types[-length:]]
    times = state.times[-length:]
    gaps = []
    for position, time in enumerate(times):
        previous = times[position - 1] if position else time
        seconds = max(0, time - previous) // 1000
        gaps.append(min(31, 1 + (1 + seconds).bit_length() - 1))
    return padding + items, padding + types, padding + gaps


@given(st.lists(any_states, max_size=8), st.integers(1, HISTORY + 10))
def test_featurise_equals_the_slow_reference(batch: list[UserState], length: int) -> None:
    """`featurise` equals a slow reference for any histories and any version's length."""
    tensors = featurise(batch, ITEM_INDEX, TYPE_INDEX, length)
    expected = [one_user(state, length) for state in batch]
    for index, name in enumerate(("item_index", "event_type", "time_gap")):
        assert tensors[name].dtype == np.int32
        assert tensors[name].shape == (len(batch), length)
        assert tensors[name].tolist() == [rows[index] for rows in expected]


@given(st.lists(any_states, min_size=1, max_size=8), st.integers(1, HISTORY))
def test_a_users_features_do_not_depend_on_the_batch(batch: list[UserState], length: int) -> None:
    """A user has the same tensors alone and in a batch."""
    together = featurise(batch, ITEM_INDEX, TYPE_INDEX, length)
    for row, state in enumerate(batch):
        alone = featurise([state], ITEM_INDEX, TYPE_INDEX, length)
        for name, tensor in together.items():
            assert tensor[row].tolist() == alone[name][0].tolist()


@given(logs)
def test_the_feature_row_is_the_fold(log: list[Entry]) -> None:
    """The behaviour view's row holds, under each name, what the log says of that feature."""
    state = empty_state(PARTITION)
    applied = [
        entry.event
        for entry in log
        if entry.event.type in DEFAULT_BEHAVIOURS
        and fold(state, entry.event, PARTITION, entry.offset) in (Outcome.APPLIED, Outcome.FIRST_TOUCH)
    ]
    names = [feature.name for feature in behaviour_features(DEFAULT_BEHAVIOURS)]
    row = dict(zip(names, behaviour_row(state, DEFAULT_BEHAVIOURS), strict=True))
    assert row["recent_items"] == [event.item_id for event in applied][-HISTORY:]
    assert row["recent_types"] == [event.type for event in applied][-HISTORY:]
    assert list(row["recent_times"]) == [event.ts for event in applied][-HISTORY:]
    assert row["last_event_time"] == max((event.ts for event in applied), default=0)
    for kind in DEFAULT_BEHAVIOURS:
        assert row[f"{kind}_count"] == sum(event.type == kind for event in applied)
        assert row[f"{kind}_spend"] == sum(event.amount or 0 for event in applied if event.type == kind)


@given(logs)
def test_features_hold_all_of_a_state_that_a_list_depends_on(log: list[Entry]) -> None:
    """The state that is read from a user's features ranks, and explains, as the state that they were written from."""
    state = empty_state(PARTITION)
    for entry in log:
        fold(state, entry.event, PARTITION, entry.offset)
    names = [feature.name for feature in (*behaviour_features(DEFAULT_BEHAVIOURS), *LIST_FEATURES)]
    row = dict(zip(names, (*behaviour_row(state, DEFAULT_BEHAVIOURS), *list_row(state, 7)), strict=True))
    read = state_of(row)
    for field in ("partition", "offset", "item_log", "type_log", "time_log", "seen_log", "last_ts", "feature_ts"):
        assert getattr(read, field) == getattr(state, field)


def test_the_logs_reach_past_a_history() -> None:
    """The generated logs are long enough for events to fall out of the history."""
    longest = make_log(300, 5)
    assert sum(entry.event.user_id == "ann" for entry in longest) > HISTORY
