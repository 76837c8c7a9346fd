"""Attribution: the reasons by leaving events out."""

import numpy as np
from freshet.core.attribution import leave_each_out, losses
from freshet.core.events import Event
from freshet.core.state import UserState, empty_state, fold

START = 890_000_000_000


def state_of(*items: str) -> UserState:
    """A state with a view of each item."""
    state = empty_state(0)
    for number, item in enumerate(items):
        fold(state, Event(f"e{number}", "ann", ("view", "click")[number % 2], START + number, item), 0, number)
    return state


def test_each_event_is_left_out_once() -> None:
    """Each state leaves out the item, type and time of a single event, and the full state does not change."""
    state = state_of("a", "b", "c")
    whole, *without = leave_each_out(state, 50)
    assert (whole.items, whole.types, whole.times) == (state.items, state.types, state.times)
    assert [state.items for state in without] == [["b", "c"], ["a", "c"], ["a", "b"]]
    assert [state.types for state in without] == [["click", "view"], ["view", "view"], ["view", "click"]]
    assert [[ts - START for ts in state.times] for state in without] == [[1, 2], [0, 2], [0, 1]]
    assert state.items == ["a", "b", "c"]


def test_no_older_event_moves_up() -> None:
    """Leaving an event out brings in no event beyond the encoder's length."""
    whole, *without = leave_each_out(state_of("old", "a", "b"), 2)
    assert whole.items == ["a", "b"]
    assert [state.items for state in without] == [["b"], ["a"]]


def test_a_loss_is_what_the_event_brought() -> None:
    """With an encoder that adds item vectors, each event's loss is its own product with the item."""
    vectors = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 2.0]), "c": np.array([-1.0, 1.0])}
    states = leave_each_out(state_of("a", "b", "c"), 50)
    embedding = np.array([sum(vectors[item] for item in state.items) for state in states], np.float32)
    items = np.array([[3.0, 1.0], [0.0, -1.0]], np.float32)
    np.testing.assert_allclose(losses(embedding, items), [[3.0, 2.0, -2.0], [0.0, -2.0, -1.0]])
