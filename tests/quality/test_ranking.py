"""The quality harness judges by full ranking: the rank of an item and the slice of a case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.quality.logs import Stream, sequences
from tests.quality.ranking import Floats, judge, leave_one_out

ITEMS = 30
HEAD, FEW, UNSEEN = 0, 1, 2


def by_item(histories: Sequence[list[int]]) -> Floats:
    """Item 0 best, then 1, and so on, for everybody."""
    return np.tile(-np.arange(ITEMS, dtype=np.float32), (len(histories), 1))


def test_the_last_item_tests_and_the_one_before_validates() -> None:
    """The last item tests and the item before validates, and neither is trained on."""
    split = leave_one_out([[4, 5, 6, 7]], [""] * ITEMS)
    assert split.train == [[4, 5]]
    assert split.validation == [([4, 5], 6)]
    assert split.test == [([4, 5, 6], 7)]
    assert split.counts()[[4, 5, 6, 7]].tolist() == [1, 1, 0, 0]


def test_seen_items_do_not_count_as_ahead() -> None:
    """The rank of an item counts all items that the user has not touched."""
    ranks = judge(by_item, [([0, 1, 2], 12), ([], 12), ([29], 9)])
    assert ranks.rank.tolist() == [9, 12, 9]
    assert ranks.hit.tolist() == [1, 0, 1]
    assert ranks.gain[0] == pytest.approx(1 / np.log2(11))


def test_slices_go_by_training_events() -> None:
    """Items of no, few and many training events count in their own slices."""
    counts = np.full(ITEMS, 21)
    counts[FEW], counts[UNSEEN] = 5, 0
    figures = judge(by_item, [([], HEAD), ([], FEW), ([], UNSEEN), ([3], 29)]).figures(counts)
    assert figures["unseen items"] == figures["items with 1-5"] == 1
    assert figures["head items"] == 0.5
    assert figures["hr@10"] == 0.75


def test_only_first_touches_make_a_sequence() -> None:
    """A sequence has first touches only, and short users are left out."""
    stream = Stream([1, 1, 1, 1, 2], [7, 8, 7, 9, 7], ["view"] * 5, [0, 1, 2, 3, 4], [""] * ITEMS)
    assert sequences(stream).users == [[7, 8, 9]]
