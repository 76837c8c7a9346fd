"""Ranking metrics: what a rank is, what a baseline knows, how sure a mean is."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from freshet.core.events import Event
from freshet_training.config import TrainingConfig
from freshet_training.evaluate import (
    UNRANKED,
    EvaluationBatch,
    EvaluationReplay,
    difference,
    evaluate,
    rank_of_target,
    result_of,
    user_bootstrap,
    with_prior,
)

ITEMS = ["a", "b", "c", "d"]
DAY = 86_400


def event(user: str, item: str, seconds: int) -> Event:
    return Event(f"{user}-{item}-{seconds}", user, "click", 1_700_000_000_000 + seconds * 1000, item)


def replay(events: list[Event], half_life_s: float = DAY) -> EvaluationReplay:
    index = {item: row + 2 for row, item in enumerate(ITEMS)}
    return EvaluationReplay(events, ITEMS, index, {"click": 1}, half_life_s, 50)


def test_rank_counts_unseen_items_ahead() -> None:
    """The rank is the number of unseen items with a higher score."""
    scores = np.array([[4.0, 3.0, 2.0, 1.0]], np.float32)
    seen = np.array([[True, False, False, False]])
    assert rank_of_target(scores, np.array([2]), seen).tolist() == [1]


def test_ties_go_to_the_lower_row() -> None:
    """Among equal scores the lower row ranks first."""
    scores = np.zeros((4, 4), np.float32)
    seen = np.zeros((4, 4), np.bool_)
    assert rank_of_target(scores, np.arange(4), seen).tolist() == [0, 1, 2, 3]


def test_nan_sinks() -> None:
    """A NaN score ranks last, and a target with NaN is a miss."""
    scores = np.array([[np.nan, 1.0, 0.0, -1.0], [np.nan, 1.0, 0.0, -1.0]], np.float32)
    seen = np.zeros((2, 4), np.bool_)
    assert rank_of_target(scores, np.array([0, 3]), seen).tolist() == [UNRANKED, 2]


def test_what_cannot_be_listed_is_a_miss() -> None:
    """A target that cannot be listed is a miss, in a catalogue shorter than a list as well."""
    scores = np.array([[1.0, -np.inf]], np.float32)
    rank = rank_of_target(scores, np.array([1]), np.zeros((1, 2), np.bool_))
    assert result_of(["u"], rank, np.ones(1, np.bool_)).hr == 0


def test_gain_is_ndcg_with_one_relevant_item() -> None:
    """Rank 1 gains 1, rank 3 a half and rank 11 nothing."""
    result = result_of(["u"] * 3, np.array([0, 2, 10]), np.ones(3, np.bool_))
    assert result.gain.tolist() == [1.0, 0.5, 0.0]
    assert result.hr == pytest.approx(2 / 3)


def test_a_batch_is_the_state_before_its_events() -> None:
    """A batch's seen items, history, tensors and counts are those before its events."""
    events = [event("u", "a", 0), event("v", "a", 1), event("u", "b", 2), event("u", "c", 3)]
    (batch,) = replay(events).batches(0, 4)
    assert batch.target.tolist() == [0, 0, 1, 2]
    assert batch.seen.tolist() == [[False] * 4, [False] * 4, [True, *[False] * 3], [True, True, False, False]]
    assert batch.popular[:, 0].tolist() == [0, 1, 2, 2]
    assert batch.tensors["item_index"][:, -1].tolist() == [0, 0, 2, 3]
    assert [rows.tolist() for rows in batch.history] == [[], [], [0], [0, 1]]


def test_popularity_counts_users_not_events() -> None:
    """A second event of a user on an item is neither counted nor evaluated."""
    events = [event("u", "a", 0), event("u", "a", 1), event("v", "b", 2)]
    (batch,) = replay(events).batches(0, 3)
    assert len(batch.users) == 2
    assert batch.popular[-1].tolist() == [1, 0, 0, 0]


def test_a_type_that_weighs_nothing_is_no_part_of_popularity() -> None:
    """An event of weight 0 changes no popularity."""
    liked, disliked = event("ann", "a", 0), msgspec.structs.replace(event("ann", "b", 1), type="dislike")
    index = {item: row + 2 for row, item in enumerate(ITEMS)}
    types = {"click": 1, "dislike": 2}
    counted = TrainingConfig(behaviours={"click": 1.0, "dislike": 0.0}).counted
    world = EvaluationReplay([liked, disliked, event("bob", "c", 2)], ITEMS, index, types, DAY, 50, counted=counted)
    [batch] = world.batches(2, 3)
    assert batch.popular.tolist() == [[1, 0, 0, 0]]
    assert batch.recent[0, 1] == 0


def test_recent_popularity_halves_in_a_half_life() -> None:
    """Recent popularity halves in a half-life of event time."""
    events = [event("u", "a", 0), event("v", "b", DAY)]
    (batch,) = replay(events).batches(1, 2)
    assert batch.recent[0, 0] == pytest.approx(0.5)


def test_evaluation_from_a_position_has_the_whole_past() -> None:
    """Evaluation from a later position has the same states with fewer events."""
    events = [event("u", item, second) for second, item in enumerate(ITEMS)]
    (whole,) = replay(events).batches(0, 4)
    (part,) = replay(events).batches(2, 4)
    assert (part.seen == whole.seen[2:]).all()
    assert (part.tensors["item_index"] == whole.tensors["item_index"][2:]).all()


def test_prior_is_added_to_the_encoder() -> None:
    """The served score adds the weight times log1p of decayed popularity to the encoder's score."""
    (batch,) = replay([event("u", "a", 0), event("v", "b", 0)]).batches(1, 2)
    scores = with_prior(lambda b: np.zeros((len(b.users), 4), np.float32), 2.0)(batch)
    assert scores[0].tolist() == pytest.approx([2 * np.log(2), 0, 0, 0])


def test_an_oracle_is_perfect_and_its_opposite_never_hits() -> None:
    """An oracle has the metrics' maximum, and its opposite never hits."""

    def oracle(batch: EvaluationBatch) -> np.ndarray:
        return np.eye(len(names), dtype=np.float32)[batch.target]

    names = [f"i{number}" for number in range(30)]
    events = [event(f"u{number % 3}", names[number], number) for number in range(30)]
    world = EvaluationReplay(events, names, {name: row + 2 for row, name in enumerate(names)}, {"click": 1}, DAY, 50)
    results = evaluate(world.batches(0, 30), {"oracle": oracle, "opposite": lambda batch: -oracle(batch)})
    assert results["oracle"].ndcg == 1.0
    assert results["opposite"].hr == 0.0


def test_tied_events_can_be_left_out() -> None:
    """Only an event at the time of the user's previous event is tied."""
    events = [event("u", "a", 0), event("u", "b", 0), event("v", "a", 0), event("u", "c", 1)]
    (batch,) = replay(events).batches(0, 4)
    assert batch.untied.tolist() == [True, False, True, True]
    result = result_of(batch.users, np.array([0, 50, 50, 0]), batch.untied)
    assert result.only_untied().hit.tolist() == [1.0, 0.0, 1.0]


def test_bootstrap_resamples_users() -> None:
    """The bootstrap resamples users, so a user's many events count as a single observation."""
    users = np.array(["a"] * 100 + ["b"])
    low, high = user_bootstrap(users, np.array([1.0] * 100 + [0.0]))
    assert (low, high) == (0.0, 1.0)
    assert user_bootstrap(users, np.ones(101)) == (1.0, 1.0)


def test_difference_is_paired() -> None:
    """Two equal rankers have a difference and an interval of 0."""
    result = result_of(["a", "b", "c"], np.array([0, 5, 20]), np.ones(3, np.bool_))
    same = difference(result, result)
    assert user_bootstrap(same.users, same.gain) == (0.0, 0.0)


def test_nothing_to_evaluate_is_said() -> None:
    """An empty part is an error."""
    with pytest.raises(ValueError, match="no event to evaluate"):
        evaluate(replay([event("u", "a", 0)]).batches(1, 1), {"popularity": lambda batch: batch.popular})
