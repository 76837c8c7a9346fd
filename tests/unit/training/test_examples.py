"""The training examples of a log."""

from __future__ import annotations

import numpy as np
import pytest
from freshet.core.events import ERASE, OPT_IN, OPT_OUT, Event
from freshet_training.examples import IGNORE, histories, shuffle_ties, windows

LENGTH = 50
INDEX = {f"i{number}": number + 2 for number in range(200)}


def event(number: int, kind: str = "view", user: str = "u", ts: int | None = None) -> Event:
    when = 1_700_000_000_000 + (number * 1000 if ts is None else ts)
    return Event(f"e{number}", user, kind, when, f"i{number}" if kind == "view" else None)


def ids(runs: list[list[Event]]) -> list[list[str]]:
    return [[event.event_id for event in run] for run in runs]


def test_what_was_erased_is_not_learned() -> None:
    """An erasure or opt-out removes the user's earlier events from training."""
    log = [event(0), event(1, ERASE), event(2), event(3, OPT_IN), event(4), event(5, user="v"), event(6, OPT_OUT, "v")]
    assert ids(histories(log)) == [["e4"]]


def test_a_duplicate_is_learned_once() -> None:
    """Training skips a producer's duplicate."""
    assert ids(histories([event(0), event(1), event(0)])) == [["e0", "e1"]]


def test_the_first_event_is_a_target_of_the_empty_history() -> None:
    """The first event is a target behind padding alone."""
    examples = windows([[event(0)]], INDEX, {"view": 1}, LENGTH)
    assert examples.item_index.tolist() == [[0] * LENGTH]
    assert examples.next_item[0, -1] == INDEX["i0"]
    assert (examples.next_item[0, :-1] == IGNORE).all()


def test_long_histories_are_cut_into_overlapping_rows() -> None:
    """Every event is a target once, with half a row of context in later rows."""
    run = [event(number) for number in range(120)]
    examples = windows([run], INDEX, {"view": 1}, LENGTH)
    targets = examples.next_item[examples.next_item != IGNORE]
    assert targets.tolist() == [INDEX[f"i{number}"] for number in range(120)]
    context = (examples.item_index[1:] != 0).cumsum(axis=1)[examples.next_item[1:] != IGNORE]
    assert context.min() >= LENGTH // 2


def test_the_gap_before_a_row_is_unknown() -> None:
    """A row's first event has gap bucket 1, as in `featurise`."""
    run = [event(number, ts=number * 3_600_000) for number in range(60)]
    examples = windows([run], INDEX, {"view": 1}, LENGTH)
    first = (examples.item_index != 0).argmax(axis=1)
    assert (examples.time_gap[np.arange(len(examples)), first] == 1).all()
    assert (examples.time_gap > 1).any()


def test_only_ties_are_shuffled() -> None:
    """Only events of equal time change places."""
    tied = [event(number, ts=0) for number in range(20)]
    apart = [event(number, user="v") for number in range(20, 40)]
    first, second = shuffle_ties([tied, apart], np.random.default_rng(0))
    assert first != tied
    assert sorted(e.event_id for e in first) == sorted(e.event_id for e in tied)
    assert second == apart


def test_targets_alone_are_predicted() -> None:
    """An event of no target type trains the next type and not the next item."""
    run = [event(number) for number in range(4)]
    run[1] = Event("e1", "u", "like", run[1].ts, "i1")
    examples = windows([run], INDEX, {"view": 1, "like": 2}, LENGTH, targets={"view"})
    assert examples.next_item[0, -4:].tolist() == [2, IGNORE, 4, 5]
    assert examples.next_type[0, -4:].tolist() == [1, 2, 1, 1]
    assert examples.item_index[0, -3:].tolist() == [2, 3, 4]


def test_only_what_is_new_is_trained() -> None:
    """Rows without a new event are left out, and other rows keep their past."""
    old, new = [event(number) for number in range(60)], [event(number, user="v") for number in range(3)]
    examples = windows([old, new], INDEX, {"view": 1}, LENGTH, since=old[57].ts)
    assert examples.next_item[examples.next_item != IGNORE].tolist() == [59, 60, 61]
    assert (examples.item_index[0] != 0).sum() >= LENGTH // 2
    with pytest.raises(ValueError, match="no behaviour events"):
        windows([new], INDEX, {"view": 1}, LENGTH, since=old[57].ts)
