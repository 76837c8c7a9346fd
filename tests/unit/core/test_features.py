"""Featurisation, case by case."""

import numpy as np
import pytest
from freshet.core.events import Event
from freshet.core.features import (
    GAP_BUCKETS,
    NUMPY_DTYPES,
    USER_ENCODER_INPUTS,
    behaviour_features,
    behaviour_row,
    featurise,
    gap_bucket,
    sized,
)
from freshet.core.state import empty_state, fold

LENGTH = 20
NOW = 1_700_000_000_000


def test_the_newest_event_stands_last() -> None:
    """Histories are padded on the left, unknown items are 1 and unknown types are 0."""
    state = empty_state(0)
    for offset, (item, kind, ts) in enumerate((("a", "view", NOW), ("b", "listen", NOW + 8000), ("?", "view", NOW))):
        fold(state, Event(event_id=f"e{offset}", user_id="u", type=kind, item_id=item, ts=ts), 0, offset)
    tensors = featurise([state], {"a": 2, "b": 3}, {"view": 1}, LENGTH)
    assert tensors["item_index"][0].tolist() == [0] * (LENGTH - 3) + [2, 3, 1]
    assert tensors["event_type"][0].tolist() == [0] * (LENGTH - 3) + [1, 0, 1]
    assert tensors["time_gap"][0].tolist() == [0] * (LENGTH - 3) + [1, 4, 1]


def test_tensors_are_what_the_encoder_declares() -> None:
    """Tensors have the declared names, shapes and types, for a batch and for no user."""
    for batch in ([empty_state(0)] * 3, []):
        tensors = featurise(batch, {}, {}, LENGTH)
        assert list(tensors) == [spec.name for spec in USER_ENCODER_INPUTS]
        for spec in sized(USER_ENCODER_INPUTS, length=LENGTH, dim=1, items=1):
            assert tensors[spec.name].shape == (len(batch), *spec.shape)
            assert tensors[spec.name].dtype == NUMPY_DTYPES[spec.dtype]


@pytest.mark.parametrize(
    ("gap_ms", "bucket"),
    [(-5, 1), (0, 1), (999, 1), (1000, 2), (2999, 2), (3000, 3), (6999, 3), (7000, 4), (2**42, GAP_BUCKETS - 1)],
)
def test_gap_buckets_have_edges_at_powers_of_two(gap_ms: int, bucket: int) -> None:
    """Bucket edges lie at powers of two of 1 + seconds, and the last bucket takes the rest."""
    assert gap_bucket(np.array([gap_ms], np.int64)).tolist() == [bucket]


def test_a_row_has_a_value_per_field() -> None:
    """A row of the behaviour view is as long as its field list, for any behaviour types."""
    for behaviours in (["view"], ["view", "click", "purchase", "listen"]):
        assert len(behaviour_row(empty_state(0), behaviours)) == len(behaviour_features(behaviours))
